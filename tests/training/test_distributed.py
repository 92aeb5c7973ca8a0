"""Two real processes over gloo on the CPU against one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from lightning.fabric.strategies.launchers import subprocess_script
from test_train import FORKS, SMALL, qcs
from torch import distributed

import two_processes
from qcs.config.errors import UserError
from qcs.data.quadruplets import AnchorBatchSampler, AnchorSampler
from qcs.data.sources import synthetic
from qcs.training import build
from qcs.training.distributed import (
    NonFiniteLoss,
    StepFlags,
    ended_together,
    release_others,
)


@pytest.mark.parametrize("anchors,number", [("shuffle", 30), ("shuffle", 31), ("balanced", 47)])
def test_processes_share_an_epoch_without_loss_or_repetition(anchors, number):
    labels = torch.arange(90).numpy() % 3
    sampler = AnchorSampler(labels, anchors, number, seed=3)
    whole = [[a[:3] for a in batch] for batch in AnchorBatchSampler(sampler, 8)]
    parts = [list(AnchorBatchSampler(sampler, 4, rank, 2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(AnchorBatchSampler(sampler, 4, 0, 2)) == len(whole)
    for together, *batches in zip(whole, *parts, strict=True):
        counted = [a[:3] for batch in batches for a in batch if a.share]
        assert sorted(counted) == sorted(together)
        for batch in batches:
            used = len(batch) if batch[0].share else 0
            assert batch[0].share == pytest.approx(used * 2 / len(together))


def test_a_resumed_epoch_begins_behind_what_is_done():
    sampler = AnchorSampler(torch.zeros(40, dtype=torch.long).numpy(), seed=3)
    batches = AnchorBatchSampler(sampler, 4, 1, 2)
    whole = list(batches)
    batches.skip = 2
    assert list(batches) == whole[2:]
    assert list(batches) == whole


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, request):
    """What two processes found, and the table of faces."""
    folder = tmp_path_factory.mktemp("ddp")
    faces = request.getfixturevalue("faces_table")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [two_processes.__file__, str(faces), str(folder)]
    command += [json.dumps(list(two_processes.CASES))]
    source = Path(build.__file__).parents[2]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], faces


@pytest.mark.parametrize("case", list(two_processes.CASES))
def test_two_processes_agree_with_one_of_whole_batches(case, ranks):
    (first, second), faces = ranks
    one = two_processes.fit(faces, case, 1)
    for a, b in zip(first[case]["weights"], second[case]["weights"], strict=True):
        assert torch.equal(a, b)
    pairs = list(zip(first[case]["weights"], one["weights"], strict=True))
    far = max((a - b).abs().max().item() for a, b in pairs)
    if case == "each its own":  # another perturbation in each process is another method
        assert far > 1e-6
        return
    assert far < 1e-11
    for name in ("val/acc", "val/mean_acc", "val/f1"):
        assert first[case]["metrics"][name] == pytest.approx(one["metrics"][name])
    for mine, whole in zip(first[case]["test"], one["test"], strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-9, rtol=0)


def _fail(rank: int, fails: str, folder: Path) -> None:
    """Be one of two processes, in which those fail whose number is in `fails`; "k" is killed."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2
    )
    launcher = SimpleNamespace(procs=[])
    trainer = SimpleNamespace(
        world_size=2, strategy=SimpleNamespace(launcher=launcher), default_root_dir="runs/1"
    )
    said, status = "nothing", 0
    try:
        with ended_together(trainer):
            if str(rank) in fails:
                raise UserError("a mistake")
            if rank and fails == "k":
                os.kill(os.getpid(), signal.SIGKILL)
            distributed.barrier()
    except UserError as error:
        said = str(error)
    except SystemExit as stop:
        status = stop.code
    (folder / str(rank)).write_text(f"{status} {said}")
    os._exit(0)


@pytest.mark.parametrize("fails", ["01", "1", "0", "k"])
def test_a_mistake_is_told_by_one_process(fails, tmp_path):
    started = [FORKS.Process(target=_fail, args=(rank, fails, tmp_path)) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode is not None
    found = sorted(path.read_text() for path in tmp_path.glob("[01]"))
    if fails == "k":
        (told,) = found
        assert "another process of the run was killed" in told
        assert "hydra.run.dir=runs/1 ckpt=auto" in told
    else:
        assert found == ["0 a mistake", "1 nothing"]


def test_processes_that_were_started_end_with_the_run():
    """Those that still run when the first process has told its error, and others had a bug."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    launcher = SimpleNamespace(procs=[subprocess.Popen(sleeping)])
    (process,) = launcher.procs
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(launcher=launcher))
    with pytest.raises(UserError, match="mine"), ended_together(trainer):
        raise UserError("mine")
    assert process.returncode == -signal.SIGKILL and not launcher.procs


def test_a_process_that_ends_badly_after_the_last_exchange_costs_nothing():
    """Lightning's watch over the others, which would kill this process, has none left to watch."""
    launcher = SimpleNamespace(procs=[subprocess.Popen([sys.executable, "-c", "exit(3)"])])
    failed = launcher.procs[0]
    watch = subprocess_script._ChildProcessObserver(os.getpid(), launcher.procs)
    watch._terminate_all = mock.Mock()
    assert failed.wait() == 3 and watch._run() and watch._terminate_all.called
    watch._terminate_all.reset_mock()
    release_others(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    assert watch._run() and not watch._terminate_all.called


def test_the_command_line_trains_on_two_processes(tmp_path):
    """Started by Lightning; one report of all test images, one table of metrics."""
    synthetic.make(tmp_path / "faces", size=32, train=8, val=3, test=3, workers=1)
    options = [*SMALL, f"dataset.path={tmp_path / 'faces'}", "trainer=ddp", "sam.rho=0.05"]
    options += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"]
    qcs("train", *options, "loader.num_workers=1", "hydra.run.dir=run", cwd=tmp_path)
    report = json.loads((tmp_path / "run/test/metrics.json").read_text())
    assert report["images"] == 21
    data = f"dataset.path={tmp_path / 'faces'}"
    qcs("eval", "ckpt=run/checkpoints/best.ckpt", data, "hydra.run.dir=eval", cwd=tmp_path)
    again = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert again["classes"] == report["classes"]
    assert (tmp_path / "run/csv/metrics.csv").read_text().count("\n") >= 3


def test_of_an_accumulated_step_the_batch_that_was_not_finite_is_named():
    flags = StepFlags()
    for number, loss in enumerate((1.0, float("nan"), 2.0)):
        flags.reduce(torch.tensor(loss), {"rows": torch.full((2, 4), number)}, processes=1)
    with pytest.raises(NonFiniteLoss, match="not finite at step 7") as error:
        flags.check("step 7")
    assert (error.value.rows == 1).all() and error.value.rows.shape == (2, 4)
    flags.check("step 8")  # nothing is pending any more
