"""FERPlus faces in scenes: does the way from a photo to a label lose what the network knows?

    python scripts/scenes.py ferplus.zip [--split val] [--faces 720] [--ckpt model.ckpt]

Faces at known places, upright, turned, small, blurred and dark, are pasted into
scikit-image's photos, six in each. For each condition: how many faces are found, how many of those
get the right label, and how many of the same faces get it when they are given to the network
without a photo around them. The difference of the two is what is lost, with its interval of 95 %
over faces. FERPlus' faces are 48 pixels wide, so large ones are soft even where nothing is blurred.
"""

import argparse
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

import qcs
from qcs.data.manifest import Manifest
from qcs.data.sources import ferplus
from qcs.evaluation.intervals import LEVEL
from qcs.inference.predictor import Predictor

Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
BACKGROUNDS = ("coffee", "rocket", "brick", "grass", "gravel", "page", "chelsea")


class Condition(NamedTuple):
    """How faces are put into a photo."""

    name: str
    faces: int = 6  # of a photo
    side: int = 160  # pixels of the face image in a photo of 960 x 720
    angle: int = 0  # degrees, to either side
    light: float = 1.0  # factor of the brightness of the whole photo
    blur: float = 0.0  # pixels of the photo, the deviation of a Gaussian


CONDITIONS = (
    Condition("upright"),
    Condition("turned by 15 degrees", angle=15),
    Condition("turned by 30 degrees", angle=30),
    Condition("turned by 45 degrees", angle=45),
    Condition("small, 64 pixels", side=64),
    Condition("tiny, 40 pixels", side=40),
    Condition("blurred by 3 pixels", blur=3),
    Condition("blurred by 6 pixels", blur=6),
    Condition("dark, a quarter of the light", light=0.25),
)


class Pasted(NamedTuple):
    """A face in a photo."""

    row: int  # in the manifest
    box: tuple[int, int, int, int]  # left, top, right, bottom


def scenes(
    manifest: Manifest, condition: Condition, photos: int, seed: int = 0
) -> Iterator[tuple[Image.Image, list[Pasted]]]:
    """Photos of 960 x 720 pixels with faces of the manifest, the same ones for each condition.

    The faces are drawn class by class, so that the rare expressions are among them.
    """
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(manifest.labels == k)) for k in range(8)]
    order = [rows[i] for i in range(len(manifest)) for rows in by_class if i < len(rows)]
    for number in range(photos):
        image = Image.fromarray(getattr(skimage.data, BACKGROUNDS[number % len(BACKGROUNDS)])())
        image = image.convert("RGB").resize((960, 720), Image.Resampling.LANCZOS)
        pasted = []
        for place in range(condition.faces):
            row = int(order[(number * condition.faces + place) % len(order)])
            left = rng.integers(10, 300 - condition.side) + 315 * (place % 3)
            top = rng.integers(10, 340 - condition.side) + 350 * (place // 3)
            _paste(image, manifest.image(row), condition, int(left), int(top), rng)
            corner = (int(left) + condition.side, int(top) + condition.side)
            pasted.append(Pasted(row, (int(left), int(top), *corner)))
        image = image.filter(ImageFilter.GaussianBlur(condition.blur))
        yield ImageEnhance.Brightness(image).enhance(condition.light), pasted


def _paste(
    image: Image.Image,
    face: Image.Image,
    condition: Condition,
    left: int,
    top: int,
    rng: np.random.Generator,
) -> None:
    """Paste a face with soft edges, so that no frame gives it away."""
    side = condition.side
    face = face.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    mask = Image.new("L", (side, side))
    edge = side // 16
    ImageDraw.Draw(mask).rounded_rectangle((edge, edge, side - edge, side - edge), side // 4, 255)
    mask = mask.filter(ImageFilter.GaussianBlur(edge / 2))
    angle = condition.angle * rng.choice((-1, 1))
    turned = (face.rotate(angle, Image.Resampling.BICUBIC), mask.rotate(angle))
    image.paste(turned[0], (left, top), turned[1])


def found_at(boxes: np.ndarray, pasted: Pasted) -> int | None:
    """The box (F, 4) whose centre lies in the middle of a pasted face, or None."""
    left, top, right, bottom = pasted.box
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = np.abs(centres - ((left + right) / 2, (top + bottom) / 2)).max(1) / (right - left)
    return int(away.argmin()) if len(away) and away.min() < 0.3 else None


def check(predictor: Predictor, manifest: Manifest, condition: Condition, faces: int) -> np.ndarray:
    """Of each face: whether it was found, labelled rightly, and labelled rightly as a mere face.

    Returns:
        (faces, 3) bool.
    """
    rows = []
    for image, pasted in scenes(manifest, condition, faces // condition.faces):
        answers = predictor.predict(image)[0]
        boxes = np.array([answer.box for answer in answers], dtype=float).reshape(-1, 4)
        alone = predictor.predict([manifest.image(p.row) for p in pasted], detect=False)
        for one, (answer,) in zip(pasted, alone, strict=True):
            name = manifest.class_names[manifest.labels[one.row]]
            at = found_at(boxes, one)
            right = at is not None and answers[at].label == name
            rows.append((at is not None, right, answer.label == name))
    return np.array(rows)


def row(name: str, faces: np.ndarray) -> str:
    """A condition's row of the table, in percent and points."""
    found, right, alone = faces.T
    shares = (found, right[found], right, alone)
    lost = 100 * (alone.astype(float) - right)
    half = Z * lost.std(ddof=1) / np.sqrt(len(lost))
    cells = " | ".join(f"{100 * share.mean():.1f}" for share in shares)
    return f"| {name} | {len(faces)} | {cells} | {lost.mean():.1f} ± {half:.1f} |"


def main() -> None:
    """Print a row for each condition."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--split", default="val", choices=["val", "test"])
    parser.add_argument("--faces", type=int, default=720, help="of each condition")
    parser.add_argument(
        "--ckpt", help="the network that comes with the package where none is given"
    )
    options = parser.parse_args()
    predictor = qcs.load(options.ckpt)
    manifest = ferplus.read(options.data).split(options.split)
    print(f"faces of the {options.split} images, class by class")
    columns = (
        "condition",
        "faces",
        "found",
        "right of these",
        "right of all",
        "right as mere faces",
        "points lost",
    )
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    for condition in CONDITIONS:
        faces = check(predictor, manifest, condition, options.faces)
        print(row(condition.name, faces), flush=True)


if __name__ == "__main__":
    main()
