"""Which revision is recorded as ours."""

import subprocess
from pathlib import Path

import pytest

from qcs.config.provenance import git_revision


def repository(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("x")
    me = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def project(folder: Path, name: str = "qcs-fer") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return folder


def test_a_source_tree_tells_its_revision_and_whether_it_was_changed(tmp_path):
    repository(project(tmp_path))
    revision = git_revision(tmp_path)
    assert len(revision) == 40
    (tmp_path / "file").write_text("changed")
    assert git_revision(tmp_path) == f"{revision}-dirty"


@pytest.mark.parametrize("case", ["environment", "vendored", "other", "none"])
def test_the_revision_of_another_repository_is_not_ours(case, tmp_path):
    root = tmp_path / {"environment": ".venv/lib/python3.11", "vendored": "vendor/qcs"}.get(
        case, ""
    )
    if case != "environment":
        project(root, "their-thesis" if case == "other" else "qcs-fer")
    root.mkdir(parents=True, exist_ok=True)
    if case != "none":
        repository(tmp_path)
    assert git_revision(root) is None
