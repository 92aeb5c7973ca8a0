"""Two real processes over gloo on the CPU against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import SMALL, qcs

import two_processes
from qcs.data.sampling import AnchorBatchSampler, AnchorSampler
from qcs.data.sources import synthetic
from qcs.training import build


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
