"""Write pictures: annotated images and films, and cut faces."""

import hashlib
import itertools
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from qcs.config.errors import UserError, reason
from qcs.config.escape import terminal
from qcs.inference.faces import Prediction, Result
from qcs.inference.video import FRAME_RATE, FilmWriter

log = logging.getLogger(__name__)

LONGEST_NAME = 220  # bytes; file systems take 255, and numbers and a suffix follow
JPEG_SIDE = 65_535  # pixels
LETTERS = (11, 96)  # pixels
BOX = "#ffcc00"  # of a face that is nobody's
# Of persons; those after the last begin anew. Most are Okabe and Ito's, for people who see few.
PERSONS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#5577ff", "#ffffff",
           "#a6e22e", "#b39ddb")  # fmt: skip


class Written(NamedTuple):
    """Pictures of one image, relative to the run's folder."""

    annotated: str | None = None
    crops: tuple[str, ...] = ()


class Pictures:
    """Writes annotated images and films, and cut faces.

    No two inputs share a name: where they would, as a/x.jpg and b/x.jpg or clip.mov and clip.mp4,
    the second one becomes x-2.jpg or clip-2.mp4.

    Args:
        folder: in which `annotated/` and `crops/` are made.
        annotate: whether to write annotated images and films.
    """

    def __init__(self, folder: Path, annotate: bool, crops: bool) -> None:
        self.folder, self.annotate, self.crops = folder, annotate, crops
        self.failed = 0  # films that could not be finished
        self._taken: set[str] = set()
        self._film: FilmWriter | None = None
        self._frame: tuple[Any, int] | None = None  # the film that is written, and its last frame
        self._annotated = self._crops = ""  # paths for the input that is written

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()

    def require_apart(self, files: Iterable[str]) -> None:
        """Check that no picture can be written over a file that is to be read.

        Raises:
            UserError: a file lies in one of the folders of the pictures.
        """
        places = {os.path.realpath(folder): folder for folder in self.folders()}
        for file in files if places and (self.annotate or self.crops) else ():
            for place in places:
                if os.path.realpath(file).startswith(os.path.join(place, "")):
                    raise UserError(
                        f"{file} lies in {places[place]}, where this run writes its pictures: "
                        "choose another folder with hydra.run.dir=..."
                    )

    def write(self, result: Result) -> Written:
        """Write the pictures of one image.

        Raises:
            UserError: it cannot be written.
        """
        if result.image is None or not (self.annotate or self.crops):
            return Written()
        key = result.key
        follows = self._frame and self._frame[0] == key[:2] and key.frame > self._frame[1]
        if not follows:
            self._begin(result)
        self._frame = None if key.frame is None else (key[:2], key.frame)
        try:
            crops = tuple(self._cut(result)) if self.crops else ()
            if not self._annotated:  # not wanted, or this film has failed before
                return Written(None, crops)
            self._draw(result)
            return Written(self._annotated, crops)
        except (OSError, ValueError, MemoryError) as error:
            if key.frame is not None:  # a film that fails is reported once
                self._film, self._annotated = None, ""
            raise UserError(f"cannot write pictures of {key.file} ({reason(error)})") from error

    def folders(self) -> list[Path]:
        """Return the folders in which pictures were written."""
        return [
            folder for name in ("annotated", "crops") if (folder := self.folder / name).is_dir()
        ]

    def _begin(self, result: Result) -> None:
        """Choose the names of the pictures of a new input."""
        self._close()
        assert result.image is not None  # `write` has returned where there is none
        name, size = result.key.name, result.image.size
        base, suffix = os.path.splitext(name)
        if result.key.frame is not None:
            suffix = ".mp4"
        elif suffix.lower() not in (".jpg", ".png") or max(size) > JPEG_SIDE:
            base, suffix = name, ".png" if max(size) > JPEG_SIDE else ".jpg"
        self._annotated = self._unused(f"annotated/{base}", suffix) if self.annotate else ""
        self._crops = self._unused(f"crops/{name}", "") if self.crops else ""

    def _unused(self, path: str, suffix: str) -> str:
        """A path that no other input has, on file systems that ignore case as well."""
        folder, name = os.path.split(path)
        for number in itertools.count(1):
            extra = f"-{number}{suffix}" if number > 1 else suffix
            found = f"{folder}/{_shortened(name)}{extra}"
            alike = unicodedata.normalize("NFC", found).casefold()
            if alike not in self._taken:
                self._taken.add(alike)
                return found
        raise AssertionError("unreachable")

    def _cut(self, result: Result) -> Iterator[str]:
        frame = "" if result.key.frame is None else f"-{result.key.frame:06d}"
        for number, crop in enumerate(result.crops):
            path = f"{self._crops}{frame}-{number}.png"
            crop.save(self._place(path))
            yield path

    def _draw(self, result: Result) -> None:
        assert result.image is not None
        drawn, path = annotated(result.image, result.predictions), self._place(self._annotated)
        if result.key.frame is None:
            drawn.save(path)
            return
        self._film = self._film or FilmWriter(path, drawn.size)
        seconds = result.key.seconds
        self._film.add(drawn, result.key.frame / FRAME_RATE if seconds is None else seconds)

    def _place(self, path: str) -> Path:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _close(self) -> None:
        film, self._film = self._film, None
        try:
            if film is not None:
                film.close()
        except UserError as error:
            self.failed += 1
            log.warning("%s", terminal(error))


def _shortened(name: str) -> str:
    """A name of at most `LONGEST_NAME` bytes; a shortened one ends with a hash of the whole."""
    name_bytes = os.fsencode(name)
    if len(name_bytes) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name_bytes).hexdigest()[:8]
    return name_bytes[: LONGEST_NAME - 9].decode("utf-8", "ignore") + f"-{digest}"


def annotated(image: Image.Image, predictions: Sequence[Prediction]) -> Image.Image:
    """Draw boxes and labels into a copy of an RGB image."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for prediction in predictions:
        left, top, right, bottom = prediction.box or (0, 0, *image.size)
        height = min(max(LETTERS[0], round(min(right - left, bottom - top) / 9)), LETTERS[1])
        font = ImageFont.load_default(height)
        person = prediction.person
        colour = BOX if person is None else PERSONS[(person - 1) % len(PERSONS)]
        draw.rectangle((left, top, right, bottom), outline=colour, width=max(height // 8, 2))
        text = f"{prediction.label} {100 * prediction.probability:.0f} %"
        text = text if person is None else f"{person}: {text}"
        width = draw.textlength(text, font=font)
        x = min(max(left, 0), max(image.width - width - 4, 0))
        y = top - height - 6 if top >= height + 6 else min(bottom, image.height - height - 6)
        draw.rectangle((x, y, x + width + 4, y + height + 6), fill=colour)
        draw.text((x + 2, y + 1), text, fill="black", font=font)
    return image
