"""scripts/study.py through the command line, on three colours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qcs.config import CONF
from test_cli import SMALL

SCRIPT = CONF.parent / "scripts/study.py"
CONTENT = {
    "title": "three colours",
    "common": [*SMALL, "dataset=csv", "select_on=last", "callbacks.dashboard=null"],
    "seeds": [0, 1],
    "images": 64,
    "epochs": 2,
    "batch": 8,
    "variants": {"base": ["ablation=base"], "qcs + SAM": ["ablation=none", "sam.rho=0.05"]},
    "time": "base",
}


def study(folder: Path, *options: str, **changes) -> subprocess.CompletedProcess:
    (folder / "study.yaml").write_text(yaml.safe_dump(CONTENT | changes))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "study.yaml", *options]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory, faces_table) -> tuple[Path, list[str]]:
    """A study that was stopped before its second seed and went on."""
    folder, data = tmp_path_factory.mktemp("study"), f"dataset.path={faces_table}"
    first = study(folder, data, seeds=[0])
    assert first.returncode == 0, first.stderr
    # What is finished needs its folder no more.
    for run in (folder / "runs/study").glob("*-0"):
        run.rename(folder / run.name)
    second = study(folder, data, "--jobs", "2")
    assert second.returncode == 0, second.stderr
    return folder, [first.stderr, second.stderr]


def test_a_study_goes_on_and_is_summed_up(done):
    folder, logs = done
    assert "3 of 3 runs to do" in logs[0] and "3 of 6 runs to do" in logs[1]
    kept = json.loads((folder / "runs/study/report/study.json").read_text())
    speed = kept["seconds_per_image"]
    runs = kept["runs"]
    assert len(runs) == 6 and speed["qcs + SAM"] > speed["base"] > 0
    seen = {(r["variant"], r["images"]) for r in runs.values()}
    assert {("base", 64), ("qcs + SAM", 64)} < seen
    fewer = next(n for v, n in seen if v == "qcs + SAM" and n != 64)
    expected = 64 * speed["base"] / speed["qcs + SAM"]  # in groups of four, two epochs
    assert fewer == max(8, 8 * round(expected / 8))
    for run in runs.values():
        hits = sum(bin(byte).count("1") for byte in bytes.fromhex(run["correct"]))
        assert hits / run["test_images"] == pytest.approx(run["acc"], abs=1e-5)


def test_the_report_tells_all_of_it(done):
    report = done[0] / "runs/study/report"
    page = (report / "report.md").read_text()
    assert "python" in page and "## Matched for images" in page and "## Matched for time" in page
    rows = [line for line in page.splitlines() if line.startswith("| qcs + SAM |")]
    assert len(rows) == 5 and "`sam.rho=0.05`" in rows[0]  # overrides, then two for each table
    assert "±" in rows[1] and rows[2].count(",") == 1  # mean and spread; each seed's difference
    result = json.loads((report / "images/compare.json").read_text())
    assert [len(group["acc"]["values"]) for group in result["groups"]] == [2, 2]
    assert result["groups"][1]["against"]["p"] <= 1
    assert (report / "time/seeds.png").stat().st_size > 5000


def test_what_is_wrong_is_one_sentence(done, tmp_path, faces_table):
    data = f"dataset.path={faces_table}"
    wrong = study(tmp_path, data, time="other")
    assert wrong.returncode == 1 and "time=other is none of its variants" in wrong.stderr
    wrong = study(tmp_path, data, epoch=3)
    assert "epoch: a study has" in wrong.stderr
    wrong = study(done[0], data, images=32)
    assert "is of other settings" in wrong.stderr and "Traceback" not in wrong.stderr


def test_without_time_nothing_is_started(tmp_path, faces_table):
    none = study(tmp_path, f"dataset.path={faces_table}", "--minutes", "0")
    assert none.returncode == 0 and "6 runs to do" in none.stderr
    assert not list((tmp_path / "runs/study").glob("*/output.log"))


def test_a_run_that_fails_is_named(tmp_path, faces_table):
    failed = study(tmp_path, f"dataset.path={faces_table}", time=None, seeds=[0], images=8000)
    assert failed.returncode == 1 and "error: failed: base-8000-0" in failed.stderr
    assert "must be from 1 to" in (tmp_path / "runs/study/base-8000-0/output.log").read_text()
