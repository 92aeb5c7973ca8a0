"""Record what a run was made with: its resolved config, versions and git revision."""

import json
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qcs.config.version import __version__

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "numpy")
ROOT = Path(__file__).resolve().parents[3]  # of the source tree, if there is one


def git_revision(root: Path = ROOT) -> str | None:
    """Return the commit of this package's source tree, with "-dirty" if files were changed.

    It is None where there is no source tree, or its root is not that of a repository. A virtual
    environment inside another project lies in a repository whose commit is not ours.
    """
    try:
        project = (root / "pyproject.toml").read_text(encoding="utf-8")
        if not re.search(r'^name = "qcs', project, re.MULTILINE):
            return None
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        return _git(root, "describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return done.stdout.strip()


def write(folder: Path, config: dict[str, Any]) -> None:
    """Write config.yaml (resolved) and versions.json into the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    versions = {"qcs": __version__, "git": git_revision(), "python": platform.python_version()}
    versions |= {name: version(name) for name in PACKAGES}
    versions["machine"] = f"{platform.system()} {platform.machine()}"
    text = json.dumps(versions, indent=2, allow_nan=False) + "\n"
    (folder / "versions.json").write_text(text, encoding="utf-8")
