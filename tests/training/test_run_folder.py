"""Who may write into a run's folder, and when."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qcs.config.errors import UserError
from qcs.training import run_folder

HOLD = """
import os, sys, time
from pathlib import Path
from qcs.training.run_folder import locked
with locked(Path(sys.argv[1])):
    worker = os.fork()  # as loader workers are, which outlive a killed process for a while
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_until_the_first_is_dead(tmp_path):
    source = str(Path(run_folder.__file__).parents[2])
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": source}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        with (
            pytest.raises(UserError, match="another process is training in"),
            run_folder.locked(tmp_path),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with run_folder.locked(tmp_path):
            os.kill(worker, 0)  # still there
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), run_folder.locked(tmp_path / "mistyped"):
        raise UserError("no checkpoint")
    with run_folder.locked(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_folder.fcntl, "lockf", unsupported)
    with run_folder.locked(tmp_path):
        assert "start no second process there" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write into .*Not a directory; choose another"),
        run_folder.locked(tmp_path / "file/run"),
    ):
        pass


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/best.ckpt"])
def test_a_folder_that_holds_a_run_takes_no_second_one(name, tmp_path):
    run_folder.refuse_second_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=r"holds a run already: write ckpt=last"):
        run_folder.refuse_second_run(tmp_path)


def test_log_lines_are_held_back_until_the_run_may_write(tmp_path):
    log, before = logging.getLogger("qcs.test"), list(logging.getLogger().handlers)
    log.setLevel(logging.INFO)
    with run_folder.deferred_log():
        log.info("refused")
    assert not list(tmp_path.iterdir())
    with run_folder.deferred_log() as file:
        log.info("early")
        file.open_in(tmp_path)
        log.info("late")
        lines = (tmp_path / "train.log").read_text().splitlines()
        assert [line.rsplit(" ", 1)[1] for line in lines] == ["early", "late"]
    log.info("after")
    assert "after" not in (tmp_path / "train.log").read_text()
    assert logging.getLogger().handlers == before


def test_a_log_on_a_full_disk_prints_no_traceback(tmp_path, capsys):
    (tmp_path / "train.log").symlink_to("/dev/full")
    with run_folder.deferred_log() as log_file:
        log_file.open_in(tmp_path)
        logging.getLogger("qcs").warning("a line")
    assert "Logging error" not in capsys.readouterr().err


def test_a_job_of_a_multirun_goes_on_with_the_others(tmp_path):
    assert run_folder.go_on(tmp_path / "seed=0") == f"hydra.run.dir={tmp_path}/seed=0 ckpt=last"
    (tmp_path / "multirun.yaml").touch()
    said = run_folder.go_on(tmp_path / "seed=0")
    assert said.startswith(f"hydra.sweep.dir={tmp_path} ckpt=auto (without -m, one job: hydra.run.")
    (tmp_path / "multirun.yaml").write_text("_target_: hydra_plugins.qcs_optuna.OptunaSweeper")
    assert "the search tries" in run_folder.go_on(tmp_path / "0,lr=1")
