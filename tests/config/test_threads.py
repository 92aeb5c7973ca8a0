"""What `import qcs` tells the OpenMP library, and the cores of jobs that run side by side."""

import json
import os
import subprocess
import sys

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from qcs.config import jobs, threads
from qcs.config.keys import CONF

NAMES = (*threads.NUMBERS, "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
ASLEEP = dict.fromkeys(threads.SPINS, "0")
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
STARTED = f"""
import subprocess, sys
import qcs
assert "torch" not in sys.modules
subprocess.run([sys.executable, "-c", {SHOW!r}], check=True)
"""


@pytest.mark.parametrize(
    "given",
    [{}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "9"}, {"OMP_WAIT_POLICY": "active"}],
)
def test_the_user_is_asked_first_and_processes_inherit(given):
    bare = {k: v for k, v in os.environ.items() if k not in NAMES}
    shown = subprocess.check_output([sys.executable, "-c", STARTED], env=bare | given)
    found = {k: v for k, v in json.loads(shown).items() if k in NAMES}
    found.pop("OMP_NUM_THREADS", None)  # in a cgroup with a limit
    assert found == given or (not given and found in (threads.SPINS, ASLEEP))


@pytest.mark.parametrize(
    "counts, wanted",
    [("111", threads.SPINS), ("333", ASLEEP), ("313", threads.SPINS), ("", threads.SPINS)],
)
def test_threads_sleep_at_once_beside_others_at_work(counts, wanted, machine, monkeypatch):
    counts = iter(counts)

    class Load:
        def read_text(self):
            return f"0.20 0.18 0.12 {next(counts, '')}/80 11206"

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "LOAD", Load())
    monkeypatch.setattr(threads, "cores", lambda: 7)  # of eight processors
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    threads.prepare()
    assert {name: os.environ.get(name) for name in threads.SPINS} == wanted


def test_threads_are_those_of_torch_of_the_user_or_the_cores(monkeypatch):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    assert threads.threads() == 3
    torch.set_num_threads(before)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "cores", lambda: 5)
    for given, wanted in (("4", 4), ("2,1", 2), ("", 5), ("0", 5), ("many", 5)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads.threads() == wanted


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight processors of four cores, and cgroups in a folder."""
    for number in range(8):
        folder = tmp_path / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(threads, "_allowed", lambda: set(range(8)))
    return tmp_path


def test_two_hyperthreads_are_one_core(machine, monkeypatch):
    assert (threads.cores(), threads.processors()) == (4, 8)
    monkeypatch.setattr(threads, "_allowed", lambda: {1, 5, 2})
    assert threads.cores() == 2


@pytest.mark.parametrize(
    "own, files, wanted",
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 4),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "300000 100000"}, 1),
        ("4:memory:/\n1:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "300000",
                                            "cpu/a/cpu.cfs_period_us": "100000"}, 3),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)  # fmt: skip
def test_the_limits_of_cgroups_count(own, files, wanted, machine):
    (machine / "own").write_text(own)
    for name, text in files.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(text + "\n")
    assert threads.cores() == wanted
    assert threads.processors() == (8 if wanted == 4 else wanted)


def test_jobs_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(threads, "GIVEN", {})
    for asked, wanted in (((1, 3), 8), ((2, 0), 4), ((2, 3), 1), ((3, 2), 1), ((9, 0), 1)):
        assert threads.of_jobs(*asked) == dict.fromkeys(threads.NUMBERS, str(wanted))
    monkeypatch.setattr(threads, "GIVEN", {"OMP_NUM_THREADS": "6"})  # joblib would set the other
    assert threads.of_jobs(2) == dict.fromkeys(threads.NUMBERS, "6")


@pytest.mark.parametrize(
    "overrides, wanted",
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3"], "10"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=9", "seed=1,2", "model=qcs,dcs"], "4"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=9", "hparams_search=optuna",
          "hydra.sweeper.n_jobs=3"], "6"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=4", "seed=range(9)",
          "loader.num_workers=0"], "6"),
        (["seed=1,2"], None),
    ],
)  # fmt: skip
def test_joblib_learns_how_many_jobs_there_are(overrides, wanted, monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 24)
    monkeypatch.setattr(threads, "GIVEN", {})
    for name in threads.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", overrides, run_mode=RunMode.MULTIRUN)
        jobs.ShareCores().on_multirun_start(config)
    assert os.environ.get("OMP_NUM_THREADS") == wanted
