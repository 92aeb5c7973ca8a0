"""Loader processes: who may end them, and what is said when they are gone."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from qcs.config.errors import UserError
from qcs.data import workers

pytestmark = pytest.mark.skipif(not workers.LINUX, reason="signals as Linux has them")


class Numbers(Dataset):
    def __init__(self, how: str = "") -> None:
        self.how = how

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int):
        if row == 20 and self.how == "mistake":
            raise UserError("cannot read image 20")
        if row == 20 and self.how == "bug":
            raise RuntimeError("a bug")
        if row == 20 and self.how == "full":
            raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left")
        if row == 20 and self.how == "files":
            raise RuntimeError("received 0 items of ancdata")
        if row == 20 and self.how == "slow":
            time.sleep(30)
        if row == 20 and self.how == "stopped":
            time.sleep(0.2)  # the batch before is on its way
            os.kill(os.getpid(), signal.SIGSTOP)
        if row == 20 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return (lambda: row) if row >= 20 and self.how == "unsendable" else torch.tensor(row)


def loader(how: str = "", **options) -> workers.Loader:
    options = workers.loader_options(2, 0, seed=0) | {"persistent_workers": False} | options
    collate = list if how == "unsendable" else None
    return workers.Loader(Numbers(how), 4, collate_fn=collate, **options)


@pytest.fixture(autouse=True)
def end_processes():
    """Those of a loader that an error holds would be waited for when it is collected."""
    yield
    workers._end_processes()


def wait_for(condition) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_process_computes_with_one_thread(monkeypatch):
    monkeypatch.setattr(Numbers, "__getitem__", lambda *_: torch.tensor(torch.get_num_threads()))
    assert {int(number) for batch in loader() for number in batch} == {1}


def test_a_process_heeds_the_run_alone():
    batches = iter(loader(persistent_workers=True))
    next(batches)
    next(batches)  # of the other process: both have started
    processes = batches._workers
    for process in processes:
        pid = str(process.pid)
        for name in ("TERM", "INT"):  # as SLURM or a terminal would
            subprocess.run(["/bin/kill", f"-{name}", pid], check=True)
    time.sleep(0.3)
    assert all(process.is_alive() for process in processes)
    assert len(list(batches)) == 14
    for process in processes:
        process.terminate()
    assert wait_for(lambda: not any(process.is_alive() for process in processes))
    assert [process.exitcode for process in processes] == [0, 0]


def test_the_run_still_hears_sigterm():
    list(loader())
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.parametrize(
    "how,sentence",
    [
        ("mistake", "^cannot read image 20$"),
        ("slow", "no batch came from the loader processes within loader.timeout"),
        ("killed", "was killed or ended: most often memory ran out, or shared memory"),
        ("full", "shared memory is too small for the batches of the loader processes"),
        ("files", "raise the limit, as by `ulimit -n 4096`, or write loader.num_workers=0"),
        ("unsendable", "was killed or ended"),  # torch alone would wait for ever
    ],
)
def test_what_ends_a_process_is_one_sentence(how, sentence):
    with pytest.raises(UserError, match=sentence), workers.translated_errors("loader."):
        list(loader(how, timeout=2 if how == "slow" else 60))


@pytest.mark.parametrize("hangs", [1, 5])
def test_a_process_that_hangs_while_it_is_forked_is_forked_again(hangs, monkeypatch):
    forks = iter(range(hangs))
    monkeypatch.setattr(workers, "BEGIN", (0.3, 0.3, 0.3))
    fork = os.fork

    def hang() -> int:
        locked = next(forks, None) is not None
        if (pid := fork()) == 0 and locked:
            time.sleep(60)
        return pid

    monkeypatch.setattr(os, "fork", hang)
    if hangs < len(workers.BEGIN):
        assert [len(batch) for batch in loader()] == [len(batch) for batch in loader()]
    else:
        with pytest.raises(UserError, match="hung 3 times .* loader.num_workers=0"):
            next(iter(loader()))


@pytest.mark.parametrize("late", [True, False])  # to ask for the batches that it had loaded
def test_a_process_that_was_stopped_neither_holds_the_run_nor_its_end(late, monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.3)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    stopped = loader("stopped", timeout=1)
    batches = iter(stopped)
    next(batches), next(batches)
    processes = [p for p in multiprocessing.active_children() if "Loader" in type(p).__name__]
    if late:
        states = [Path(f"/proc/{process.pid}/stat") for process in processes]
        assert wait_for(lambda: any(") T " in state.read_text() for state in states))
    with (
        pytest.raises(UserError, match="no batch came .* within loader.timeout"),
        workers.translated_errors("loader."),
    ):
        list(batches)
    assert wait_for(lambda: not any(process.is_alive() for process in processes))


def test_a_bug_stays_a_bug():
    with pytest.raises(RuntimeError, match="a bug") as found, workers.translated_errors():
        list(loader("bug"))
    assert not isinstance(found.value, UserError)


def test_too_little_shared_memory_is_said_before_anything_waits_for_it(monkeypatch):
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 100)
    workers.require_shared_memory(25, workers=2, batches=10)
    workers.require_shared_memory(100, workers=2, batches=1)
    with pytest.raises(UserError, match=r"2 loader processes need .* write loader.num_workers=0"):
        workers.require_shared_memory(26, workers=2, batches=10)
