"""Films of FERPlus' faces that move, cross and vanish: identity switches and steady labels.

    pip install -e '.[track]' norfair-enough
    python scripts/bench_tracking.py /path/to/ferplus.zip

Four films are made of test faces in front of a grey wall. In two of them a person shows one still a
span of an expression, in two another still of that expression every 0.4 s. FERPlus does not say who
is who, so a person's face changes with the expression; the trackers see boxes alone. The films'
frames come at uneven times. Detection and the network run once; trackers and smoothing are compared
on what they found.
"""

import argparse
import pickle
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFilter

import qcs
from qcs.data.manifest import Manifest
from qcs.data.sources import ferplus
from qcs.inference import tracking
from qcs.inference.detector import Detector
from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import open_items
from qcs.inference.predictor import Predictor
from qcs.inference.sources import files_of
from qcs.inference.tracking import Following, follow
from qcs.inference.video import FRAME_RATE, FilmWriter

SIZE = (384, 216)
WALL = (90, 90, 90)  # in front of which the detector finds nearly all tight cuts
SECONDS = 10.0
STEPS = (1 / 15, 1 / 12, 1 / 8)  # seconds from a frame to the next
STEP = sum(STEPS) / len(STEPS)
LABELS = (0, 1, 2, 3, 4)  # neutral, happiness, surprise, sadness, anger
Place = tuple[float, float] | None  # of a face's centre, in units of the film's sides


class Film(NamedTuple):
    """Who is where when; persons that come later in the list are in front."""

    name: str
    side: int  # pixels of a pasted cut
    every: float | None  # seconds after which a person shows another still; None for one a span
    persons: tuple[Callable[[float], Place], ...]


class Seen(NamedTuple):
    """A face in a frame, as it was drawn."""

    person: int
    centre: tuple[float, float]  # pixels
    label: int


def _swing(x: float, y: float, dx: float, dy: float, period: float, phase: float = 0.0) -> Callable:
    """A path to and fro."""

    def place(t: float) -> Place:
        angle = 2 * np.pi * (t / period + phase)
        return x + dx * np.sin(angle), y + dy * np.cos(1.3 * angle)

    return place


def _absent(path: Callable[[float], Place], *spans: tuple[float, float]) -> Callable:
    """A path with times in which the person is not to be seen."""
    return lambda t: None if any(start <= t < end for start, end in spans) else path(t)


FILMS = (
    Film(
        "simple",
        90,
        None,
        (_swing(0.25, 0.5, 0.06, 0.12, 5), _swing(0.75, 0.5, 0.08, 0.15, 4, 0.3)),
    ),
    Film(
        "crossing", 90, 0.4, (_swing(0.5, 0.45, 0.32, 0.02, 8), _swing(0.5, 0.55, -0.32, 0.02, 8))
    ),
    Film(
        "vanishing",
        90,
        None,
        (
            _absent(_swing(0.2, 0.5, 0.05, 0.1, 5), (3, 3.5), (6, 6.8)),
            _absent(_swing(0.5, 0.5, 0.06, 0.1, 6), (5, 99)),
            _absent(_swing(0.8, 0.5, 0.05, 0.1, 4), (0, 4), (8, 8.4), (9.5, 10)),
        ),
    ),
    Film(
        "crowd",
        80,
        0.4,
        (
            _swing(0.5, 0.4, 0.38, 0.1, 11, 0.2),
            _swing(0.5, 0.62, 0.36, 0.12, 9, 0.4),
            _swing(0.5, 0.45, 0.38, 0.1, 10, 0.6),
            _swing(0.5, 0.55, 0.36, 0.12, 8, 0.8),
        ),
    ),
)


def draw(film: Film, faces: Manifest, detector: Detector, path: Path) -> list[list[Seen]]:
    """Write a film, and return who is to be seen in each of its frames.

    Args:
        film: to be drawn.
        faces: the test images.
        detector: stills are those whose face it finds, so that gaps are those of the film.
        path: of the film.
    """
    rng = np.random.default_rng(sum(map(ord, film.name)))
    scene = Image.new("RGB", SIZE, WALL)
    spans = [_spans(rng) for _ in film.persons]
    stills: dict[Any, Image.Image] = {}
    writer, truth, t = FilmWriter(path, SIZE), [], 0.0
    while t < SECONDS:
        frame = scene.copy()
        seen: list[Seen] = []
        for person, where in enumerate(film.persons):
            place = where(t)
            if place is None:
                continue
            number, label = next(
                (i, label) for i, (end, label) in enumerate(spans[person]) if t < end
            )
            key = (person, number, film.every and int(t / film.every))
            if key not in stills:
                stills[key] = _still(faces, label, film.side, scene, detector, rng)
            centre = (place[0] * SIZE[0], place[1] * SIZE[1])
            _paste(frame, stills[key], centre, rng)
            seen = [s for s in seen if np.hypot(*np.subtract(s.centre, centre)) > 0.55 * film.side]
            seen.append(Seen(person, centre, label))
        noise = rng.normal(0, 4, (*SIZE[::-1], 3))
        writer.add(Image.fromarray((np.asarray(frame) + noise).clip(0, 255).astype(np.uint8)), t)
        truth.append(seen)
        t += rng.choice(STEPS)
    writer.close()
    return truth


def _still(
    faces: Manifest,
    label: int,
    side: int,
    scene: Image.Image,
    detector: Detector,
    rng: np.random.Generator,
) -> Image.Image:
    """A face of that label which the detector finds."""
    while True:
        row = rng.choice(np.flatnonzero(faces.labels == label))
        still = faces.image(row).convert("L").resize((side, side), Image.Resampling.LANCZOS)
        around = scene.crop((0, 0, 128, 128))
        around.paste(still, ((128 - side) // 2,) * 2)
        if detector(around):
            return still


def _spans(rng: np.random.Generator) -> list[tuple[float, int]]:
    """When each expression of a person ends, and which one it is."""
    found: list[tuple[float, int]] = []
    end = 0.0
    while end < SECONDS:
        end += rng.uniform(1.5, 3.5)
        label = rng.choice([n for n in LABELS if not found or n != found[-1][1]])
        found.append((end, int(label)))
    return found


def _paste(
    frame: Image.Image, still: Image.Image, centre: tuple[float, float], rng: np.random.Generator
) -> None:
    """Paste a face a little turned, scaled, brighter or darker, and blurred."""
    side = round(still.width * rng.uniform(0.97, 1.03))
    face = still.rotate(rng.uniform(-4, 4), Image.Resampling.BICUBIC).resize((side, side))
    light = rng.uniform(0.85, 1.15)
    face = face.point(lambda level: level * light)
    face = face.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (4, 4, side - 4, side - 4))
    place = (round(centre[0] - side / 2), round(centre[1] - side / 2))
    frame.paste(face.convert("RGB"), place, mask)


def looked_at(path: Path, predictor: Predictor) -> list[Result]:
    """The faces and probabilities of each frame, without pictures."""
    stream = predictor.stream(open_items(files_of(str(path))))
    return [result._replace(image=None, crops=[]) for result in stream]


# -- trackers: from the faces of all frames to their persons ---------------------------------

Persons = list[list[int | None]]


def roboflow(make: Callable[[], Any]) -> Callable[[list[Result]], Persons]:
    """A tracker of the package `trackers`, used as `qcs.inference.tracking` does."""

    def run(frames: list[Result]) -> Persons:
        with patch("qcs.inference.tracking.tracker", make):
            followed = follow(iter(frames), Following(causal=True))
            return [[p.person for p in result.predictions] for result in followed]

    return run


def norfair(distance: str, threshold: float) -> Callable[[list[Result]], Persons]:
    """A tracker of the package `norfair-enough`, which counts frames and knows no times."""
    import norfair

    def run(frames: list[Result]) -> Persons:
        tracker = norfair.Tracker(distance, threshold, hit_counter_max=12, initialization_delay=1)
        persons: Persons = []
        for frame in frames:
            found = [norfair.Detection(_corners(p), np.full(2, p.score), data=n)
                     for n, p in enumerate(frame.predictions)]  # fmt: skip
            numbers: list[int | None] = [None] * len(found)
            for tracked in tracker.update(found):
                last = tracked.last_detection
                if any(np.array_equal(last.points, f.points) for f in found):
                    numbers[last.data] = tracked.id
            persons.append(numbers)
        return persons

    return run


def candidates() -> dict[str, Callable[[list[Result]], Persons]]:
    """What is compared; the first is what qcs uses."""
    from trackers import ByteTrackTracker, OCSORTTracker

    scores: dict[str, Any] = {"frame_rate": FRAME_RATE, "high_conf_det_threshold": 0.0}
    scores["minimum_consecutive_frames"] = 2
    spawn: dict[str, Any] = {"track_activation_threshold": 0.0}
    found = {
        "trackers: C-BIoU": roboflow(tracking.tracker),
        "trackers: ByteTrack": roboflow(lambda: ByteTrackTracker(**scores, **spawn)),
        "trackers: OC-SORT": roboflow(lambda: OCSORTTracker(**scores)),
    }
    try:
        found["norfair-enough: overlap"] = norfair("iou", 0.9)
        found["norfair-enough: distance"] = norfair("euclidean", 60)
    except ImportError:
        print("without norfair: pip install norfair-enough")
    return found


def _corners(prediction: Prediction) -> np.ndarray:
    """The corners (2, 2) of a face that was found: left and top, right and bottom."""
    assert prediction.box is not None
    return np.reshape(prediction.box, (2, 2))


# -- measures --------------------------------------------------------------------------------


def matched(frames: list[Result], truth: list[list[Seen]]) -> list[dict[int, int]]:
    """For each frame, the face of each person that was found, by the distance of the middles."""
    found = []
    for frame, seen in zip(frames, truth, strict=True):
        middles = [_corners(p).mean(0) for p in frame.predictions]
        near = {}
        for one in seen:
            apart = [np.hypot(*(middle - one.centre)) for middle in middles]
            if apart and min(apart) < 30:
                near[one.person] = int(np.argmin(apart))
        found.append(near)
    return found


def switches(persons: Persons, faces: list[dict[int, int]]) -> tuple[int, int]:
    """How often a person's number changes, and how many numbers there are."""
    last: dict[int, int] = {}
    total = 0
    for numbers, near in zip(persons, faces, strict=True):
        for person, face in near.items():
            number = numbers[face]
            if number is not None:
                total += last.get(person, number) != number
                last[person] = number
    return total, len({n for numbers in persons for n in numbers if n is not None})


def steadiness(
    frames: list[Result], truth: list[list[Seen]], faces: list[dict[int, int]]
) -> Counter:
    """Right labels, changes of a label, and those of the truth."""
    counts: Counter = Counter()
    before: dict[int, tuple[str, int]] = {}
    for frame, seen, near in zip(frames, truth, faces, strict=True):
        labels = {one.person: one.label for one in seen}
        for person, face in near.items():
            shown, label = frame.predictions[face].label, labels[person]
            counts["faces"] += 1
            counts["right"] += shown == ferplus.CLASS_NAMES[label]
            if person in before:
                counts["changes"] += shown != before[person][0]
                counts["true changes"] += label != before[person][1]
            before[person] = (shown, label)
    return counts


# -- tables ----------------------------------------------------------------------------------

Made = dict[Film, tuple[list[list[Seen]], list[Result]]]


def make(zip_file: str, folder: Path) -> Made:
    """Draw the films and look at them; what lies in the folder already is taken from there."""
    faces, predictor, made = ferplus.read(zip_file).split("test"), qcs.load(), {}
    for film in FILMS:
        path = folder / f"{film.name}.mp4"
        kept = path.with_suffix(".pickle")
        if not kept.exists():
            truth = draw(film, faces, predictor.detector, path)
            kept.write_bytes(pickle.dumps((truth, looked_at(path, predictor))))
            print(f"{path}: {len(truth)} frames", flush=True)
        made[film] = pickle.loads(kept.read_bytes())
    return made


def compare_trackers(made: Made) -> None:
    """Print a row a tracker, with its switches and numbers in each film."""
    persons = [f"{film.name} ({len(film.persons)})" for film in made]
    print("| switches, numbers (persons) |", " | ".join(persons), "| ms a frame |")
    for name, run in candidates().items():
        cells, start = [], time.process_time()
        for truth, frames in made.values():
            cells.append("{}, {}".format(*switches(run(frames), matched(frames, truth))))
        ms = 1000 * (time.process_time() - start) / sum(len(truth) for truth, _ in made.values())
        print(f"| {name} |", " | ".join(cells), f"| {ms:.1f} |", flush=True)


def compare_smoothing(made: Made) -> None:
    """Print a row a setting: right labels, and changes of label per minute of a face."""
    print("| smooth | right, one still a span | changes | right, stills change | changes |")
    settings = [Following(0.0)]
    settings += [Following(s, causal) for s in (0.25, 0.5, 1.0, 2.0) for causal in (False, True)]
    for how in settings:
        cells = []
        for changing in (False, True):
            counts: Counter = Counter()
            for film, (truth, frames) in made.items():
                if bool(film.every) == changing:
                    followed = list(follow(iter(frames), how))
                    counts += steadiness(followed, truth, matched(frames, truth))
            minutes = counts["faces"] * STEP / 60
            rates = [counts[key] / minutes for key in ("changes", "true changes")]
            right = 100 * counts["right"] / counts["faces"]
            cells += [f"{right:.1f} %", f"{rates[0]:.0f} ({rates[1]:.0f})"]
        name = f"{how.smooth:g} s, {'causal' if how.causal else 'centred'}" if how.smooth else "off"
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def main() -> None:
    """Make the films, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zip", help="ferplus.zip, in its owners' layout")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_tracking"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    made = make(options.zip, options.folder)
    found = sum(len(near) for truth, frames in made.values() for near in matched(frames, truth))
    drawn = sum(len(seen) for truth, _ in made.values() for seen in truth)
    print(f"{found} of {drawn} faces that are to be seen were found\n")
    compare_trackers(made)
    print()
    compare_smoothing(made)


if __name__ == "__main__":
    main()
