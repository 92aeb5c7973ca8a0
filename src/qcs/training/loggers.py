"""Loggers that go on with a resumed run, and how pictures and tables reach those that take them.

A picture is a file in the run's folder first, and loggers are given the file: W&B, TensorBoard
and a run without either have the same ones.
"""

import csv
import logging
import netrc
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
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
    """Lightning's writer of metrics.csv, which keeps what is there, and loses nothing when killed.

    Lightning's own deletes the file of an earlier part of the run, and writes it anew in place.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        if file(Path(log_dir)).is_file():
            with file(Path(log_dir)).open(newline="", encoding="utf-8") as table:
                self.metrics_keys = next(csv.reader(table), [])

    def _check_log_dir_exists(self) -> None:
        """What is there is this run's."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        _write(Path(self.log_dir), _rows(Path(self.log_dir)), fieldnames)


class CSVLogger(LightningCSVLogger):
    """Writes each row of metrics.csv at once, and goes on with the file of a resumed run."""

    def __init__(self, save_dir: str, name: str | None = None, version: str = "csv") -> None:
        super().__init__(save_dir, name=name, version=version, flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of metrics.csv."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        return self._experiment


def file(folder: Path) -> Path:
    """The file below a logger's folder."""
    return folder / ExperimentWriter.NAME_METRICS_FILE


def forget(folder: Path, step: int) -> None:
    """Drop the rows from a step on: the resumed run will write them again.

    A file that cannot be read is set aside as metrics.damaged.csv, with a warning.
    """
    if not file(folder).is_file():
        return
    try:
        rows = [row for row in _rows(folder) if int(row["step"]) < step]
    except (ValueError, KeyError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        aside = folder / "metrics.damaged.csv"
        file(folder).replace(aside)
        log.warning("%s is damaged (%s): it is now %s", file(folder), error, aside.name)
        return
    if rows:
        _write(folder, rows, sorted(set().union(*rows)))
    else:
        file(folder).unlink()


def complete(loggers: Iterable[Logger], row: dict[str, float]) -> None:
    """Log an epoch's training means where the run was stopped between saving and logging them.

    Args:
        loggers: of the trainer; a metrics.csv of this run says whether the row is missing.
        row: the means by name, with "epoch" and "step"; empty for none.
    """
    loggers = list(loggers)
    folders = [Path(logger.log_dir) for logger in loggers if isinstance(logger, CSVLogger)]
    if not row or not any(file(folder).is_file() for folder in folders):
        return
    values = {name: value for name, value in row.items() if name != "step"}
    there = [r for f in folders if file(f).is_file() for r in _rows(f) if r.keys() >= values.keys()]
    if not any(int(r["step"]) == row["step"] for r in there):
        for logger in loggers:
            logger.log_metrics(values, step=int(row["step"]))


def _rows(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, cells of other keys absent; one that was not written to its end is not.

    Raises:
        ValueError, KeyError, csv.Error: the file is damaged.
    """
    lines = file(folder).read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(lines)]
    if any(None in row for row in rows):
        raise ValueError("a row is longer than the header")
    for row in rows:
        list(map(float, row.values()))  # nothing else is logged
    return rows


def _write(folder: Path, rows: list[dict[str, str]], header: list[str]) -> None:
    part = folder / "metrics.part"
    with part.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, header)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(file(folder))


def tensorboard(save_dir: str, version: str = "tensorboard") -> TensorBoardLogger:
    """Make the logger that writes into `save_dir/version`.

    Raises:
        UserError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "logger=tensorboard needs")
    return TensorBoardLogger(save_dir, name=None, version=version, default_hp_metric=False)


def require_login(node: dict[str, Any]) -> None:
    """Check that a W&B logger's node can be built and may log in, before anything is trained.

    W&B itself would ask for a key at a terminal, and elsewhere fail once the run begins.

    Raises:
        UserError: W&B is not installed, or is to be online without a key.
    """
    if not node["_target_"].endswith("WandbLogger"):
        return
    if find_spec("wandb") is None:
        raise missing_extra("wandb", "logger=wandb needs")
    import wandb  # slow, and only some runs log there

    settings = wandb.setup().settings
    if node.get("offline") or settings.mode in ("offline", "dryrun", "disabled"):
        return
    if settings.api_key or settings.identity_token_file or _in_netrc(settings.base_url):
        return
    raise UserError(
        "logger=wandb: no W&B login on this machine; run `wandb login`, or write "
        "logger.wandb.offline=true"
    )


def _in_netrc(url: str) -> bool:
    """Whether the user's netrc file, where `wandb login` leaves the key, has one for a server."""
    names = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in names if name):
        try:
            if path.is_file() and netrc.netrc(path).authenticators(urlsplit(url).hostname or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def show(loggers: Iterable[Logger], pictures: dict[str, Path], step: int) -> None:
    """Give PNG files, by name, to every logger that takes images."""
    for logger in loggers:
        for name, path in pictures.items():
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(Image.open(path, formats=("PNG",)).convert("RGB"))
                logger.experiment.add_image(name, pixels, step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image(name, [str(path)], step=step)


def log_report(loggers: Iterable[Logger], folder: Path, result: dict[str, Any], step: int) -> None:
    """Give the pictures and the table by class of a report to the loggers.

    Args:
        loggers: of the trainer.
        folder: that `qcs.evaluation.report.write` has written.
        result: what it returned.
        step: the trainer's.
    """
    loggers, split = list(loggers), result["split"]
    pictures = {f"{split}/{n}": folder / f"{n}.png" for n in PICTURES}
    show(loggers, {name: path for name, path in pictures.items() if path.exists()}, step)
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
    """Read a run's csv/metrics.csv: (epoch, value) by name, the last of an epoch, from epoch 1."""
    found: dict[str, dict[float, float]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            epoch = row.pop("epoch", "")
            for name, value in row.items():
                if epoch and value:
                    found.setdefault(name, {})[float(epoch) + 1] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}
