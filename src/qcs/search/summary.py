"""The results of the jobs of a multirun, in a table and in summary.csv, for any launcher."""

import csv
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write
from rich.table import Table

from qcs.config.console import console
from qcs.config.errors import Failed, UserError
from qcs.config.escape import spreadsheet, terminal

log = logging.getLogger(__name__)
RESULT, PRUNED, TABLE = "result.json", "pruned", "summary.csv"
TEST, TESTED = "test/metrics.json", ("acc", "mean_acc", "f1")  # the report of a job's test


class Summary(Callback):
    """Writes each job's result.json, and after each job summary.csv with the results of all."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Choose what the jobs' folders are named by, and forget an earlier grid in the folder."""
        unnamed = ",".join(f"'{key}'" for key in ["trial", *_unnamed(config)])
        with read_write(config):  # of these overrides, the config of each job is composed
            config.hydra.overrides.hydra.append(
                f"hydra.job.config.override_dirname.exclude_keys=[{unnamed}]"
            )
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
        folder = Path(config.hydra.runtime.output_dir)
        failed = isinstance(job_return._return_value, Failed)
        content = {
            "job": config.hydra.job.num,
            "overrides": [o for o in job_return.overrides or [] if not o.startswith("trial=")],
            "state": "failed" if failed else "pruned" if (folder / PRUNED).exists() else "done",
            "metrics": {} if failed else _metrics(config, job_return._return_value, folder),
        }
        folder.mkdir(exist_ok=True)  # a run that is refused leaves none
        (folder / RESULT).write_text(json.dumps(content) + "\n", encoding="utf-8")
        _write(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; without a search, a failed job means exit status 1."""
        folder = Path(config.hydra.sweep.dir)
        found = _write(folder)
        if not found:
            return
        header, *rows = ([job, *cells] for job, _, *cells in found)  # columns say what folders say
        table = Table(*map(terminal, header), title=terminal(folder))
        for row in rows:
            table.add_row(*(terminal(_short(cell)) for cell in row))
        console().print(table)
        if any(row[-1] == "failed" for row in rows) and _is_grid(config):
            sys.exit(1)  # a search goes on without the failed ones


def _is_grid(config: DictConfig) -> bool:
    """Whether a job is run for each combination of values, by Hydra's own sweeper."""
    return config.hydra.runtime.choices["hydra/sweeper"] == "basic"


def _unnamed(config: DictConfig) -> list[str]:
    """The keys of the command line that do not name the folders of the jobs.

    The keys with several values do; all keys of a grid of one job; and none where a value is
    given twice, so that the folders are numbered.
    """
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    swept = [o for o in overrides if o.is_sweep_override()]
    choices = [list(o.sweep_string_iterator()) for o in swept if isinstance(o.value(), ChoiceSweep)]
    if any(len(set(values)) < len(values) for values in choices):
        swept = []
    elif _is_grid(config) and not swept:
        swept = overrides
    return [o.key_or_group for o in overrides if o not in swept]


def _metrics(config: DictConfig, value: Any, folder: Path) -> dict[str, float]:
    """What a job came to: the optimised metrics, and those of the test set if it was tested."""
    metric = config.get("optimized_metric") or []
    names, values = ([metric], [value]) if isinstance(metric, str) else (metric, value or [])
    found = dict(zip(names, values, strict=True))
    if config.get("test") and (folder / TEST).is_file():
        report = json.loads((folder / TEST).read_text(encoding="utf-8"))
        found |= {f"test/{name}": report[name] for name in TESTED}
    return found


def _failed(error: BaseException) -> Failed:
    """Log what a job raised: a `UserError` as one sentence, anything else with its traceback."""
    if isinstance(error, UserError) and not os.environ.get("QCS_TRACEBACK"):
        log.error("error: %s (QCS_TRACEBACK=1 shows the traceback)", error)
        return Failed(str(error))
    log.error("the job failed; the others go on", exc_info=error)
    return Failed(f"{type(error).__name__}: {error}")


def _write(folder: Path) -> list[list[str]]:
    """Write the results of all jobs into summary.csv; return its rows, the header first."""
    found: list[tuple[str, Any]] = []
    for path in folder.glob(f"*/{RESULT}"):
        try:
            found.append((path.parent.name, json.loads(path.read_text(encoding="utf-8"))))
        except ValueError:  # a job beside this one is writing it
            continue
    if not found:
        return []
    names, jobs = zip(*sorted(found, key=lambda item: item[1]["job"]), strict=True)
    pairs = [dict(map(_pair, job["overrides"])) for job in jobs]
    varied = sorted({k for p in pairs for k in p if len({q.get(k) for q in pairs}) > 1})
    measured = list(dict.fromkeys(name for job in jobs for name in job["metrics"]))
    rows = [["job", "folder", *varied, *measured, "state"]]
    for name, job, p in zip(names, jobs, pairs, strict=True):
        metrics = (json.dumps(job["metrics"][k]) if k in job["metrics"] else "" for k in measured)
        cells = (*(p.get(k, "") for k in varied), *metrics)
        rows.append([str(job["job"]), name, *cells, job["state"]])
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
