"""A folder of class folders: `train/<class>/*`, `test/<class>/*` (`val/` if any), or one level.

The layout of torchvision's ImageFolder and of most re-packagings.
"""

from pathlib import Path

import numpy as np

from qcs.config.bounds import Fraction, Seed
from qcs.config.errors import UserError
from qcs.data.manifest import Manifest, require

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
HINT = "a folder with train/<class>/* and test/<class>/*, or with <class>/* alone"


def read(path: str | None = None, test_fraction: Fraction = 0.2, seed: Seed = 0) -> Manifest:
    """Read a folder of class folders; the classes are the folders' names, sorted.

    Args:
        path: the folder.
        test_fraction: seeded share of each class that becomes the test set where the folder has
            no split of its own.
        seed: of that share.

    Raises:
        UserError: no path given, nothing there, or no images in it.
        UserError: a class of val or test that train lacks, or a fraction outside (0, 1).
    """
    root = require(path, "the image folder", HINT)
    splits = {d.name: FOLDERS[d.name] for d in folders(root) if d.name in FOLDERS}
    if "train" in splits.values():
        tables = [(root / name, split) for name, split in splits.items()]
        names = [d.name for d in folders(root / "train")]
    else:
        tables = [(root, "train")]
        names = [d.name for d in folders(root)]
    rows = []
    for folder, split in tables:
        for directory in folders(folder):
            if directory.name not in names:
                raise UserError(f"{directory} is a class that {root / 'train'} does not have")
            label = names.index(directory.name)
            rows += [(f.relative_to(root).as_posix(), label, split) for f in images(directory)]
    if not rows:
        raise UserError(f"no images in {root}; expected {HINT}")
    manifest = Manifest.build(root, rows, names)
    return manifest if len(tables) > 1 else _cut_test(manifest, test_fraction, seed)


def _cut_test(manifest: Manifest, fraction: float, seed: int) -> Manifest:
    held = manifest.hold_out(fraction, seed, key="dataset.test_fraction")
    splits = np.where(held.splits == "val", "test", "train")
    return Manifest(held.root, held.paths, held.labels, splits, held.class_names)


def folders(path: Path) -> list[Path]:
    """Visible folders in a folder, sorted."""
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))


def images(path: Path) -> list[Path]:
    """Image files anywhere below a folder, sorted."""
    return sorted(f for f in path.rglob("*") if f.suffix.lower() in EXTENSIONS and f.is_file())
