"""The trained networks that come with the package, by name.

Each of them lies here twice, as NAME.safetensors and as NAME.onnx. `zoo.json` says what they are
and has the checksum of each file. `scripts/release_network.py` writes all three.

This module imports no library, so that `qcs zoo` answers at once.
"""

import hashlib
import json
import os
from pathlib import Path, PurePath
from typing import Any

from qcs.config.errors import UserError

FOLDER = Path(__file__).parent
INDEX = "zoo.json"
KINDS = ("safetensors", "onnx")  # of files; a name alone means the first
SPLITS = {"test": "test", "val": "validation"}  # that figures are of -> in words
ANEW = "install qcs-fer anew"


def index(folder: Path = FOLDER) -> dict[str, Any]:
    """What is known of the networks.

    Returns:
        "default", a name, and "networks": what `scripts/release_network.py` tells, by name.

    Raises:
        UserError: the installation is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / INDEX} cannot be read ({error}): {ANEW}") from error
    return found


def default() -> str:
    """The name of the network that answers where none is chosen."""
    return str(index()["default"])


def default_file() -> Path:
    """Its file in this package, whatever lies in the working directory."""
    return FOLDER / f"{default()}.{KINDS[0]}"


def find(wanted: str | os.PathLike) -> Path | None:
    """Find the file that NAME or NAME.onnx stands for; None where it is no name.

    A file of that name in the working directory comes first.
    """
    text = os.fspath(wanted)
    if not isinstance(text, str) or os.path.isfile(text):
        return None
    for name in index()["networks"]:
        for kind in KINDS:
            if text == f"{name}.{kind}" or (text == name and kind == KINDS[0]):
                return FOLDER / f"{name}.{kind}"
    return None


def absent(wanted: str | os.PathLike) -> str | None:
    """What to say where nothing is there: of an unknown name, or a file of this package.

    None where it is clearly the path of another file.
    """
    path = PurePath(os.fsdecode(wanted))
    if path.parent == FOLDER:
        return f"{path} is missing in this installation: {ANEW}"
    if path.suffix or len(path.parts) != 1 or path.name.startswith("~"):
        return None
    names = ", ".join(index()["networks"])
    return (
        f"no checkpoint at ckpt={path}, and no network of that name comes with qcs, which has "
        f"{names} (`qcs zoo`): name one of these, or the path of a file, as "
        "ckpt=runs/.../checkpoints/best.ckpt"
    )


def verify(path: Path) -> None:
    """Refuse a file of the package that is not the one that was released; others pass.

    Raises:
        UserError: its SHA-256 is not that of the index, or the index does not list it.
    """
    path = path.resolve()
    if path.parent != FOLDER.resolve():
        return
    about = index()["networks"].get(path.stem, {}).get("files", {}).get(path.suffix[1:])
    if about is None:
        raise UserError(f"{path} is not listed in {INDEX}: {ANEW}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != about["sha256"]:
        raise UserError(
            f"{path} was damaged or changed since its release, its SHA-256 is not that of "
            f"{INDEX}: {ANEW}"
        )
