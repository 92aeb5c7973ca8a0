"""A command: what a user got wrong is one sentence and status 2, all else keeps its traceback."""

import errno
import importlib
import signal
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from qcs.config.command import command, one_sentence
from qcs.config.commands import explanation
from qcs.config.errors import Failed, UserError
from qcs.data.datasets import Faces
from qcs.data.folders import same_name
from qcs.data.workers import Loader, loader_options

QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]


@pytest.fixture
def start(monkeypatch, tmp_path, capsys):
    """Run `main` as the command predict with these arguments: its exit status and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.delenv("QCS_TRACEBACK", raising=False)

    def run(main, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["predict", *arguments, *QUIET])
        status = 0
        try:
            command("predict")(main)()
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


def fails(error: BaseException):
    def main(cfg: DictConfig) -> None:
        raise error

    return main


def done(cfg: DictConfig) -> None:
    Path("done").write_text(str(cfg.run_dir))


def test_a_command_runs_in_a_folder_of_its_own(start, tmp_path):
    assert start(done) == (0, "")
    assert Path("done").read_text().startswith(str(tmp_path / "runs/predict/"))


def test_a_users_mistake_is_one_line(start, monkeypatch):
    status, said = start(fails(UserError("ckpt is not set")))
    assert (status, said.count("\n")) == (2, 1) and said.startswith("error: ckpt is not set")
    monkeypatch.setenv("QCS_TRACEBACK", "1")
    status, said = start(fails(UserError("ckpt is not set")))
    assert status == 2 and "Traceback" in said and said.endswith("error: ckpt is not set\n")


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, FileNotFoundError])
def test_everything_else_is_a_bug_with_its_traceback(kind, start):
    status, said = start(fails(kind("too many values to unpack")))
    assert status == 70 and "Traceback" in said and "in main" in said


def test_a_bug_of_ours_is_to_be_reported(start):
    status, said = start(lambda cfg: same_name(None))
    assert status == 70 and "Traceback" in said
    assert said.splitlines()[-1].startswith("This is a bug of qcs: please report it")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_of_the_users_own_code_is_not_called_one_of_ours(
    workers, start, tmp_path, monkeypatch
):
    code = "import json\n\ndef broken(index):\n    return json.loads('{')\n"
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    monkeypatch.setattr(Faces, "__getitem__", lambda self, index: mine.broken(index))
    faces = Faces.__new__(Faces)
    monkeypatch.setattr(Faces, "__len__", lambda self: 2)
    options = loader_options(workers, timeout=0, seed=0)
    status, said = start(lambda cfg: next(iter(Loader(faces, **options))))
    del sys.modules["mine"]
    assert status == 70 and "Traceback" in said and "JSONDecodeError" in said
    assert said.splitlines()[-1].startswith(f"This comes from {tmp_path / 'mine.py'}, line 4, ")


@pytest.mark.parametrize(
    "error,sentence",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            "No space left on device: a/b; make room",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "Permission denied: a"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a"), "File name too long: a; name"),
        (OSError(errno.EFBIG, "File too large", "a/b"), "File too large: a/b"),
        (
            OSError(errno.EMFILE, "Too many open files", "a"),
            "Too many open files: a; raise the limit",
        ),
        (MemoryError(), "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "there is not enough memory"),
    ],
)
def test_what_the_machine_has_no_room_for_is_one_line(error, sentence, start):
    status, said = start(fails(error))
    assert status == 2 and sentence in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "argument,sentence",
    [
        ("anotate=true", "error: anotate is not an option of qcs.predict, did you mean annotate?"),
        ("ckpt=a=b", """error: ckpt=a=b holds signs that need quotes: write 'ckpt="a=b"'"""),
        ("--foo", "error: unrecognized arguments: --foo"),
        ("--resolve", "error: The --resolve flag can only be used"),
        ("--config-dir=nowhere", "error: Additional config directory"),
        ("--config-name=nowhere", "error: Cannot find primary config 'nowhere'"),
        ("hydra.run.dir=/dev/null/x", "error: the run's folder /dev/null/x: Not a directory"),
        ("seed=${nowhere}", "error: seed is not an option"),
        ("crop=${nowhere}", "error: crop: Interpolation key 'nowhere' not found"),
    ],
)
def test_what_hydra_refuses_is_one_line(argument, sentence, start):
    status, said = start(lambda cfg: dict(cfg), argument)
    assert status == 2 and said.startswith(sentence) and said.count("\n") == 1


def test_ctrl_c_is_status_130(start):
    assert start(fails(KeyboardInterrupt())) == (130, "stopped\n")


def test_sigterm_is_status_143_even_where_it_comes_twice(start):
    closed = []

    def main(cfg: DictConfig) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            closed.append(True)

    assert start(main) == (143, "stopped\n") and closed
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_job_of_a_multirun_fails_alone(start, monkeypatch):
    returned = []

    def main(cfg: DictConfig) -> None:
        if cfg.batch_size == 1:
            raise UserError("one is too few")
        done(cfg)

    from hydra._internal.core_plugins import basic_launcher

    run_job = basic_launcher.run_job
    monkeypatch.setattr(
        basic_launcher, "run_job", lambda **o: returned.append(run_job(**o)) or returned[-1]
    )
    status, said = start(main, "-m", "batch_size=1,2")
    assert status == 0 and said.startswith("error: one is too few") and Path("done").exists()
    assert isinstance(returned[0].return_value, Failed)
    assert returned[0].return_value.sentence == "one is too few"


@pytest.mark.parametrize(
    "flag,shown", [("--hydra-help", "== Flags =="), ("--cfg=job", "threshold")]
)
def test_hydras_own_flags_work(flag, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict", flag])
    with pytest.raises(SystemExit) if flag == "--hydra-help" else one_sentence():
        command("predict")(done)()
    assert shown in capsys.readouterr().out


def test_a_module_explains_itself_as_qcs_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict.py", "seed=0", "--help"])
    command("predict")(done)()
    assert capsys.readouterr().out == explanation("predict") + "\n"


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> None:
        raise UserError("cannot read image a.jpg")


def test_what_a_loader_process_found_is_the_same_sentence(capsys):
    with pytest.raises(SystemExit) as stop, one_sentence():
        list(DataLoader(Broken(), num_workers=1))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: cannot read image a.jpg (")
