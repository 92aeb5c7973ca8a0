"""How many threads compute, and how they wait for each other; nothing heavy is imported."""

import math
import os
import sys
import time
from pathlib import Path

LOAD = Path("/proc/loadavg")  # "0.20 0.18 0.12 1/80 11206": the fourth says how many threads run
CGROUPS, CPUS = Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")
OWN_CGROUPS = Path("/proc/self/cgroup")
# torch asks MKL for its number where it has MKL, and OpenMP elsewhere.
NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Chosen by scripts/bench_threads.py, see docs/explanation/speed.md.
SPINS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
GIVEN = {name: os.environ[name] for name in NUMBERS if name in os.environ}  # by the user


def prepare() -> None:
    """Set up the OpenMP library that torch is going to load, where the user has not.

    Threads wait for each other by spinning before they sleep. By default that takes milliseconds,
    in which a thread that waits keeps the core from the one that it waits for, when another process
    has one as well. GNU's library counts turns of a loop; LLVM's and Intel's take milliseconds.
    Beside others that are at work already, threads sleep at once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        crowded = _crowded()
        for name, spins in SPINS.items():
            os.environ.setdefault(name, "0" if crowded else spins)
    if not GIVEN and _limit() < len(_allowed()):  # which torch does not know
        os.environ["OMP_NUM_THREADS"] = str(cores())


def of_jobs(jobs: int, workers: int = 0) -> dict[str, str]:
    """The environment that gives each of several jobs side by side its share of the cores.

    Args:
        jobs: how many run at a time; one alone has all cores.
        workers: loader processes of each, which take theirs of the share.
    """
    if GIVEN:
        return {name: next(iter(GIVEN.values())) for name in NUMBERS} | GIVEN
    share = cores() if jobs < 2 else cores() // jobs - workers
    return dict.fromkeys(NUMBERS, str(max(1, share)))


def threads() -> int:
    """Number of threads of a computation: torch's, where it is imported, else `OMP_NUM_THREADS`.

    Where neither says it, `cores()`, which is torch's own default outside of a cgroup's limit.
    """
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a number for each nesting
    return int(given) if given.isdecimal() and int(given) else cores()


def cores() -> int:
    """Number of processor cores that this process may use; two hyperthreads are one core."""
    siblings = (CPUS / f"cpu{number}/topology/thread_siblings_list" for number in _allowed())
    physical = {path.read_text() if path.exists() else path for path in siblings}
    return max(1, math.ceil(min(len(physical), _limit())))


def processors() -> int:
    """Number of processors that this process may use, each hyperthread by itself."""
    return max(1, math.ceil(min(len(_allowed()), _limit())))


def _allowed() -> set[int]:
    """The numbers by which the system knows the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _crowded() -> bool:
    """Whether other processes compute on the processors that the threads of this one will take.

    Of three counts the least is taken, as a task may be short. False where the system is not Linux.
    """
    running = []
    for _ in range(3):
        try:
            running.append(int(LOAD.read_text().split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):
            return False
        time.sleep(0.003)
    return min(running) - 1 + cores() > (os.cpu_count() or 1)


def _limit() -> float:
    """Processors' time a second that the cgroups of this process allow, infinite without a limit.

    A cgroup has the limits of all folders above it. Version 2 keeps quota and period, in
    microseconds, in one file, version 1 in two; in a container the folder is often the root.
    """
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return math.inf
    found = [math.inf]
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        top = CGROUPS / ("cpu" if controllers else "")
        folder = top / name.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(top) and all((place / file).exists() for file in files):
                words = " ".join((place / file).read_text() for file in files).split()
                if words[0] not in ("max", "-1"):
                    found.append(int(words[0]) / int(words[1]))
    return min(found)
