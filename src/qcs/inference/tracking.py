"""Who is who in a film: a face keeps a number, and its expression is steadied over time.

Faces are followed by C-BIoU (Yang et al., "Hard To Track Objects with Irregular Motions and Similar
Appearances? Make It Easier by Buffering the Matching Space", WACV 2023) of the package `trackers`:
`pip install -e '.[track]'`. It goes by boxes, their movement and the times of the frames, not by
what a face looks like, so after a cut all persons are new ones.

K classes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qcs.config.errors import missing_extra
from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import Key
from qcs.inference.shots import Shot
from qcs.inference.video import FRAME_RATE

TICK = 1e-3  # seconds, to which containers round times


class Following(NamedTuple):
    """How faces are followed; all in seconds."""

    smooth: float = 0.5  # over which a person's probabilities are averaged; 0 leaves them alone
    causal: bool = False  # average over the past alone, not as far ahead as back
    gap: float = 1.0  # that a person may be out of sight and keep the number


DEFAULT = Following()


def seconds_of(key: Key) -> float:
    """When a frame of a film is shown, in seconds after its start."""
    assert key.frame is not None
    return key.frame / FRAME_RATE if key.seconds is None else key.seconds


def follows(key: Key, before: Key) -> bool:
    """Whether an image comes later in the same film than another one."""
    if key.frame is None or before.frame is None:
        return False
    return key[:2] == before[:2] and key.frame > before.frame


def follow(
    results: Iterable[Result], how: Following = DEFAULT, pictures: bool = True
) -> Iterator[Result]:
    """Give the faces of films their persons and smoothed probabilities; photos pass as they are.

    Persons are numbered from 1 in each film. A face that has been seen in a single frame has no
    number yet. Where probabilities are not averaged over the past alone, the last frames are held
    back for half of `how.smooth`; no other frames are kept.

    Args:
        pictures: whether the results keep their pictures.

    Raises:
        UserError: the package `trackers` is not installed.
    """
    tracker()  # an error comes at once, not with the first frame
    return _follow(results, how, pictures)


def _follow(results: Iterable[Result], how: Following, pictures: bool) -> Iterator[Result]:
    film: _Film | None = None
    for result in results:
        if film is not None and not follows(result.key, film.key):
            yield from film.rest()
            film = None
        if result.key.frame is None:
            yield result
            continue
        film = film or _Film(how, pictures)
        yield from film.add(result)
    if film is not None:
        yield from film.rest()


class _Held(NamedTuple):
    """A frame whose faces may still change."""

    seconds: float
    result: Result
    persons: list[int | None]  # of its faces


class _Film:
    """The persons of one film."""

    def __init__(self, how: Following, pictures: bool) -> None:
        self.gap, self.pictures = how.gap, pictures
        self.tracker, self.shot = tracker(), Shot()
        self.newest = self.known = 0  # the largest number now, and before the last cut
        self.back, self.ahead = (how.smooth, 0.0) if how.causal else (how.smooth / 2,) * 2
        self.key: Key
        self.seconds: float | None = None
        self.held: deque[_Held] = deque()
        self.seen: dict[int, deque[tuple[float, np.ndarray]]] = {}  # by person: when, (K,)

    def add(self, result: Result) -> Iterator[Result]:
        """Take the next frame, and give those that are complete with it."""
        self.key, seconds = result.key, seconds_of(result.key)
        if self.seconds is not None:
            seconds = max(seconds, self.seconds + TICK)  # damaged films repeat a time
            # Between two frames nobody is out of sight, however long that takes.
            self.tracker.maximum_time_without_update = max(self.gap, seconds - self.seconds)
        self.seconds = seconds
        if cut := self.shot.ends(result):
            self.tracker, self.known = tracker(), self.newest
        persons = [
            None if person is None else self.known + person
            for person in assign(self.tracker, result.predictions, seconds)
        ]
        self._recognise(result.predictions, persons, cut)
        if not self.pictures:
            result = result._replace(image=None, crops=[])
        self.held.append(_Held(seconds, result, persons))
        for prediction, person in zip(result.predictions, persons, strict=True):
            self._see(seconds, prediction, person)
        while self.held and self.held[0].seconds + self.ahead <= seconds + TICK:
            yield self._give()

    def rest(self) -> Iterator[Result]:
        """Give the frames that are left at the end."""
        while self.held:
            yield self._give()

    def _see(self, seconds: float, prediction: Prediction, person: int | None) -> None:
        if person is not None:
            row = np.array(list(prediction.probabilities.values()))
            self.seen.setdefault(person, deque()).append((seconds, row))

    def _recognise(
        self, predictions: list[Prediction], persons: list[int | None], cut: bool
    ) -> None:
        """Number the faces of the frame before that turn out to be new persons with this frame."""
        new = [n for n, person in enumerate(persons) if (person or 0) > self.newest]
        self.newest = max([self.newest, *(person or 0 for person in persons)])
        if cut or not self.held:
            return
        seconds, before, earlier = self.held[-1]
        for n in new:
            if unknown := [m for m, person in enumerate(earlier) if person is None]:
                apart = [_apart(predictions[n], before.predictions[m]) for m in unknown]
                face = unknown[int(np.argmin(apart))]
                earlier[face] = persons[n]
                self._see(seconds, before.predictions[face], persons[n])

    def _give(self) -> Result:
        seconds, result, persons = self.held.popleft()
        for person, rows in list(self.seen.items()):
            while rows and rows[0][0] < seconds - self.back - TICK:
                rows.popleft()
            if not rows and person not in persons:
                del self.seen[person]
        found = [
            p if person is None else self._smoothed(p, person, seconds)
            for p, person in zip(result.predictions, persons, strict=True)
        ]
        return result._replace(predictions=found)

    def _smoothed(self, prediction: Prediction, person: int, seconds: float) -> Prediction:
        last = seconds + self.ahead + TICK
        rows = [row for when, row in self.seen[person] if when <= last]
        mean = dict(zip(prediction.probabilities, np.mean(rows, axis=0).tolist(), strict=True))
        label = max(mean, key=lambda name: mean[name])
        return prediction._replace(
            label=label, probability=mean[label], probabilities=mean, person=person
        )


def _apart(face: Prediction, other: Prediction) -> float:
    """The distance of the middles of two boxes in pixels."""
    a, b = (np.array(f.box, dtype=float).reshape(2, 2).mean(0) for f in (face, other))
    return float(np.hypot(*(a - b)))


def tracker() -> Any:
    """Make a tracker; its `maximum_time_without_update` is the gap that it bridges, in seconds.

    Raises:
        UserError: the package `trackers` is not installed.
    """
    try:
        from trackers import CBIoUTracker
    except ImportError as error:
        raise missing_extra("track", "track=true needs") from error
    return CBIoUTracker(
        frame_rate=FRAME_RATE,
        minimum_consecutive_frames=2,
        track_activation_threshold=0.0,  # what the detector reports is a face
        high_conf_det_threshold=0.0,
        buffer_ratio_first=0.4,  # of a box: heads are small and turn about
    )


def assign(tracker: Any, faces: Sequence[Prediction], seconds: float) -> list[int | None]:
    """Return the persons of the faces of the next frame, from 1; None where not yet known.

    Args:
        faces: with boxes.
        seconds: after the film's start, later than the frame before.
    """
    import supervision

    boxes = np.array([face.box for face in faces], dtype=float).reshape(-1, 4)
    scores = np.array([face.score for face in faces], dtype=float)
    rows: dict[str, Any] = {"row": np.arange(len(faces))}
    found = tracker.update(supervision.Detections(boxes, confidence=scores, data=rows),
                           timestamp=seconds)  # fmt: skip
    persons: list[int | None] = [None] * len(faces)
    for row, number in zip(found.data.get("row", ()), found.tracker_id, strict=True):
        persons[row] = int(number) + 1 if number >= 0 else None
    return persons
