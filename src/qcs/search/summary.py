"""The results of the jobs of a multirun, in a table and in summary.csv, for any launcher."""

import csv
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.table import Table

from qcs.config.console import console
from qcs.config.errors import Failed, UserError
from qcs.config.escape import spreadsheet, terminal

log = logging.getLogger(__name__)
RESULT, PRUNED, TABLE = "result.json", "pruned", "summary.csv"


class Summary(Callback):
    """Writes each job's result.json, and after each job summary.csv with the results of all."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove the results that an earlier multirun left in the folder; a search continues it."""
        if _is_grid(config):
            for path in Path(config.hydra.sweep.dir).glob(f"*/{RESULT}"):
                path.unlink()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the result of a job; one that raised an exception has failed, the others run."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.FAILED:
            job_return.return_value = _failed(job_return._return_value)
            job_return.status = JobStatus.COMPLETED  # else the sweeper raises the exception
        value = job_return._return_value
        failed = isinstance(value, Failed)
        content = {
            "overrides": [o for o in job_return.overrides or [] if not o.startswith("trial=")],
            "state": "failed" if failed else "done",
            "value": None if failed else value,
        }
        folder = Path(config.hydra.runtime.output_dir)
        folder.mkdir(exist_ok=True)  # a run that is refused leaves none
        if (folder / PRUNED).exists():
            content["state"] = "pruned"
        (folder / RESULT).write_text(json.dumps(content) + "\n", encoding="utf-8")
        _write(Path(config.hydra.sweep.dir), str(config.get("optimized_metric")))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; without a search, a failed job means exit status 1."""
        folder = Path(config.hydra.sweep.dir)
        found = _write(folder, str(config.get("optimized_metric")))
        if not found:
            return
        header, *rows = found
        table = Table(title=terminal(folder))
        for name in header:
            table.add_column(terminal(name))
        for row in rows:
            table.add_row(*(terminal(_short(cell)) for cell in row))
        console().print(table)
        if any(row[-1] == "failed" for row in rows) and _is_grid(config):
            sys.exit(1)  # a search goes on without the failed ones


def _is_grid(config: DictConfig) -> bool:
    """Whether a job is run for each combination of values, by Hydra's own sweeper."""
    return config.hydra.runtime.choices["hydra/sweeper"] == "basic"


def _failed(error: BaseException) -> Failed:
    """Log what a job raised: a `UserError` as one sentence, anything else with its traceback."""
    if isinstance(error, UserError) and not os.environ.get("QCS_TRACEBACK"):
        log.error("error: %s (QCS_TRACEBACK=1 shows the traceback)", error)
        return Failed(str(error))
    log.error("the job failed; the others go on", exc_info=error)
    return Failed(f"{type(error).__name__}: {error}")


def _write(folder: Path, metric: str) -> list[list[str]]:
    """Write the results of all jobs into summary.csv; return its rows, the header first."""
    found: dict[Path, Any] = {}
    for path in folder.glob(f"*/{RESULT}"):
        try:
            found[path.parent] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # a job beside this one is writing it
            continue
    if not found:
        return []
    jobs = sorted(found.items(), key=lambda item: (len(item[0].name), item[0].name))
    pairs = [dict(map(_pair, job["overrides"])) for _, job in jobs]
    varied = sorted({k for p in pairs for k in p if len({q.get(k) for q in pairs}) > 1})
    rows = [["job", *varied, metric, "state"]]
    for (path, job), p in zip(jobs, pairs, strict=True):
        cells = (p.get(k, "") for k in varied)
        rows.append([path.name, *cells, _text(job["value"]), job["state"]])
    part = folder / f"{TABLE}.{os.getpid()}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([map(spreadsheet, row) for row in rows])
    part.replace(folder / TABLE)
    return rows


def _pair(override: str) -> tuple[str, str]:
    """The key and the value of an override; `~key`, which deletes a key, has no value."""
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def _short(text: str) -> str:
    """A cell for the screen, on which four digits of a number are enough."""
    try:
        return text if "." not in text else f"{float(text):.4g}"
    except ValueError:
        return text


def _text(value: Any) -> str:
    return "" if value is None else json.dumps(value)
