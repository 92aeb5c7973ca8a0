"""Loggers that go on with a resumed run, and how pictures and tables reach those that take them.

A picture is a file in the run's folder first, and loggers are given the file: W&B, TensorBoard
and a run without either have the same ones.
"""

import csv
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


class CSVLogger(LightningCSVLogger):
    """Lightning's deletes the metrics.csv of a run that goes on; this one goes on with it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of metrics.csv."""
        if self._experiment is None:
            rows = read(Path(self.log_dir))
            file(Path(self.log_dir)).unlink(missing_ok=True)
            writer = super().experiment
            writer.metrics = rows + writer.metrics
            writer.save()
        return self._experiment


def file(folder: Path) -> Path:
    """The file below a logger's folder."""
    return folder / ExperimentWriter.NAME_METRICS_FILE


def read(folder: Path) -> list[dict[str, str]]:
    """Rows that an earlier part of the run left; cells of other keys are absent."""
    if not file(folder).is_file():
        return []
    with file(folder).open(newline="", encoding="utf-8") as table:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(table)]


def forget(folder: Path, step: int) -> None:
    """Drop the rows from a step on: the resumed run will write them again."""
    rows = [row for row in read(folder) if int(row["step"]) < step]
    if not rows:
        file(folder).unlink(missing_ok=True)
        return
    part = folder / "metrics.part"
    with part.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, sorted(set().union(*rows)))
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
