"""A study on one data set: variants x seeds, matched for images seen and for time, and a report.

    python scripts/study.py scripts/study_ferplus.yaml dataset.path=ferplus.zip --minutes 60

Each run is a Hydra multirun of one job in a folder of its own, so `hydra/launcher=...` may send it
elsewhere. Runs go side by side, by table and seed. When the minutes are over those under way are
asked to save (SIGTERM); the same command goes on with them. What is finished is kept in the
report's study.json, so a study goes on without the folders of its finished runs as well.

A study file holds: title; common (overrides of all runs); batch (images of a step, whatever the
roles); variants (overrides by name); and either
- seeds, images (seen by a run), epochs, and time, the variant as long as whose runs the second
  table's are, for which it is measured first how long an image takes, in turns; or
- tables by name, each with its train_images (how many there are), images (seen), seeds and
  variants, and choose: the key whose values validation chooses between, for each variant and table,
  with these seeds; or null.
Variants and tables may be added later.
"""

import argparse
import csv
import json
import logging
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qcs import plots
from qcs.config import threads
from qcs.config.errors import UserError
from qcs.config.keys import CONF
from qcs.config.options import resolve
from qcs.evaluation import compare
from qcs.evaluation.files import write_json
from qcs.train import Settings
from qcs.training import build
from qcs.training.last_checkpoint import STOPPED
from qcs.training.loggers import metrics_file
from qcs.training.sam import perturbed

KEYS = {"title", "common", "batch", "variants"}
ONE = {"images", "epochs", "seeds", "time"}  # a study of one number of images
SEVERAL = {"tables", "choose"}  # or of several
SCORES = ("acc", "mean_acc", "f1", "ece")
ROUNDS = 5  # of the timing
JOB = "job"  # the one of a run's multirun
log = logging.getLogger("study")


class Run(NamedTuple):
    """One training; two tables may share it."""

    variant: str
    images: int  # of training that it sees
    seed: int
    overrides: tuple[str, ...]
    steps: int
    train_images: int | None = None  # that there are to see
    value: Any = None  # of the setting that validation chooses
    trial: bool = False  # whether it is trained for that choice alone, and not tested

    @property
    def name(self) -> str:
        """The run's folder, and its key in study.json."""
        parts = [_folded(self.variant), self.images, self.seed]
        parts += [f"of{self.train_images}"] * (self.train_images is not None)
        parts += [self.value] * (self.value is not None)
        return "-".join(map(str, parts))


def _folded(variant: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", variant.lower())


class Study:
    """A study file, the overrides of the command line, and where everything goes.

    Args:
        file: YAML, see the module.
        extra: overrides of every run.
        runs: folder of the runs' folders.
        report: folder of study.json and the report.

    Raises:
        ValueError: a key that a study does not have or lacks.
        FileNotFoundError: no such file.
    """

    def __init__(self, file: Path, extra: Sequence[str], runs: Path, report: Path) -> None:
        if not file.is_file():
            raise UserError(f"no study file at {file}; ours are scripts/study_*.yaml")
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        keys = KEYS | (SEVERAL if "tables" in content else ONE)
        if wrong := set(content) ^ keys:
            raise UserError(f"{file}: {', '.join(sorted(wrong))}: a study has {sorted(keys)}")
        named = {content.get("time")} - {None}
        named |= {v for table in content.get("tables", {}).values() for v in table["variants"]}
        if unknown := sorted(named - set(content["variants"])):
            raise UserError(f"{file}: {', '.join(unknown)} is none of its variants")
        if len({_folded(name) for name in content["variants"]}) < len(content["variants"]):
            raise UserError(
                f"{file}: two variants have the same letters and digits in their names, by which "
                "their runs are kept: rename one"
            )
        self.content, self.extra, self.runs, self.report = content, list(extra), runs, report
        report.mkdir(parents=True, exist_ok=True)
        self.path = report / "study.json"
        decisive = ("common", "images", "epochs", "batch", "variants")
        asked = {k: content[k] for k in decisive if k in content}
        # Of a file the name alone, as it may lie elsewhere now; of the data set nothing is kept.
        given = {key: value for key, _, value in (o.partition("=") for o in extra)}
        told = {k: PurePath(v).name for k, v in given.items() if k != "dataset.path"}
        asked |= {"overrides": told, "chosen": (content.get("choose") or {}).get("key")}
        self.kept = {"study": asked, "seconds_per_image": {}, "tried": {}, "runs": {}}
        if self.path.exists():
            self.kept |= json.loads(self.path.read_text())
            older = {key: asked[key] for key in ("overrides", "chosen")}  # had not noted these
            before, now = older | self.kept["study"], content["variants"]
            before.pop("time", None)
            merged = before | asked | {"variants": before["variants"] | now}
            if merged != before | {"variants": now | before["variants"]}:
                raise UserError(
                    f"{self.path} is of other settings than {file} and this command line: choose "
                    "another --report"
                )
            self.kept["study"] = merged
        self.configs = {name: self._config(name) for name in content["variants"]}

    def _config(self, variant: str) -> dict[str, Any]:
        """The variant's config, plain and checked."""
        overrides = [*self.content["common"], *self.content["variants"][variant], *self.extra]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolve(compose("train", [*overrides, "run_dir=unused"]), Settings)

    def save(self) -> None:
        """Write study.json, whole or not at all."""
        part = self.path.with_suffix(".part")
        write_json(part, self.kept)
        part.replace(self.path)

    def measured(self) -> bool:
        """Whether it is known how long an image takes in each variant."""
        return set(self.configs) <= set(self.kept["seconds_per_image"])

    def roles(self, variant: str) -> int:
        """Images of a group."""
        return self.configs[variant]["model"]["roles"]

    def tables(self) -> dict[str, dict[str, list[Run]]]:
        """The runs of each table, by variant, in the order of the seeds.

        A variant has none before its setting is chosen.
        """
        if "tables" in self.content:
            return {
                table: {v: self._chosen_runs(v, **options) for v in options["variants"]}
                for table, options in self.content["tables"].items()
            }
        images, speed = self.content["images"], self.kept["seconds_per_image"]
        seen = {"images": dict.fromkeys(self.configs, images)}
        if (reference := self.content["time"]) is not None:
            seconds = images * speed[reference]
            seen["time"] = {v: round(seconds / speed[v]) for v in self.configs}
        return {
            table: {v: [self._run(v, n, s) for s in self.content["seeds"]] for v, n in by.items()}
            for table, by in seen.items()
        }

    def trials(self, table: str) -> list[Run]:
        """The runs of a table by which each variant's setting is chosen."""
        choose, options = self.content.get("choose"), self.content.get("tables", {}).get(table)
        if not choose or not options:
            return []
        return [
            run
            for seed in choose["seeds"]
            for value in choose["values"]
            for variant in options["variants"]
            for run in [self._run(variant, options["images"], seed, options["train_images"], value)]
        ]

    def tried(self, variant: str, images: int, train_images: int, **_: Any) -> dict[Any, float]:
        """Mean validation accuracy of each value that was tried with all of its seeds."""
        choose, found = self.content["choose"], {}
        for value in choose["values"]:
            runs = [self._run(variant, images, s, train_images, value) for s in choose["seeds"]]
            records: list[Any] = [self.kept["tried"].get(run.name) for run in runs]
            if all(records):
                found[value] = statistics.mean(record["val_acc"] for record in records)
        return found

    def _chosen_runs(
        self, variant: str, train_images: int, images: int, seeds: Sequence[int], **_: Any
    ) -> list[Run]:
        value = None
        if self.content["choose"]:
            tried = self.tried(variant, images, train_images)
            if len(tried) < len(self.content["choose"]["values"]):
                return []
            value = max(tried, key=tried.__getitem__)
        return [self._run(variant, images, seed, train_images, value) for seed in seeds]

    def _run(
        self,
        variant: str,
        images: int,
        seed: int,
        train_images: int | None = None,
        value: Any = None,
    ) -> Run:
        roles = self.roles(variant)
        # Of a number of training images, an epoch of the plain classifier is one pass.
        epochs = -(-images // train_images) if train_images else self.content["epochs"]
        groups = max(1, round(images / epochs / roles))
        batch = max(1, self.content["batch"] // roles)
        overrides = [*self.content["common"], *self.content["variants"][variant], *self.extra]
        overrides += [
            f"trainer.max_epochs={epochs}",
            f"loader.samples_per_epoch={groups}",
            f"loader.batch_size={batch}",
            f"seed={seed}",
            "ckpt=auto",
            "optimized_metric=test/acc",
        ]
        if train_images:
            overrides += [f"loader.train_images={train_images}"]
            overrides += [f"++trainer.check_val_every_n_epoch={epochs}"]
        if value is not None:
            overrides.append(f"{self.content['choose']['key']}={value}")
        seen, steps = groups * roles * epochs, -(-groups // batch) * epochs
        return Run(variant, seen, seed, tuple(overrides), steps, train_images, value)

    def todo(self) -> list[Run]:
        """What can be run now, each once, by table and seed, so that the finished compare."""
        runs: list[Run] = []
        for table, by_variant in self.tables().items():
            trials = (run._replace(trial=True) for run in self.trials(table))
            runs += [run for run in trials if run.name not in self.kept["tried"]]
            rows = zip_longest(*by_variant.values())
            runs += [run for row in rows for run in row if run]
        return [run for run in dict.fromkeys(runs) if run.name not in self.kept["runs"]]


# -- how long an image takes -----------------------------------------------------------------


def measure(study: Study) -> None:
    """Seconds of a training step by image, of each variant, in turns; medians, kept."""
    steps = {name: _step(config, study) for name, config in study.configs.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    # Other work on the machine is not counted; a GPU's own is.
    clock = time.perf_counter if torch.cuda.is_available() else time.thread_time
    for number in range(ROUNDS + 2):
        for name, (step, images) in steps.items():
            start = clock()
            step()
            if number > 1:  # the first are slow
                times[name].append((clock() - start) / images)
    found = {name: round(statistics.median(values), 8) for name, values in times.items()}
    log.info("ms an image: %s", {k: round(1000 * v, 3) for k, v in found.items()})
    study.kept["seconds_per_image"] |= found
    study.save()


def _step(config: dict[str, Any], study: Study) -> tuple[Callable[[], None], int]:
    """Training steps of a variant on one of its batches, and the images that they see."""
    roles = config["model"]["roles"]
    options = {"batch_size": max(1, study.content["batch"] // roles), "num_workers": 0}
    data = build.datamodule(config | {"loader": config["loader"] | options})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = build.module(config, data).to(device).train()
    batch = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer({k: v.to(device) for k, v in batch.items()})
    optimizer = module.make_optimizer(module.network.parameters())
    bf16 = config["trainer"].get("precision") == "bf16-mixed"

    def gradient() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            if module.cuda_graph is not None:
                gradients = module.cuda_graph({k: v for k, v in batch.items() if k != "rows"})[-1]
                for parameter, found in zip(module.trained(), gradients, strict=True):
                    parameter.grad = found
                return
            out = module.network.compare(batch["images"], batch.get("groups"))
            loss = module.loss(out, batch["labels"])["loss"]
        loss.backward()

    def steps() -> None:  # of which SAM takes one
        for number in range(module.sam_every):
            gradient()
            if module.rho and number == 0:
                with perturbed(module.network.parameters(), module.rho):
                    gradient()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return steps, len(batch["images"]) * roles * module.sam_every


# -- running ---------------------------------------------------------------------------------


def run_all(study: Study, jobs: int, end: float) -> list[str]:
    """Run what is not finished, `jobs` at a time, until the time `end`; names of the failed."""
    log.info("%d runs to do", len(study.todo()))
    active: dict[subprocess.Popen, Run] = {}
    failed: list[str] = []
    try:
        while True:
            under_way = {run.name for run in active.values()}
            waiting = [r for r in study.todo() if r.name not in under_way | set(failed)]
            if time.time() >= end:
                stop(active)
            elif waiting and len(active) < jobs:
                active[start(study, waiting[0], jobs)] = waiting[0]
                continue
            if not active:
                return failed
            for process in [p for p in active if p.poll() is not None]:
                run = active.pop(process)
                if not finish(study, run, process.returncode):
                    failed += [run.name] * (process.returncode != STOPPED)
            time.sleep(0.5)
    finally:
        stop(active)


def start(study: Study, run: Run, jobs: int) -> subprocess.Popen:
    """Start a run, or let it go on."""
    folder = study.runs / run.name
    folder.mkdir(parents=True, exist_ok=True)
    where = [f"hydra.sweep.dir={folder}", f"hydra.sweep.subdir={JOB}"]
    workers = study.configs[run.variant]["loader"]["num_workers"]
    shared = threads.of_jobs(jobs, workers)
    told = f"OMP_NUM_THREADS={shared['OMP_NUM_THREADS']}, {workers} loader processes"
    log.info("%s: %s, %s", time.strftime("%H:%M:%S"), run.name, told)
    # A trial that is chosen goes on from its checkpoint, with the test alone.
    goal = ["test=false", "optimized_metric=val/acc"] if run.trial else []
    return subprocess.Popen(
        [sys.executable, "-m", "qcs.train", "-m", *run.overrides, *goal, *where],
        stdout=(folder / "output.log").open("a"),
        stderr=subprocess.STDOUT,
        env=os.environ | shared,
    )


def stop(active: dict[subprocess.Popen, Run]) -> None:
    """Ask runs to save and end, and wait for them."""
    for process in active:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in active:
        process.wait()


def finish(study: Study, run: Run, status: int) -> bool:
    """Keep what a run came to; False where it is not finished."""
    folder = study.runs / run.name
    metrics, table = (folder / JOB / "test" / f for f in ("metrics.json", "predictions.csv"))
    if status or not (run.trial or metrics.exists()):
        stopped = status == STOPPED
        log.info("%s %s", run.name, "goes on next time" if stopped else f"failed: see {folder}")
        return False
    record: dict[str, Any] = {"variant": run.variant, "images": run.images, "seed": run.seed}
    if run.train_images:
        record["train_images"] = run.train_images
    if run.value is not None:
        record["value"] = run.value
        record["val_acc"] = validated(folder / JOB)
        study.kept["tried"][run.name] = dict(record)
        log.info("%s: validation top-1 %.2f", run.name, 100 * record["val_acc"])
    if not run.trial:
        study.kept["runs"][run.name] = record | tested(metrics, table)
        log.info("%s: top-1 %.2f", run.name, 100 * study.kept["runs"][run.name]["acc"])
    study.save()
    return True


def validated(folder: Path) -> float:
    """The last validation accuracy of a run."""
    with metrics_file(folder / "csv").open(encoding="utf-8") as file:
        return float([row["val/acc"] for row in csv.DictReader(file) if row["val/acc"]][-1])


def tested(metrics: Path, table: Path) -> dict[str, Any]:
    """The scores of a run's test, and of each image whether it was right."""
    result = json.loads(metrics.read_text())
    with table.open(encoding="utf-8") as file:
        place = next(file).rstrip("\n").split(",").index("correct")
        # Names of files may hold commas; what follows them does not.
        width = len(result["classes"]) + 4
        hits = [line.rstrip("\n").rsplit(",", width - 1)[place] == "1" for line in file]
    found = {key: result[key] for key in SCORES}
    found["intervals"] = {"acc": result["intervals"]["acc"]}
    return found | {"correct": np.packbits(hits).tobytes().hex(), "test_images": len(hits)}


# -- report ----------------------------------------------------------------------------------


def members(study: Study, runs: Sequence[Run]) -> list[compare.Member]:
    """Those of a variant's runs that are finished."""
    kept = (study.kept["runs"].get(run.name) for run in runs)
    return [
        compare.Member(f"seed {r['seed']}", r, _unpacked(r["correct"], r["test_images"]))
        for r in kept
        if r
    ]


def _unpacked(text: str, number: int) -> torch.Tensor:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=number)
    return torch.from_numpy(bits).bool()


def write_report(study: Study, command: str) -> None:
    """Write report.md, and for each table compare.json, compare.md and a picture."""
    lines = [f"# {study.content['title']}", "", f"`{command}`", "", *_settings(study)]
    curves: dict[int, dict[str, list[tuple[float, ...]]]] = {}
    for table, by_variant in study.tables().items():
        groups = {name: members(study, runs) for name, runs in by_variant.items()}
        groups = {name: found for name, found in groups.items() if found}
        if not groups:
            continue
        about = {"dataset": study.content["title"], "split": "test", "resamples": 2000}
        about["images"] = next(iter(groups.values()))[0].result["test_images"]
        compare.write(study.report / table, groups, about, by_name=True)
        text = (study.report / table / "compare.md").read_text(encoding="utf-8").splitlines()
        rows, rest = text[2:], [line for line in text[2:] if line.startswith("Percent")]
        lines += ["", f"## {_heading(study, table)}", "", *_costs(study, table, by_variant), ""]
        lines += [line for line in rows if line.startswith("|")] + ["", *rest, ""]
        lines += [*_by_seed(groups), "", f"![{table}]({table}/seeds.png)"]
        values: dict[str, Sequence[float]] = {
            name: [m.result["acc"] for m in found] for name, found in groups.items()
        }
        title = f"{study.content['title']}, {_heading(study, table).lower()}"
        plots.groups(values, study.report / table / "seeds.png", title)
        if options := study.content.get("tables", {}).get(table):
            curve = curves.setdefault(options["images"], {})
            for name, found in groups.items():
                curve.setdefault(name, []).append((options["train_images"], *_accuracy(found)))
    for seen, curve in curves.items():
        if len({point[0] for points in curve.values() for point in points}) > 1:
            title = f"{study.content['title']}: {seen:,} images seen"
            plots.accuracy_curve(curve, study.report / f"curve-{seen}.png", title)
            lines += ["", f"![Accuracy after {seen:,} images](curve-{seen}.png)"]
    (study.report / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _settings(study: Study) -> list[str]:
    """What all runs share, and the variants."""
    common, batch = study.content["common"], study.content["batch"]
    epochs = f"{study.content['epochs']} epochs, " if "epochs" in study.content else ""
    lines = [f"On {_machine()}; torch {torch.__version__}. All runs: `{' '.join(common)}`, "
             f"{epochs}batches of {batch} images.", "",
             "| variant | overrides | ms an image |", "|---|---|---|"]  # fmt: skip
    for name, overrides in study.content["variants"].items():
        speed = study.kept["seconds_per_image"].get(name)
        told = "" if speed is None else f"{1000 * speed:.2f}"
        lines.append(f"| {name} | {' '.join(f'`{o}`' for o in overrides)} | {told} |")
    return lines


def _heading(study: Study, table: str) -> str:
    options = study.content.get("tables", {}).get(table)
    if options is None:
        return f"Matched for {table}"
    return f"{options['train_images']:,} training images, {options['images']:,} seen ({table})"


def _costs(study: Study, table: str, by_variant: dict[str, list[Run]]) -> list[str]:
    """What a run of each variant takes, and how its setting was chosen."""
    choose = study.content.get("choose")
    head = ["", "images seen", "groups", "steps", "seconds of training"]
    head += [f"{choose['key']}: validation top-1"] if choose else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, run in ((name, runs[0]) for name, runs in by_variant.items() if runs):
        speed = study.kept["seconds_per_image"].get(name)
        cells = [name, f"{run.images:,}", f"{run.images // study.roles(name):,}", f"{run.steps:,}"]
        cells.append("" if speed is None else f"{run.images * speed:.0f}")
        if choose:
            tried = study.tried(name, **study.content["tables"][table])
            texts = {value: f"{value}: {100 * acc:.2f}" for value, acc in tried.items()}
            texts[run.value] = f"**{texts[run.value]}**"
            cells.append(", ".join(texts.values()))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _correct(found: Sequence[compare.Member]) -> torch.Tensor:
    return torch.stack([member.correct for member in found])


def _accuracy(found: Sequence[compare.Member]) -> tuple[float, ...]:
    """Mean top-1 of a variant's seeds, and its interval; that of one seed is over images."""
    right = _correct(found)
    of = compare.over_seeds(torch.zeros_like(right), right)
    return of["difference"], *(of["interval"] or found[0].result["intervals"]["acc"])


def _by_seed(groups: dict[str, list[compare.Member]]) -> list[str]:
    """Differences of top-1 to the first variant, seed by seed: runs of a seed draw alike."""
    first, *others = groups
    base = {m.result["seed"]: m for m in groups[first]}
    head = [f"top-1 - {first}, by seed", "mean", "interval", "sd", "of each seed"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in others:
        pairs = [(base[m.result["seed"]], m) for m in groups[name] if m.result["seed"] in base]
        if pairs:
            gap = compare.over_seeds(*(_correct(side) for side in zip(*pairs, strict=True)))
            interval = " to ".join(f"{100 * x:+.2f}" for x in gap["interval"] or ())
            spread = "" if gap["sd"] is None else f"{100 * gap['sd']:.2f}"
            each = ", ".join(f"{100 * x:+.2f}" for x in gap["by_seed"])
            cells = [name, f"{100 * gap['difference']:+.2f}", interval, spread, each]
            lines.append("| " + " | ".join(cells) + " |")
    told = ["", "The interval (95 %) is for other seeds and other images, from the analysis of "
            "variance of `qcs.evaluation.compare.over_seeds`."]  # fmt: skip
    return lines + told if others else []


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores ({platform.machine()}), no GPU"


def main() -> None:
    """Measure, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a study file, scripts/study_*.yaml")
    parser.add_argument("overrides", nargs="*", help="of every run: dataset.path=...")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of this call")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--runs", type=Path, help="folder of the runs, runs/NAME by default")
    parser.add_argument("--report", type=Path, help="of the report, RUNS/report by default")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # lets `run_all` stop its runs
    end = time.time() + 60 * options.minutes
    runs = (options.runs or Path("runs") / options.study.stem).resolve()
    try:
        study = Study(options.study, options.overrides, runs, options.report or runs / "report")
        if study.content.get("time") and not study.measured():
            measure(study)
    except UserError as error:
        sys.exit(f"error: {error}")
    failed = run_all(study, options.jobs, end)
    if not study.measured() and not study.todo():
        measure(study)
    write_report(study, " ".join(["python", *sys.argv]))
    log.info("report in %s", study.report)
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
