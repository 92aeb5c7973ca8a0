"""Loggers that Lightning does not have."""

import csv
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


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
