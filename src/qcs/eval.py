"""Evaluate checkpoints: `python -m qcs.eval ckpt=...`, on their own data set or another."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval, MinLen
from omegaconf import DictConfig
from torch import Tensor
from typing_extensions import TypedDict

from qcs.checkpoints import recipe
from qcs.checkpoints.load import Checkpoint, load_classifier
from qcs.checkpoints.paths import named
from qcs.config.bounds import Count, Workers
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import resolve
from qcs.data.class_names import Mapped, canonical, mapped
from qcs.data.manifest import Manifest
from qcs.evaluation import compare, report
from qcs.evaluation.apply import apply, pick_device
from qcs.evaluation.metrics import check_resamples
from qcs.inference.backends import Form, in_form
from qcs.training import build

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/eval.yaml."""

    ckpt: str | None
    trust: str | list[str] | None
    compare: Annotated[dict | list[str], MinLen(1)] | None
    dataset: dict
    format: Literal["png", "pdf", "svg"]
    split: Literal["train", "val", "test"]
    flip: bool
    restrict: bool
    resamples: Annotated[int, Interval(ge=0, le=1_000_000)]
    batch_size: Count
    form: Form
    num_workers: Workers
    device: str | None
    store: str | None
    run_dir: str


def evaluate(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Write the report of one split into the run's folder; of several checkpoints, their reports
    into folders below it, and a comparison.

    Returns:
        What each metrics.json holds.

    Raises:
        UserError: no such checkpoint or data set.
        UserError: no checkpoint given, an empty split, or classes that do not fit.
    """
    check_resamples(config["resamples"])
    groups = named(config["ckpt"], config["compare"])
    single = sum(map(len, groups.values())) == 1
    members: dict[str, list[compare.Member]] = {name: [] for name in groups}
    dataset, tables = config.get("dataset"), {}  # tables by size of prepared images
    common: Mapped | None = None
    for name, paths in groups.items():
        for number, path in enumerate(paths):
            checkpoint = load_classifier(path, config.get("trust"))
            dataset = recipe.chosen_dataset(checkpoint.recipe, dataset)
            found = _data(config, dataset, checkpoint, tables)
            _same(found, common) if common else _announce(found, config["restrict"])
            common = common or found
            folder = Path(config["run_dir"])
            folder = folder if single else folder / f"{name}-{number}"
            members[name].append(_report(config, path, checkpoint, found, folder))
    if not single:
        result = members[next(iter(members))][0].result
        about = {k: result[k] for k in ("dataset", "split", "images", "resamples")}
        compare.write(Path(config["run_dir"]), members, about)
    log.info("report in %s", config["run_dir"])
    return [member.result for group in members.values() for member in group]


def _data(
    config: dict[str, Any],
    dataset: dict[str, Any],
    checkpoint: Checkpoint,
    tables: dict[int | None, Manifest],
) -> Mapped:
    """The images in the checkpoint's classes; a data set is opened once for all of its size."""
    transform = checkpoint.recipe["transform"]
    size = transform.get("resize") or transform.get("size")  # a transform of the user's has none
    if size not in tables:
        whole = build.manifest(dataset, [transform], config["store"], config.get("trust"))
        tables[size] = whole.split(config["split"])
    return mapped(tables[size], checkpoint.class_names)


def _announce(found: Mapped, restrict: bool) -> None:
    """Say what does not fit between data set and checkpoint."""
    for name, number in found.left_out.items():
        log.warning("left out %d images of %s, which the checkpoint does not know", number, name)
    if found.lacking:
        free = "predicting it is a mistake (restrict=true rules it out)"
        what = "never predicted (restrict=true)" if restrict else free
        log.warning("the data set has no %s: %s", " and no ".join(found.lacking), what)


def _same(found: Mapped, first: Mapped) -> None:
    """Raise UserError where two checkpoints do not see the same images of the same classes."""
    theirs, ours = (sorted(map(canonical, f.data.class_names)) for f in (first, found))
    if theirs != ours:
        raise UserError(
            f"compare: the checkpoints know different classes, {', '.join(first.data.class_names)} "
            f"and {', '.join(found.data.class_names)}; evaluate them one by one"
        )
    if first.data.paths.tolist() != found.data.paths.tolist():
        raise UserError(
            "compare: of one size some images could not be prepared: write store=null to decode all"
        )


def _report(
    config: dict[str, Any],
    path: str,
    checkpoint: Checkpoint,
    found: Mapped,
    folder: Path,
) -> compare.Member:
    """Evaluate one checkpoint and write its report."""
    device = pick_device(config["device"])
    options = {k: config[k] for k in ("batch_size", "num_workers", "flip")}
    network, transform = checkpoint.network.to(device), checkpoint.transform
    network = in_form(network, config["form"], config["batch_size"])
    logits = apply(network, found.data, transform, device, **options)
    if config["restrict"]:
        logits = _restricted(logits, found)
    renamed = {old: new for old, new in found.names.items() if old != new}
    about = {
        "dataset": found.data.root.resolve().name,
        "split": config["split"],
        "ckpt": path,
        "selected_on": checkpoint.recipe["select_on"],
        "flip": config["flip"],
        "form": config["form"],
        "left_out": found.left_out,
        "without_images": found.lacking,
        "restricted": config["restrict"] and bool(found.lacking),
        "renamed": renamed,
    }
    labels = torch.from_numpy(found.data.labels)
    options = {"resamples": config["resamples"], "picture_format": config["format"]}
    result = report.write(folder, logits, labels, found.data, about, **options)
    return compare.Member(path, result, logits.argmax(1) == labels)


def _restricted(logits: Tensor, found: Mapped) -> Tensor:
    """Rule out the classes that the data set does not have."""
    lacking = {canonical(name) for name in found.lacking}
    out = [k for k, name in enumerate(found.data.class_names) if canonical(name) in lacking]
    logits = logits.clone()
    logits[:, out] = -torch.inf
    return logits


@command("eval")
def main(cfg: DictConfig) -> float:
    """Compose, check, evaluate; return the (first) top-1."""
    return evaluate(resolve(cfg, Settings))[0]["acc"]


if __name__ == "__main__":
    main()
