"""Loggers that continue the files of a resumed run, and how pictures and tables reach loggers.

A picture is first drawn into a file in the run's folder, and the loggers are given that file. The
pictures are therefore the same in W&B, in TensorBoard and in a run that uses neither.
"""

import csv
import logging
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from PIL import Image

from qcs.config.errors import UserError, missing_extra
from qcs.config.escape import markdown
from qcs.evaluation.report import PICTURES

log = logging.getLogger(__name__)


class MetricsFile(ExperimentWriter):
    """A writer of metrics.csv that continues the file of a resumed run and loses no rows.

    Lightning's own writer deletes the file when a run is resumed. When there is a new column, it
    also overwrites the file in place, so that a process killed at that moment loses the rows.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = metrics_file(Path(log_dir))
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as table:
                self.metrics_keys = next(csv.reader(table), [])

    def _check_log_dir_exists(self) -> None:
        """Accept the folder as it is: what it holds is of this run."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        _write(Path(self.log_dir), _rows(Path(self.log_dir)), fieldnames)


class CSVLogger(LightningCSVLogger):
    """Writes each row of metrics.csv at once, and continues the file of a resumed run."""

    def __init__(self, save_dir: str, name: str | None = None, version: str = "csv") -> None:
        super().__init__(save_dir, name=name, version=version, flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer of metrics.csv."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        return self._experiment


def metrics_file(folder: Path) -> Path:
    """Return the path of metrics.csv in a logger's folder."""
    return folder / ExperimentWriter.NAME_METRICS_FILE


def drop_rows(folder: Path, step: int) -> None:
    """Remove the rows of a step and all later ones from a logger's folder: they will come again.

    A file that cannot be read is renamed to metrics.damaged.csv, and a warning is logged.
    """
    path = metrics_file(folder)
    if not path.is_file():
        return
    try:
        rows = [row for row in _rows(folder) if int(row["step"]) < step]
    except (ValueError, KeyError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        aside = folder / "metrics.damaged.csv"
        path.replace(aside)
        log.warning("%s is damaged (%s): it is now %s", path, error, aside.name)
        return
    if rows:
        _write(folder, rows, sorted(set().union(*rows)))
    else:
        path.unlink()


def complete(loggers: Iterable[Logger], row: dict[str, float]) -> None:
    """Log an epoch's training means where the run was stopped between saving and logging them.

    Args:
        loggers: of the trainer; a metrics.csv of this run says whether the row is missing.
        row: the means by name, with "epoch" and "step"; empty for none.
    """
    loggers = list(loggers)
    folders = [Path(logger.log_dir) for logger in loggers if isinstance(logger, CSVLogger)]
    folders = [folder for folder in folders if metrics_file(folder).is_file()]
    if not row or not folders:
        return
    values = {name: value for name, value in row.items() if name != "step"}
    there = [r for folder in folders for r in _rows(folder) if r.keys() >= values.keys()]
    if not any(int(r["step"]) == row["step"] for r in there):
        for logger in loggers:
            logger.log_metrics(values, step=int(row["step"]))


def _rows(folder: Path) -> list[dict[str, str]]:
    """Read the rows of metrics.csv, each without its empty cells.

    A last row without its end of line is left out: the process was killed while it was written.

    Raises:
        ValueError, KeyError, csv.Error: the file is damaged.
    """
    lines = metrics_file(folder).read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(lines)]
    if any(None in row for row in rows):
        raise ValueError("a row is longer than the header")
    for row in rows:
        list(map(float, row.values()))  # raises ValueError: every value is a number
    return rows


def _write(folder: Path, rows: list[dict[str, str]], header: list[str]) -> None:
    part = folder / "metrics.part"
    with part.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, header)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(metrics_file(folder))


def tensorboard(save_dir: str, version: str = "tensorboard") -> TensorBoardLogger:
    """Make a TensorBoard logger that writes into the folder `save_dir/version`.

    Raises:
        UserError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "logger=tensorboard needs")
    return TensorBoardLogger(save_dir, name=None, version=version, default_hp_metric=False)


def log_pictures(loggers: Iterable[Logger], pictures: dict[str, Path], step: int) -> None:
    """Give pictures, which are PNG files by name, to every logger that accepts images."""
    for logger in loggers:
        for name, path in pictures.items():
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(Image.open(path, formats=("PNG",)).convert("RGB"))
                logger.experiment.add_image(name, pixels, step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image(name, [str(path)], step=step)


def log_report(loggers: Iterable[Logger], folder: Path, result: dict[str, Any], step: int) -> None:
    """Give the pictures of a report and its table of classes to the loggers.

    `qcs.evaluation.report.write` has written them into the folder, and returned the result.
    """
    loggers, split = list(loggers), result["split"]
    pictures = {f"{split}/{n}": folder / f"{n}.png" for n in PICTURES}
    log_pictures(loggers, {name: path for name, path in pictures.items() if path.exists()}, step)
    columns = ["class", "support", "precision", "recall", "f1"]
    rows = [[name, *(row[c] for c in columns[1:])] for name, row in result["classes"].items()]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            lines = [columns, ["---"] * len(columns), *rows]
            text = "\n".join("|".join(map(markdown, line)) for line in lines)
            logger.experiment.add_text(f"{split}/classes", text, step)
        elif hasattr(logger, "log_table"):
            logger.log_table(f"{split}/classes", columns, rows, step=step)


def by_epoch(table: Path) -> dict[str, list[tuple[float, float]]]:
    """Read a run's csv/metrics.csv: of each metric, pairs of an epoch and its last value.

    Epochs are counted from 1.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[str, dict[float, float]] = {}
    try:
        rows = _rows(table.parent)
    except (ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{table} is damaged ({error}): take this run out of runs=") from error
    for row in rows:
        epoch = row.pop("epoch", "")
        for name, value in row.items() if epoch else ():
            found.setdefault(name, {})[float(epoch) + 1] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}
