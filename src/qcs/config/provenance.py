"""What a run was made with: resolved config, versions, git revision."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import qcs

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "numpy")


def git_revision() -> str | None:
    """Commit of the source tree with "-dirty" where it was changed; None outside of git."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parents[1]),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(folder: Path, config: dict[str, Any]) -> None:
    """Write config.yaml (resolved) and versions.json into the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    versions = {"qcs": qcs.__version__, "git": git_revision(), "python": platform.python_version()}
    versions |= {name: version(name) for name in PACKAGES}
    versions["machine"] = f"{platform.system()} {platform.machine()}"
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
