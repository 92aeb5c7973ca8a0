"""Draw the picture of the README: photos with a box on each face, and the probabilities beside it.

    python scripts/draw_readme_picture.py docs/assets/labelled_photos.jpg [ckpt]

The photos are in the public domain and come inside packages: Eileen Collins by NASA
(scikit-image; docs/assets/astronaut.jpg is the same) and Grace Hopper by the US Navy (matplotlib).
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from skimage import data

import qcs

HOPPER = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"


def main(out: str, ckpt: str | None = None) -> None:
    """Write the picture."""
    predictor = qcs.load(ckpt)
    photos = [Image.fromarray(data.astronaut()), Image.open(HOPPER).convert("RGB")]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=[1, 0.8, 0.8, 0.8])
    for (left, right), photo in zip(axes.reshape(2, 2), photos, strict=True):
        face = predictor.predict(photo)[0][0]
        assert face.box is not None  # it was found in a photo
        x0, y0, x1, y1 = face.box
        left.imshow(np.asarray(photo))
        left.add_patch(
            matplotlib.patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="#ffcc00", lw=3)
        )
        left.text(
            x0, y0 - 12, f"{face.label} {100 * face.probability:.0f} %", fontsize=11,
            color="black", backgroundcolor="#ffcc00",
        )  # fmt: skip
        left.axis("off")
        names = list(face.probabilities)[::-1]
        values = [100 * face.probabilities[name] for name in names]
        colours = ["#ffcc00" if name == face.label else "#8899aa" for name in names]
        right.barh(names, values, color=colours)
        right.set(xlim=(0, 100), xlabel="probability, percent")
        right.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
