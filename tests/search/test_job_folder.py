"""Names of the folders of jobs."""

import pytest

from qcs.search.job_folder import LONGEST, job_folder


@pytest.mark.parametrize("name", ["model=qcs,optimizer.lr=0.001", "+x.y=-1e-05", "seed=3"])
def test_a_folder_is_named_by_its_overrides(name):
    assert job_folder(name, 4) == name


@pytest.mark.parametrize(
    "overrides",
    ["dataset.path=/data/a", "x=../../b", "..", ".", "x='a b'", "x=ü\u202e", "x=$(ls)", "x=a.",
     "x={a:1,b:[2]}", "x=" + "9" * 500, "a\\b", "x=\n"],
)  # fmt: skip
def test_an_odd_name_is_safe_and_still_its_own(overrides):
    name = job_folder(overrides, 4)
    assert name.isascii() and set(name) <= {*"abcdefghijklmnopqrstuvwxyz0123456789.=,+-_"}
    assert name not in (".", "..") and len(name) <= LONGEST + 9
    assert name != job_folder(f"{overrides}/", 4) and name != job_folder(f"{overrides}~", 4)


def test_a_job_without_overrides_has_its_number():
    assert job_folder("", 4) == "4"
