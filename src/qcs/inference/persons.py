"""What the persons of films showed: a table, a file and pictures.

A person shows an expression from the frame in which it is recognised to the next frame in which the
person is seen; out of sight for longer than a gap, it shows none. K classes.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Column, Table

from qcs.config.console import console
from qcs.config.errors import UserError, reason
from qcs.config.escape import terminal
from qcs.evaluation.files import write_csv
from qcs.inference.faces import Result
from qcs.inference.inputs import Key
from qcs.inference.tracking import follows, seconds_of
from qcs.inference.video import FRAME_RATE

LONGEST = 3  # spans in the file and in the table
MOST_ROWS = 60  # of a picture and of the table
LARGEST = 4  # shares in the table


class Span(NamedTuple):
    """A time through which a person showed an expression, in seconds after the film's start."""

    label: str
    start: float
    end: float

    @property
    def length(self) -> float:
        """Its length in seconds."""
        return self.end - self.start


class Person:
    """The spans of a person."""

    def __init__(self, number: int) -> None:
        self.number, self.spans = number, list[Span]()

    def shown(self, label: str, seconds: float, gap: float) -> None:
        """Note what it shows from a moment on; through a short gap, what it showed before lasts."""
        if self.spans and seconds - self.spans[-1].end <= gap:
            self.until(seconds)
            if self.spans[-1].label == label:
                return
        self.spans.append(Span(label, seconds, seconds))

    def until(self, seconds: float) -> None:
        """Note that the last span goes on to a moment."""
        self.spans[-1] = self.spans[-1]._replace(end=max(self.spans[-1].end, seconds))

    @property
    def shares(self) -> dict[str, float]:
        """The part of its time in sight that each expression takes, summing to 1, largest first."""
        times: dict[str, float] = defaultdict(float)
        for span in self.spans:
            times[span.label] += span.length
        ordered = sorted(times.items(), key=lambda item: -item[1])
        # Where all frames have one time, as at the end of a damaged film, they count alike.
        return {
            label: time / self.seconds if self.seconds else 1 / len(times)
            for label, time in ordered
        }

    @property
    def seconds(self) -> float:
        """How long it is in sight, with the gaps that are bridged."""
        return sum(span.length for span in self.spans)

    @property
    def longest(self) -> list[Span]:
        """Its longest spans, the longest first."""
        return sorted(self.spans, key=lambda span: -span.length)[:LONGEST]


class _Film:
    """The persons of a film."""

    def __init__(self, key: Key) -> None:
        self.key, self.persons = key, dict[int, Person]()
        self.step = 1 / FRAME_RATE  # seconds between the last two frames
        self.before: list[Person] = []  # in sight in the last frame

    def end(self) -> None:
        """The last frame is shown as long as the one before."""
        for person in self.before:
            person.until(person.spans[-1].end + self.step)
        self.before = []


class Persons:
    """Sums up the persons of films, with memory for their spans alone.

    Args:
        gap: seconds out of sight through which an expression lasts.
    """

    def __init__(self, class_names: Sequence[str], gap: float) -> None:
        self.class_names, self.gap, self.films = class_names, gap, list[_Film]()

    def add(self, result: Result) -> None:
        """Take the next result of `qcs.inference.tracking.follow`."""
        if result.key.frame is None:
            return
        if not self.films or not follows(result.key, self.films[-1].key):
            self._end()
            self.films.append(_Film(result.key))
        film, seconds = self.films[-1], seconds_of(result.key)
        if result.key != film.key:
            film.step = max(seconds - seconds_of(film.key), 0.0)
        for person in film.before:
            person.until(seconds)
        film.key, film.before = result.key, []
        for prediction in result.predictions:
            if (number := prediction.person) is not None:
                person = film.persons.setdefault(number, Person(number))
                person.shown(prediction.label, seconds, self.gap)
                film.before.append(person)

    def _end(self) -> None:
        if self.films:
            self.films[-1].end()

    def write(self, folder: Path) -> list[Path]:
        """Write persons.csv and a picture a film, print the table, and return the files' paths.

        Raises:
            UserError: they cannot be written.
        """
        self._end()
        spans = (f"span_{n}_{what}" for n in range(1, LONGEST + 1)
                 for what in ("label", "start", "end"))  # fmt: skip
        header = ["file", "person", "first_seen", "last_seen", "seconds"]
        header += [f"share_{name}" for name in self.class_names]
        rows = [self._row(f, p) for f in self.films for p in f.persons.values()]
        write_csv(folder / "persons.csv", [*header, *spans], rows)
        self._print()
        try:
            return [folder / "persons.csv", *self._draw(folder)]
        except OSError as error:
            raise UserError(f"cannot write pictures of the persons ({reason(error)})") from error

    def _row(self, film: _Film, person: Person) -> list[Any]:
        times = (person.spans[0].start, person.spans[-1].end, person.seconds)
        row: list[Any] = [film.key.file, person.number, *(round(t, 3) for t in times)]
        row += [round(person.shares.get(name, 0.0), 4) for name in self.class_names]
        for label, start, end in person.longest:
            row += [label, round(start, 3), round(end, 3)]
        return row

    def _print(self) -> None:
        from qcs.plots.timeline import clock

        table = Table(Column("film", overflow="fold"), "person", "seen", "shows", "longest")
        if any(len(film.persons) > MOST_ROWS for film in self.films):
            table.caption = f"of each film the {MOST_ROWS} seen for longest; all are in persons.csv"
        for film in self.films:
            for person in _longest_seen(film):
                shares = list(person.shares.items())[:LARGEST]
                spans = (f"{s.label} {clock(s.start)} to {clock(s.end)}" for s in person.longest)
                cells = [film.key.file, str(person.number)]
                cells += [f"{clock(person.spans[0].start)} to {clock(person.spans[-1].end)}"]
                cells += [", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)]
                table.add_row(*map(terminal, [*cells, ", ".join(spans)]))
        console().print(table)

    def _draw(self, folder: Path) -> list[Path]:
        from qcs.plots.timeline import timeline

        paths = []
        for number, film in enumerate(self.films, start=1):
            if not film.persons:
                continue
            name = os.path.splitext(os.path.basename(film.key.name))[0]
            path = folder / "timelines" / f"{number}-{name[:40]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            persons = _longest_seen(film)
            left = len(film.persons) - len(persons)
            title = (
                f"{film.key.name}{f', without the {left} seen for the shortest' if left else ''}"
            )
            rows = [(f"person {p.number}", p.spans) for p in persons]
            timeline(rows, self.class_names, path, title)
            paths.append(path)
        return paths


def _longest_seen(film: _Film) -> list[Person]:
    """As many persons as a picture has room for, those who are seen for longest, in their order."""
    kept = sorted(film.persons.values(), key=lambda p: -p.seconds)[:MOST_ROWS]
    return sorted(kept, key=lambda person: person.number)
