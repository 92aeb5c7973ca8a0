"""The real thing through the command line: train, resume, evaluate, on small drawn faces."""

import faulthandler
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.data.sources import synthetic
from qcs.training import build

SMALL = [
    "backbone.channels=[8,8,16]",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.grid=2",
    "model.input_size=32",
    "augment.size=32",
    "augment.resize=36",
    "loader.num_workers=0",
    "loader.batch_size=8",
    "trainer.enable_progress_bar=false",
]


# Each command has a process of its own, forked from one that has imported the libraries: their
# import is most of what a command on such small data takes.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["lightning", "timm", "torchmetrics", "qcs.training.build", "qcs.plots"]
)
LIMIT = 300  # seconds of a command


def main(command: str, arguments: tuple[str, ...], cwd: Path, *output: str) -> None:
    """Be `python COMMAND` or `python -m COMMAND`, in a fresh fork."""
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))  # as `python -m` does
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    os.environ["PYTHONPATH"] = str(Path(build.__file__).parents[2])  # for processes that it starts
    os.environ["PYTHONFAULTHANDLER"] = "1"
    torch.set_num_threads(1)
    for descriptor, file in enumerate(output, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    sys.argv = [command, *arguments]
    try:
        if command.endswith(".py"):
            runpy.run_path(command, run_name="__main__")
        else:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
    finally:  # as any process ends; a fork would wait for joblib's workers first
        threading._shutdown()


def python(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script or a module as a user does."""
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        process = FORKS.Process(target=main, args=(command, arguments, cwd, out.name, err.name))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)  # tells where it hangs
            process.join(2)
            process.kill()
            process.join()
        called = [command, *arguments]
        return subprocess.CompletedProcess(called, process.exitcode, out.read(), err.read())


def qcs(command: str, *overrides: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess:
    """Run `python -m qcs.COMMAND`; it must end well, or not if `ok` is False."""
    done = python(f"qcs.{command}", *overrides, cwd=cwd)
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with drawn faces (in `faces`) and a trained run of one epoch (in `run`)."""
    folder = tmp_path_factory.mktemp("cli")
    synthetic.make(folder / "faces", size=32, train=8, val=4, test=4, workers=1)
    qcs(
        "train",
        *SMALL,
        f"dataset.path={folder / 'faces'}",
        "trainer.max_epochs=1",
        "scheduler=exponential",
        "logger=wandb",
        "hydra.run.dir=run",
        cwd=folder,
    )
    return folder


def test_a_run_leaves_everything_in_its_folder(run):
    files = {p.relative_to(run / "run").as_posix() for p in (run / "run").rglob("*")}
    assert files >= {
        "config.yaml",
        "versions.json",
        "train.log",
        "csv/metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "test/metrics.json",
        "test/confusion.json",
        "test/confusion.png",
        "test/faces.png",
    }
    assert any(f.startswith("wandb/offline-run") for f in files)
    versions = json.loads((run / "run/versions.json").read_text())
    assert torch.__version__.startswith(versions["torch"])
    header = (run / "run/csv/metrics.csv").read_text().splitlines()[0]
    assert {"train/loss_epoch", "val/acc", "test/acc"} <= set(header.split(","))


def test_one_batch_of_everything_saves_nothing(run, tmp_path):
    done = qcs("train", *SMALL, f"dataset.path={run / 'faces'}", "debug=fast", cwd=tmp_path)
    assert "nothing is saved" in done.stderr + done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_eval_agrees_with_the_test_of_the_run(run):
    arguments = ["ckpt=run/checkpoints/best.ckpt", "hydra.run.dir=eval", "num_workers=0"]
    done = qcs("eval", *arguments, cwd=run, ok=False)
    assert "dataset.path is not set" in done.stderr  # not the drawn faces of the cache folder
    qcs("eval", *arguments, f"dataset.path={run / 'faces'}", cwd=run)
    ours, theirs = (
        json.loads((run / d / "metrics.json").read_text()) for d in ("eval", "run/test")
    )
    for key in ("acc", "mean_acc", "f1", "images", "classes", "selected_on"):
        assert ours[key] == theirs[key]
    counts = json.loads((run / "eval/confusion.json").read_text())["rows_are_true"]
    assert torch.tensor(counts).sum() == ours["images"] == 28


def test_a_run_resumes_and_repeats_the_uninterrupted_one(run):
    common = [*SMALL, f"dataset.path={run / 'faces'}", "scheduler=exponential", "test=false"]
    qcs("train", *common, "trainer.max_epochs=2", "hydra.run.dir=whole", cwd=run)
    last = "ckpt=run/checkpoints/last.ckpt"
    qcs("train", *common, "trainer.max_epochs=2", last, "hydra.run.dir=resumed", cwd=run)
    whole, resumed = (
        torch.load(run / d / "checkpoints/last.ckpt", weights_only=True)
        for d in ("whole", "resumed")
    )
    assert whole["global_step"] == resumed["global_step"] == 14
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], value, atol=0, rtol=0)


def test_a_checkpoint_rebuilds_itself_from_the_file_alone(run):
    checkpoint = load_checkpoint(run / "run/checkpoints/best.ckpt")
    assert checkpoint.class_names == synthetic.EXPRESSIONS
    image = synthetic.draw_face(5, 0, "Happiness", 48)
    from PIL import Image

    logits = checkpoint.network(checkpoint.transform(Image.fromarray(image))[None])
    assert logits.shape == (1, 7) and logits.isfinite().all()


def test_a_checkpoint_that_names_foreign_code_is_refused(run):
    content = torch.load(run / "run/checkpoints/best.ckpt", weights_only=True)
    content["qcs"]["backbone"] = {"_target_": "os.system", "command": "touch hacked"}
    torch.save(content, run / "hostile.ckpt")
    with pytest.raises(UserError, match="which has no name"):
        load_checkpoint(run / "hostile.ckpt")


class Payload:
    def __reduce__(self):
        return (os.system, ("touch hacked",))


def test_a_pickle_that_calls_something_is_refused(run):
    torch.save({"qcs": Payload()}, run / "pickle.ckpt")
    with pytest.raises(UserError, match="cannot be read safely|can be read safely"):
        load_checkpoint(run / "pickle.ckpt")
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "command,overrides,sentence",
    [
        ("train", ["dataset=ferplus"], "error: dataset.path is not set: FERPlus is read from"),
        ("train", ["dataset=ferplus", "dataset.path=nowhere"], "error: nothing to read at"),
        ("train", ["+nonsense=1"], "error: nonsense is not an option"),
        ("train", ["model.grid=3"], "error: map 1 of the backbone is 16x16 pixels"),
        (
            "train",
            ["ablation=no_cross", "loader.groups_per_image=2"],
            "error: loader.groups_per_image above 1 is of use where groups are compared",
        ),
        ("train", ["optimizer.lr=fast"], 'error: optimizer.lr="fast" should be a valid number'),
        ("eval", [], "error: ckpt is not set"),
        ("eval", ["ckpt=nowhere.ckpt"], "error: no checkpoint at ckpt=nowhere.ckpt"),
    ],
)
def test_a_users_mistake_is_one_sentence_without_a_traceback(command, overrides, sentence, run):
    if command == "train" and not any(o.startswith("dataset") for o in overrides):
        overrides = [*overrides, f"dataset.path={run / 'faces'}"]
    done = qcs(command, *overrides, cwd=run, ok=False)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_set_of_other_classes_is_refused(run, faces):
    rows = ["path,label,split"] + [
        f"{p},c{y},test" for p, y in zip(faces.paths, faces.labels, strict=True)
    ]
    (faces.root / "table.csv").write_text("\n".join(rows))
    data = ["dataset=csv", f"dataset.path={faces.root / 'table.csv'}"]
    done = qcs("eval", "ckpt=run/checkpoints/best.ckpt", *data, cwd=run, ok=False)
    assert "they have fewer than two classes in common by name" in done.stderr


def test_a_corrupt_image_is_named(run, tmp_path):
    synthetic.make(tmp_path / "faces", size=32, train=2, val=1, test=1, workers=1)
    victim = sorted((tmp_path / "faces/images/train").iterdir())[3]
    victim.write_bytes(b"not an image")
    data = [f"dataset.path={tmp_path / 'faces'}", "trainer.max_epochs=1", "loader.num_workers=2"]
    done = qcs("train", *SMALL[:-2], *data, cwd=tmp_path, ok=False)
    assert f"error: cannot read image images/train/{victim.name}" in done.stderr


def test_prepare_then_train_reads_the_prepared_images(run):
    data = [f"dataset.path={run / 'faces'}", "store=stores"]
    size = ["augment.size=32", "augment.resize=36"]
    done = qcs("prepare", *data, *size, "num_workers=2", cwd=run)
    assert "112 of 112 images of 36 pixels" in done.stdout
    common = [*SMALL, "trainer.max_epochs=1", "scheduler=exponential", "test=false"]
    common += ["augment.train.by=batch", "augment.train.jitter=[0.2,0.2,0.2,0.1]"]
    logs = []
    for name, folder in {"with": "stores", "without": "null"}.items():
        options = [*common, data[0], f"store={folder}", f"hydra.run.dir={name}"]
        logs.append(qcs("train", *options, cwd=run).stdout)
    assert "prepared images: stores" in logs[0] and "prepared images" not in logs[1]
    one, other = (
        torch.load(run / d / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for d in ("with", "without")
    )
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=0, rtol=0)


def test_check_writes_a_report_a_sheet_and_a_clean_manifest(run, tmp_path):
    synthetic.make(tmp_path / "faces", size=32, train=3, val=1, test=1, workers=1)
    train, test = (sorted((tmp_path / f"faces/images/{s}").iterdir()) for s in ("train", "test"))
    test[0].write_bytes(train[0].read_bytes())
    train[3].write_bytes(b"not an image")
    done = qcs("check", f"dataset.path={tmp_path / 'faces'}", "hydra.run.dir=out", cwd=tmp_path)
    assert "1 images appear in more than one split" in done.stdout
    assert f"cannot read image images/train/{train[3].name}" in done.stdout
    report = json.loads((tmp_path / "out/check.json").read_text())
    assert report["counts"]["test"] == dict.fromkeys(synthetic.EXPRESSIONS, 1)
    assert len(report["duplicates_across_splits"]) == len(report["unreadable"]) == 1
    assert (tmp_path / "out/faces.png").is_file()
    data = ["dataset=csv", "dataset.path=out/clean.csv", f"dataset.root={tmp_path / 'faces'}"]
    again = qcs("check", *data, "hydra.run.dir=again", cwd=tmp_path)
    assert "33 images" in again.stdout and "no faults found" in again.stdout


def test_a_run_whose_graphs_are_refused_leaves_no_folder(run):
    options = ["speed.cuda_graphs=true", "trainer.accelerator=cpu", "loader.num_workers=0"]
    where = [f"dataset.path={run / 'faces'}", "hydra.run.dir=graphs"]
    done = qcs("train", *options, *where, cwd=run, ok=False)
    assert done.returncode == 2
    assert "error: speed.cuda_graphs=true needs an NVIDIA GPU: leave it out" in done.stderr
    assert not (run / "graphs").exists()


def test_soft_labels_train(tmp_path):
    from test_sources import kaggle_ferplus

    root = kaggle_ferplus(tmp_path / "data")
    for table in (root / "fer2013.csv", root / "fer2013new.csv"):
        head, *rows = table.read_text().splitlines()
        table.write_text("\n".join([head, *(rows * 4)]))
    options = ["dataset=ferplus", f"dataset.path={root}", "dataset.labels=probability"]
    options += ["select_on=last", "test=false", "trainer.max_epochs=1", "model=base"]
    qcs("train", *SMALL, *options, "hydra.run.dir=soft", cwd=tmp_path)
    assert (tmp_path / "soft/checkpoints/last.ckpt").is_file()
