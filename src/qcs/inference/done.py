"""What is done of a prediction: the images and films of which an archive has rows."""

import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError
from qcs.config.escape import terminal, utf8
from qcs.inference import parquet
from qcs.inference.inputs import stamp
from qcs.inference.parquet import Identity
from qcs.inference.sources import Source

log = logging.getLogger(__name__)


class Done:
    """Says of which images and films the rows are there, or were asked for before in this run.

    Args:
        rows: the images and films that have rows, and whether one of these rows has an error.

    Attributes:
        skipped: the number of images and films that had rows when they were asked for.
        failed: the number of those that have an error.
    """

    def __init__(self, rows: Mapping[Identity, bool] | None = None) -> None:
        self.rows = dict(rows or {})
        self.skipped = self.failed = 0
        self._given: set[Identity] = set()

    def __call__(self, source: Source) -> bool:
        """Whether an image or film is to be left out."""
        identity = (utf8(source.file), source.member and utf8(source.member))
        if identity in self._given:
            log.warning("left out, as it is listed twice: %s", terminal(identity[1] or identity[0]))
            return True
        self._given.add(identity)
        self.skipped += identity in self.rows
        self.failed += self.rows.get(identity, False)
        return identity in self.rows

    def of(self, tars: Iterable[Source]) -> list["Done"]:
        """What is known of each of some tars, so that other processes can go through them."""
        members: dict[str, dict[Identity, bool]] = {}
        for identity, failed in self.rows.items():
            members.setdefault(identity[0], {})[identity] = failed
        return [Done(members.get(utf8(tar.file))) for tar in tars]

    def read(
        self, parts: Iterable[Path], files: Sequence[Source], made: Mapping[str, Any]
    ) -> dict[Path, set[Identity]]:
        """Note which images and films have rows, and return by part those that are to be done anew.

        These are files that have changed since, and images or films that are in two parts, as where
        files were added while shards were started.

        Args:
            parts: of an archive; those that vanish meanwhile have no rows.
            files: all that this run is to read.
            made: the settings with which the parts must have been made.

        Raises:
            UserError: a part is damaged, was made with other settings, or has rows of a webcam that
                is to be recorded.
        """
        named = {utf8(file.file): file for file in files}
        stamped = functools.cache(lambda file: None if file.error else stamp(file.file))
        stale: dict[Path, set[Identity]] = {}
        for path in parts:
            try:
                settings, found = parquet.seen(path)
            except FileNotFoundError:  # another shard has taken out all its rows
                continue
            _require_same(settings, made, path.parent)
            for identity, before, _ in found:
                file = named.get(identity[0])
                if file and file.kind == "webcam":
                    raise UserError(
                        f"out={path.parent} holds a recording of {identity[0]} already: name "
                        "another folder, or begin anew with restart=true"
                    )
                if identity in self.rows or (file and stamped(file) != before):
                    stale.setdefault(path, set()).add(identity)
            for identity, _, failed in found:
                if identity not in stale.get(path, ()):
                    self.rows[identity] = failed or self.rows.get(identity, False)
        return stale


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    for key in (*now, *before):
        old, new = (json.dumps(settings.get(key)) for settings in (before, now))
        if old != new:
            raise UserError(
                f"out={folder} was made with {key}={old}, and now it is {new}: begin anew with "
                "restart=true, or name another folder"
            )
