"""What the jobs of a multirun came to: a table on the screen and summary.csv, for any launcher."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from qcs.config.errors import Failed

RESULT, PRUNED = "result.json", "pruned"


class Summary(Callback):
    """Each job leaves result.json in its folder; at the end they are put together."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write what a job returned."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        done = job_return.status == JobStatus.COMPLETED
        done = done and not isinstance(job_return.return_value, Failed)
        content = {
            "overrides": [o for o in job_return.overrides or [] if not o.startswith("trial=")],
            "state": "done" if done else "failed",
            "value": job_return.return_value if done else None,
        }
        folder = Path(config.hydra.runtime.output_dir)
        if (folder / PRUNED).exists():
            content["state"] = "pruned"
        (folder / RESULT).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write summary.csv and print it."""
        folder = Path(config.hydra.sweep.dir)
        found = {p.parent: json.loads(p.read_text()) for p in folder.glob(f"*/{RESULT}")}
        if not found:
            return
        jobs = sorted(found.items(), key=lambda item: (len(item[0].name), item[0].name))
        pairs = [dict(o.lstrip("+").split("=", 1) for o in job["overrides"]) for _, job in jobs]
        varied = sorted({k for p in pairs for k in p if len({q.get(k) for q in pairs}) > 1})
        metric = str(config.get("optimized_metric"))
        header = ["job", *varied, metric, "state"]
        rows = [
            [path.name, *(p.get(k, "") for k in varied), _text(job["value"]), job["state"]]
            for (path, job), p in zip(jobs, pairs, strict=True)
        ]
        with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        table = Table(*header, title=str(folder))
        for row in rows:
            table.add_row(*map(_short, row))
        Console().print(table)
        if any(row[-1] == "failed" for row in rows) and "Basic" in config.hydra.sweeper._target_:
            sys.exit(1)  # a search goes on without the failed ones


def _short(text: str) -> str:
    """Four digits of a number are enough on the screen."""
    try:
        return text if "." not in text else f"{float(text):.4g}"
    except ValueError:
        return text


def _text(value: Any) -> str:
    return "" if value is None else json.dumps(value)
