"""What people install instead, on the same faces and photos, each in an environment of its own.

    python scripts/compare_packages.py ferplus.zip --work FOLDER [--only qcs fer human]

Compared are packages that carry their weights. Their names for the classes are mapped to FERPlus';
contempt, which only ours knows, is left out of images and answers. Faces are given as cut by the
owners of FERPlus, a little narrower or wider, whichever is best for the package on some validation
images. Photos are the scenes of scenes.py. Times are of CPUs, so that what else the machine does
matters little. Each environment stays in FOLDER, so a second run installs nothing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scenes import CONDITIONS, found_at, scenes

from qcs.data.manifest import Manifest
from qcs.data.sources import ferplus

HERE = Path(__file__).parent
ROOT = HERE.parent


class Package(NamedTuple):
    """What is installed; npm packages name the ones they need beside them."""

    name: str
    requirements: tuple[str, ...]
    npm: bool = False


PACKAGES = (
    Package("qcs", (f"{ROOT}[faces]",)),
    Package("fer", ("fer", "tensorflow-cpu<2.20", "setuptools<81")),
    Package("facex", ("facex", "tensorflow-cpu<2.20", "setuptools<81")),
    Package("facial-emotion-recognition", ("facial-emotion-recognition", "setuptools<81")),
    Package("faceemotionrecognition", ("faceemotionrecognition", "setuptools<81")),
    Package(
        "what-the-face-classification",
        ("what-the-face-classification", "setuptools<81", "opencv-python<5"),
    ),
    Package(
        "face-api",
        ("@vladmandic/face-api", "@tensorflow/tfjs@4", "@tensorflow/tfjs-backend-wasm@4"),
        npm=True,
    ),
    Package(
        "human",
        ("@vladmandic/human", "@tensorflow/tfjs@4", "@tensorflow/tfjs-backend-wasm@4"),
        npm=True,
    ),
)
# The first letters of all names that the packages use, in FERPlus' order.
PREFIXES = ("neu", "hap", "sur", "sad", "ang", "disg", "fear")
WIDTHS = (0.8, 0.9, 1.0, 1.2)  # of the cut, in FERPlus' own; above 1 the edge is repeated
TRIED = 400  # validation images that the width is chosen on
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # some of the packages carry pickles
    "YOLO_AUTOINSTALL": "false",
    "YOLO_OFFLINE": "true",
}


def class_of(label: str) -> int:
    """FERPlus' number of a package's label; -1 for "no answer"."""
    return next((k for k, p in enumerate(PREFIXES) if label.lower().startswith(p)), -1)


def cuts(manifest: Manifest, width: float) -> np.ndarray:
    """All faces at another width of the cut, (N, side, side, 3) uint8."""
    found = []
    for row in range(len(manifest)):
        face = np.asarray(manifest.image(row).convert("RGB"))
        edge = round(face.shape[0] * (width - 1) / 2)
        if edge > 0:
            face = np.pad(face, [(edge, edge), (edge, edge), (0, 0)], mode="edge")
        elif edge < 0:
            face = face[-edge:edge, -edge:edge]
        found.append(face)
    return np.stack(found)


def install(package: Package, folder: Path) -> tuple[list[str], float]:
    """Make the environment of a package; the command that runs it, and the size in MB."""
    where = folder / package.name
    if package.npm:
        runner, packages = ["node", str(HERE / "compare_packages" / "runner.cjs")], where
        if not (where / "installed").exists():
            where.mkdir(parents=True, exist_ok=True)
            (where / "package.json").write_text('{"private": true}')
            subprocess.run(
                ["npm", "install", "--silent", *package.requirements], cwd=where, check=True
            )
    else:
        python = where / "bin" / "python"
        runner = [str(python), str(HERE / "compare_packages" / "runner.py")]
        packages = next(iter((where / "lib").glob("*/site-packages")), where)
        if not (where / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, *package.requirements], check=True)
            packages = next((where / "lib").glob("*/site-packages"))
    (where / "installed").touch()
    size = sum(f.stat().st_size for f in packages.rglob("*") if f.is_file() and not f.is_symlink())
    return [*runner, package.name], size / 1e6


def run(command: list[str], job: str, where: Path) -> float:
    """Run a package in its folder: seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, job], cwd=where, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def job(command: list[str], where: Path, faces: dict[str, Path], photos: list[str]) -> dict:
    """Run a package on faces and photos."""
    result = where / "result.json"
    settings = {
        "faces": {k: str(v) for k, v in faces.items()},
        "photos": photos,
        "result": str(result),
    }
    (where / "job.json").write_text(json.dumps(settings))
    run(command, str(where / "job.json"), where)
    return json.loads(result.read_text())


def accuracy(labels: list[str], truth: np.ndarray) -> tuple[float, float]:
    """Top-1 and mean class accuracy over the common classes, in percent."""
    right = np.array([class_of(label) for label in labels]) == truth
    recalls = [right[truth == k].mean() for k in np.unique(truth)]
    return 100 * right.mean(), 100 * float(np.mean(recalls))


def make_photos(manifest: Manifest, folder: Path, photos: int) -> list[tuple[str, list]]:
    """Write the scenes of all conditions, as PNG and as raw bytes; their paths and faces."""
    made = []
    for number, condition in enumerate(CONDITIONS):
        for i, (image, pasted) in enumerate(scenes(manifest, condition, photos)):
            path = folder / f"{number}_{i}.png"
            image.save(path)
            Path(f"{path}.rgb").write_bytes(image.tobytes())
            size = {"height": image.height, "width": image.width}
            Path(f"{path}.rgb.json").write_text(json.dumps(size))
            made.append((str(path), pasted))
    return made


def in_photos(found: list, made: list[tuple[str, list]], manifest: Manifest) -> tuple[float, float]:
    """Percent of the pasted faces that were found, and that were found and labelled rightly."""
    faces = seen = right = 0
    for answers, (_, pasted) in zip(found, made, strict=True):
        boxes = np.array([box for box, _ in answers], dtype=float).reshape(-1, 4)
        for one in pasted:
            at = found_at(boxes, one)
            faces += 1
            seen += at is not None
            right += at is not None and class_of(answers[at][1]) == manifest.labels[one.row]
    return 100 * seen / faces, 100 * right / faces


def compare(package: Package, options: argparse.Namespace, folder: Path, data: dict) -> str:
    """A row of the table."""
    command, size = install(package, folder / "environments")
    where = folder / "environments" / package.name
    tried = job(command, where, data["val"], [])
    scores = {
        name: accuracy(labels, data["truth"]["val"])[0] for name, labels in tried["faces"].items()
    }
    width = max(scores, key=scores.__getitem__)
    faces = {width: data[options.split][width]}
    done = job(command, where, faces, [path for path, _ in data["photos"]])
    top1, mean = accuracy(done["faces"][width], data["truth"][options.split])
    seen, right = in_photos(done["photos"], data["photos"], data["manifest"])
    first = data["photos"][0][0] + (".rgb" if package.npm else "")
    seconds = sorted(run(command, first, where) for _ in range(3))[1]
    numbers = (top1, mean, seen, right, done["ms_face"][width], done["ms_photo"], seconds)
    return (
        f"| {package.name} | {width} | "
        + " | ".join(f"{n:.1f}" for n in numbers)
        + f" | {size:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the environments")
    parser.add_argument("--only", nargs="*", default=[p.name for p in PACKAGES])
    parser.add_argument(
        "--split", default="test", choices=["val", "test"], help="of what is reported"
    )
    parser.add_argument("--photos", type=int, default=10, help="of each condition")
    options = parser.parse_args()
    folder: Path = options.work.resolve()
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    everything = ferplus.read(options.data)
    data: dict = {"truth": {}}
    for split in {"val", options.split}:
        manifest = everything.split(split)
        manifest = manifest.select(np.flatnonzero(manifest.labels < len(PREFIXES)))
        if split == options.split:
            data["manifest"] = manifest
        else:
            some = np.random.default_rng(0).permutation(len(manifest))[:TRIED]
            manifest = manifest.select(some)
        data[split], data["truth"][split] = {}, manifest.labels
        for width in WIDTHS:
            data[split][str(width)] = folder / f"{split}_{width}.npy"
            np.save(data[split][str(width)], cuts(manifest, width))
    data["photos"] = make_photos(data["manifest"], folder / "photos", options.photos)
    number = len(data["manifest"])
    print(f"{number} {options.split} images of FERPlus, {len(data['photos'])} photos, one thread")
    columns = [
        "package",
        "width of the cut",
        "top-1",
        "mean class accuracy",
        "faces found in photos",
        "found and right",
        "ms a face",
        "ms a photo",
        "s to the first answer",
        "MB installed",
    ]
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    for package in PACKAGES:
        if package.name in options.only:
            try:
                print(compare(package, options, folder, data), flush=True)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{package.name} cannot run: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
