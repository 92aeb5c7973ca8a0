"""How right a network is on FERPlus by how many of the ten taggers agree on an image.

python scripts/agreement.py ferplus.zip runs/.../test/predictions.csv
"""

import csv
import io
import sys
import zipfile
from pathlib import PurePosixPath

import numpy as np


def main(data: str, predictions: str) -> None:
    """Print images, accuracy and share of the errors by the votes of the most frequent class."""
    with zipfile.ZipFile(data) as archive:
        (table,) = (n for n in archive.namelist() if n.endswith("fer2013new.csv"))
        with archive.open(table) as file:
            votes = {r[1]: r[2:10] for r in csv.reader(io.TextIOWrapper(file))}
    with open(predictions) as file:
        rows = list(csv.DictReader(file))
    most = np.array([max(map(int, votes[PurePosixPath(r["path"]).name])) for r in rows])
    right = np.array([r["correct"] == "1" for r in rows])
    for name, chosen in {
        "all ten": most == 10,
        "seven to nine": (most >= 7) & (most < 10),
        "fewer": most < 7,
    }.items():
        errors = 100 * (~right & chosen).sum() / (~right).sum()
        share, acc = 100 * chosen.mean(), 100 * right[chosen].mean()
        print(f"{name}: {share:.1f} % of images, top-1 {acc:.1f}, {errors:.1f} % of the errors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"error: give FERPlus' zip and the predictions.csv of its test: {error!r}")
