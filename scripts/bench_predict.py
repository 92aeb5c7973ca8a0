"""Photos a second, from files to labels, with and without worker processes; and where time goes.

    python scripts/bench_predict.py --ferplus ferplus.zip [--photos 2000] [--workers 2] [--rounds 3]
        [--old CHECKOUT] [--folder FOLDER] [--ray]

The photos have sizes as users have them, 512x512 to 4000x3000 pixels, JPEG and PNG: up to six faces
of FERPlus (of scikit-image's astronaut without it) in scenes of photographs that come with
scikit-image and matplotlib. Each measurement is a process of its own, and they take turns: an older
checkout of this repository (`git worktree add CHECKOUT COMMIT`), this one without workers, and this
one with some. CPU seconds include the starts of workers, and neither imports nor loading. With
`--ray` the command writes Parquet with and without engine=ray, in turns, from its start to its end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
from compare_detectors import TEXTURES, cuts, faces_of
from PIL import Image
from rich.console import Console
from rich.table import Table

import qcs
from qcs.config.threads import processors
from qcs.data.images import read_image
from qcs.inference.crop import cut
from qcs.inference.detector import Detector

# Sizes in pixels, and how many of a hundred photos have them.
SIZES = {
    (512, 512): 30,
    (640, 480): 25,
    (1024, 768): 20,
    (1920, 1080): 15,
    (4000, 3000): 10,
}
MOST_FACES = 6
TRIES = 3
STAGES = ("decode", "resize, boxes", "detector", "cut", "network", "together")
RUN = """
import json, resource, sys, time
def cpu():
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, who))
import qcs
from pathlib import Path
predictor = qcs.load()
predictor.predict(sys.argv[2])
paths, options = sorted(Path(sys.argv[1]).iterdir()), json.loads(sys.argv[3])
wall, start = time.perf_counter(), cpu()
found = predictor.predict(paths, **options)
wall, start = time.perf_counter() - wall, cpu() - start
answers = [(face.label, [round(x, 1) for x in face.box]) for faces in found for face in faces]
peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (0, -1)]
print(json.dumps({"wall": wall, "cpu": start, "answers": answers, "peaks": peaks}))
"""


def make_photos(folder: Path, number: int, faces: list[Image.Image]) -> None:
    """Write photos of mixed sizes; those that are there already are left."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    hopper = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    scenes = [Image.fromarray(getattr(skimage.data, name)()) for name in TEXTURES]
    whole = [Image.fromarray(skimage.data.astronaut()), Image.open(hopper)]
    sizes, weights = list(SIZES), np.array(list(SIZES.values())) / 100
    for i in range(number):
        size = sizes[rng.choice(len(sizes), p=weights)]
        photographs = whole if i % 20 == 0 else scenes
        image = photographs[rng.integers(len(photographs))].convert("RGB").resize(size)
        for _ in range(rng.integers(MOST_FACES + 1) if photographs is scenes else 0):
            side = int(rng.uniform(0.08, 0.35) * min(size))
            face = faces[rng.integers(len(faces))].resize((side, side), Image.Resampling.BICUBIC)
            place = (rng.integers(size[0] - side), rng.integers(size[1] - side))
            image.paste(face.rotate(rng.uniform(-20, 20)), (int(place[0]), int(place[1])))
        path = folder / f"{i:05d}.{'png' if i % 10 == 9 else 'jpg'}"
        if not path.exists():
            image.save(path, quality=90)


def stages(folder: Path) -> Table:
    """Where the time of a photo goes, in CPU milliseconds on one thread."""
    predictor, detector = qcs.load(), Detector(threads=1)
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    run = detector.session.run
    inside = [0.0]

    def timed(*arguments: object) -> list:
        start = time.process_time()
        maps = run(*arguments)
        inside[0] = time.process_time() - start
        return maps

    def once(path: Path) -> tuple[Image.Image, int, list[float]]:
        marks = [time.process_time()]
        image = read_image(path)
        marks.append(time.process_time())
        faces = detector(image)
        marks.append(time.process_time())
        crops = [cut(image, face.landmarks, predictor.crop) for face in faces]
        marks.append(time.process_time())
        predictor.classify(crops)
        marks.append(time.process_time())
        decoding, detecting, cutting, network = np.diff(marks)
        return image, len(faces), [decoding, detecting - inside[0], inside[0], cutting, network]

    detector.session = type("Timed", (), {"run": staticmethod(timed)})()
    for path in sorted(folder.glob("*.jpg"))[:100]:
        images, faces, tries = zip(*(once(path) for _ in range(TRIES)), strict=True)
        row = times["x".join(map(str, images[0].size))]
        least = np.min(tries, axis=0)  # what else the machine does makes a try slower only
        for name, seconds in zip(STAGES, [*least, least.sum()], strict=True):
            row[name].append(seconds)
        row["faces"].append(faces[0] / 1000)
    names = list(next(iter(times.values())))
    table = Table("pixels", "photos", *names, title="CPU ms a photo, medians; faces are means")
    for size, row in sorted(times.items(), key=lambda item: int(item[0].partition("x")[0])):
        cells = [
            f"{1000 * (np.mean if name == 'faces' else np.median)(row[name]):.1f}" for name in names
        ]
        table.add_row(size, str(len(row["decode"])), *cells)
    return table


def measure(folder: Path, source: Path, options: dict) -> dict:
    """Predict all photos in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(source)}
    first = next(iter(sorted(folder.iterdir())))
    command = [sys.executable, "-c", RUN, str(folder), str(first), json.dumps(options)]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, number: int, options: argparse.Namespace) -> Table:
    """Rates of this code and an older one, taking turns."""
    here = Path(__file__).parents[1] / "src"
    ways = {
        "workers=0": (here, {}),
        f"workers={options.workers}": (here, {"workers": options.workers}),
    }
    if options.old:
        ways = {"old": (Path(options.old) / "src", {}), **ways}
    results = defaultdict(list)
    for _ in range(options.rounds):
        for name, way in ways.items():
            results[name].append(measure(folder, *way))
    base, cores = next(iter(results)), processors()
    head = [
        "",
        "photos/s",
        "times",
        f"of {cores} CPUs busy",
        "CPU ms a photo",
        "MB, caller, worker",
    ]
    table = Table(*head, "faces", "answers as the first row's", title=f"{number} photos")
    for name, runs in results.items():
        wall, cpu = (np.median([run[key] for run in runs]) for key in ("wall", "cpu"))
        ratio = np.median([a["wall"] / b["wall"] for a, b in zip(results[base], runs, strict=True)])
        answers = runs[0]["answers"]
        same = sum(a == b for a, b in zip(answers, results[base][0]["answers"], strict=False))
        cells = [f"{number / wall:.2f}", f"{ratio:.2f}", f"{cpu / wall / cores:.0%}"]
        peaks = ", ".join(f"{peak:.0f}" for peak in runs[0]["peaks"])
        cells += [f"{1000 * cpu / number:.1f}", peaks, str(len(answers))]
        table.add_row(name, *cells, f"{same / max(len(answers), 1):.1%}")
    return table


def engines(folder: Path, number: int, workers: int, rounds: int) -> Table:
    """Seconds of the command with one engine and the other, in turns.

    Ten photos tell what imports and the start of a cluster take, and the others what a photo takes.
    """
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    few, every = f"{folder}/0000?.*", str(folder)
    for _ in range(rounds):
        for photos in (few, every):
            for engine in ("local", "ray"):
                seconds[engine, photos].append(_command(photos, engine, workers))
    head = ["engine", "10 photos: s", f"{number} photos: s", "time, as a ratio"]
    table = Table(*head, "ms of a further photo", "as a ratio", title="to Parquet")
    for engine in ("local", "ray"):
        start, whole = (np.array(seconds[engine, photos]) for photos in (few, every))
        here, all_here = (np.array(seconds["local", photos]) for photos in (few, every))
        further = np.median((whole - start) / (all_here - here))
        cells = [np.median(start), np.median(whole), np.median(whole / all_here)]
        cells += [1000 * np.median(whole - start) / max(number - 10, 1), further]
        table.add_row(engine, *(f"{cell:.2f}" for cell in cells))
    return table


def _command(photos: str, engine: str, workers: int) -> float:
    """Seconds of a command that writes Parquet."""
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "-m", "qcs.predict", f"input={photos}", f"engine={engine}"]
        command += [f"out={run}/faces.parquet", f"hydra.run.dir={run}", f"workers={workers}"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ferplus")
    parser.add_argument("--old")
    parser.add_argument("--folder")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch) / f"{options.photos}"
        faces = cuts(options.ferplus) if options.ferplus else faces_of([])
        make_photos(folder, options.photos, faces)
        console = Console(width=130)  # also where it is written to a file
        console.print(stages(folder))
        if options.rounds:
            console.print(compare(folder, options.photos, options))
        if options.ray:
            console.print(engines(folder, options.photos, options.workers, options.rounds or 1))


if __name__ == "__main__":
    main()
