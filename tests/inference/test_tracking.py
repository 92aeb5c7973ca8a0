"""Persons keep their numbers through films of known boxes, and smoothing is a mean over time."""

import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import Key
from qcs.inference.tracking import TICK, Following, follow, seconds_of

NAMES = ("red", "green", "blue")
Path = Callable[[float], tuple[float, float] | None]


def face(x: float, y: float, probabilities=(0.6, 0.3, 0.1), side: float = 60) -> Prediction:
    """A face with its middle at a point."""
    by_name = dict(zip(NAMES, map(float, probabilities), strict=True))
    label = max(by_name, key=by_name.get)
    box = (x - side / 2, y - 0.6 * side, x + side / 2, y + 0.6 * side)
    return Prediction(label, by_name[label], by_name, box, ((x, y),) * 5, 0.8)


def film(
    paths: list[Path], times, name: str = "film.mp4", noise: float = 1.5
) -> tuple[list[Result], list[list[int]]]:
    """The frames of a film, the faces in any order, and who each face is.

    A face is hidden where one of a later path is in front of it.
    """
    rng, results, truth = np.random.default_rng(0), [], []
    for number, t in enumerate(times):
        places = {n: path(t) for n, path in enumerate(paths) if path(t)}
        free = [
            n for n, place in places.items()
            if all(np.hypot(*np.subtract(place, places[m])) > 35 for m in places if m > n)
        ]  # fmt: skip
        free = [int(n) for n in rng.permutation(free)]
        faces = [
            face(*(places[n] + rng.normal(0, noise, 2)), rng.dirichlet((3, 2, 1))) for n in free
        ]
        results.append(Result(Key(name, name, number, float(t)), None, None, faces, []))
        truth.append(free)
    return results, truth


def persons(results) -> list[list[int | None]]:
    return [[p.person for p in result.predictions] for result in results]


def switches(found: list[list[int | None]], truth: list[list[int]]) -> int:
    """How often a person's number changes."""
    last: dict[int, int | None] = {}
    total = 0
    for numbers, who in zip(found, truth, strict=True):
        for number, person in zip(numbers, who, strict=True):
            total += person in last and last[person] != number
            last[person] = number
    return total


def uneven(seconds: float, seed: int = 1) -> list[float]:
    """Times of a phone's frames."""
    steps = np.random.default_rng(seed).choice([1 / 30, 1 / 25, 1 / 12], 1000)
    times = np.cumsum(steps)
    return times[times < seconds].tolist()


def left(t: float) -> tuple[float, float]:
    return 100 + 30 * np.sin(2 * t), 120.0


def right(t: float) -> tuple[float, float]:
    return 400 - 50 * np.sin(t), 150 + 30 * np.cos(3 * t)


def there(t: float) -> tuple[float, float]:
    return 60 + 70 * t, 130.0


def back(t: float) -> tuple[float, float]:
    return 480 - 70 * t, 150.0


@pytest.mark.parametrize("causal", [False, True])
def test_two_persons_keep_their_numbers(causal):
    results, truth = film([left, right], uneven(4))
    found = list(follow(iter(results), Following(causal=causal)))
    assert [result.key for result in found] == [result.key for result in results]
    assert switches(persons(found), truth) == 0
    assert {number for row in persons(found) for number in row} == {1, 2}


def test_persons_who_cross_keep_their_numbers_though_one_is_hidden():
    results, truth = film([there, back], uneven(6))
    hidden = sum(len(who) < 2 for who in truth)
    assert hidden > 3
    found = persons(follow(results))
    assert switches(found, truth) == 0 and {n for row in found for n in row} == {1, 2}


@pytest.mark.parametrize(("absent", "expected"), [(0.8, {1, 2}), (1.6, {1, 2, 3})])
def test_a_short_absence_is_bridged_and_after_a_long_one_it_is_someone_new(absent, expected):
    leaves = lambda t: None if 2 <= t < 2 + absent else left(t)  # noqa: E731
    results, _ = film([leaves, right], uneven(6))
    assert {n for row in persons(follow(results, Following(gap=1.0))) for n in row} == expected


def test_frames_that_are_further_apart_than_the_gap_are_followed():
    slow = lambda t: (100 + t, 120.0)  # noqa: E731
    results, truth = film([slow, lambda t: (400 - t, 150.0)], np.arange(0, 40, 2.5))
    assert switches(persons(follow(results, Following(gap=1.0))), truth) == 0


def test_each_film_numbers_its_own_persons_and_photos_pass():
    times = uneven(2)
    first, _ = film([left, right], times, "a.mp4")
    again, _ = film([left], times, "a.mp4")  # the same file, given twice
    broken = Result(Key("a.mp4", "a.mp4"), None, "damaged", [], [])
    photo = Result(Key("x.jpg", "x.jpg"), None, None, [face(50, 50)], [])
    results = [*first, broken, photo, *again]
    found = list(follow(results))
    assert [result.key for result in found] == [result.key for result in results]
    assert found[len(first) : len(first) + 2] == [broken, photo]
    assert {n for row in persons(found[: len(first)]) for n in row} == {1, 2}
    assert {n for row in persons(found[-len(again) :]) for n in row} == {1}
    twice = persons(follow([*first, *again]))  # nothing between them
    assert {n for row in twice[-len(again) :] for n in row} == {1}


@pytest.mark.parametrize(("cut", "expected"), [(True, [{1, 2}, {3, 4}]), (False, [{1, 2}, {1, 2}])])
def test_after_a_cut_all_are_new_and_without_one_all_may_vanish_for_a_moment(cut, expected):
    """The scene moves and flickers a little, and the heads are a third of the picture."""
    results, _ = film([left, right], np.arange(0, 4, 0.1))
    rng, frames = np.random.default_rng(0), []
    first, second = np.kron(rng.integers(0, 255, (2, 7, 24)), np.ones((1, 40, 30)))
    for result in results:
        t = result.key.seconds
        scene = second if cut and t >= 2 else first
        pixels = np.roll(scene, int(40 * t), 1)[:270, :480] + rng.normal(0, 8, (270, 480))
        faces = result.predictions if cut or not 2 <= t < 2.5 else []
        for (x, y), *_ in (face.landmarks for face in faces):
            pixels[int(y) - 60 : int(y) + 60, max(int(x) - 50, 0) : int(x) + 50] = 250
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")
        frames.append(result._replace(image=image, predictions=faces))
    found = list(follow(iter(frames)))
    halves = [[r for r in found if (r.key.seconds >= 2) == late] for late in (False, True)]
    assert [{n for row in persons(half) for n in row} for half in halves] == expected


def test_a_face_of_a_single_frame_is_nobody():
    results, _ = film(
        [left, lambda t: right(t) if 1 < t < 1.01 else None], [*uneven(1), 1.005, 1.1]
    )
    assert sum(len(result.predictions) == 2 for result in results) == 1
    assert {n for row in persons(follow(results)) for n in row} == {1, None}


def reference(results, truth, how: Following) -> list[list[np.ndarray]]:
    """The mean of the same person's probabilities within the window, in plain loops."""
    back, ahead = (how.smooth, 0.0) if how.causal else (how.smooth / 2, how.smooth / 2)
    rows = [
        (seconds_of(result.key), who, np.array(list(p.probabilities.values())))
        for result, numbers in zip(results, truth, strict=True)
        for p, who in zip(result.predictions, numbers, strict=True)
    ]

    def mean(now: float, person: int) -> np.ndarray:
        within = [
            row
            for t, who, row in rows
            if who == person and now - back - TICK <= t <= now + ahead + TICK
        ]
        return np.mean(within, axis=0)

    pairs = zip(results, truth, strict=True)
    return [[mean(seconds_of(result.key), who) for who in numbers] for result, numbers in pairs]


@pytest.mark.parametrize("how", [Following(0.4), Following(0.4, causal=True), Following(0.0)])
def test_probabilities_are_averaged_over_the_seconds_around_or_before(how):
    results, truth = film([left, right], uneven(4))
    for result, expected in zip(follow(results, how), reference(results, truth, how), strict=True):
        for found, row in zip(result.predictions, expected, strict=True):
            np.testing.assert_allclose(list(found.probabilities.values()), row, atol=1e-12)
            assert found.label == NAMES[row.argmax()] and found.probability == max(
                found.probabilities.values()
            )


def test_where_nothing_is_averaged_a_face_is_as_it_was():
    results, _ = film([left, right], uneven(1))
    found = follow(results, Following(smooth=0))
    same = [[p._replace(person=None) for p in result.predictions] for result in found]
    assert same == [result.predictions for result in results]


def long_film(alive: list[weakref.ref], frames: int) -> Iterator[Result]:
    """A film whose pictures can be counted."""
    for number in range(frames):
        picture = Image.new("RGB", (8, 8))
        alive.append(weakref.ref(picture))
        faces = [face(*left(number / 25)), face(*right(number / 25))]
        yield Result(Key("long.mp4", "long.mp4", number, number / 25), picture, None, faces, [])


@pytest.mark.parametrize(("pictures", "most"), [(True, 9), (False, 2)])
def test_of_a_long_film_only_the_frames_of_half_a_window_are_kept(pictures, most):
    alive: list[weakref.ref] = []
    for result in follow(long_film(alive, 150), Following(0.5), pictures):
        assert sum(picture() is not None for picture in alive) <= most
        assert (result.image is not None) == pictures
        del result


def test_a_causal_answer_comes_before_the_next_frame_is_read():
    read = []

    def frames():
        for result in film([left], uneven(1))[0]:
            read.append(result.key.frame)
            yield result

    for result in follow(frames(), Following(causal=True)):
        assert result.key.frame == read[-1]


def test_times_that_are_missing_or_repeated_do_no_harm():
    results, truth = film([left, right], uneven(3))
    for change in (None, 1.0):
        odd = [r._replace(key=r.key._replace(seconds=change)) for r in results]
        assert switches(persons(follow(odd)), truth) == 0


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trackers", None)
    with pytest.raises(UserError, match=r"track=true needs `pip install -e '\.\[track\]'"):
        follow(iter(()))
