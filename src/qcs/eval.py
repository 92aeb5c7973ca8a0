"""Evaluate checkpoints: `python -m qcs.eval ckpt=...`, on their own data set or another."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval, MinLen
from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.checkpoints.load import Checkpoint, load_classifier
from qcs.checkpoints.paths import checkpoint_groups
from qcs.config.bounds import Count, Workers
from qcs.config.command import command
from qcs.config.options import resolve
from qcs.data.classes import ClassMatch
from qcs.evaluation import compare, report
from qcs.evaluation.apply import apply
from qcs.evaluation.data import EvaluationData, rule_out_lacking, warn_of_class_differences
from qcs.evaluation.device import pick_device
from qcs.evaluation.intervals import check_resamples
from qcs.inference.backends import Form
from qcs.inference.compiled import in_form

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
    """Write the report of a checkpoint on one split into the run's folder.

    Several checkpoints get a report each, in folders below the run's, and a comparison.

    Returns:
        What each metrics.json holds.

    Raises:
        UserError: there is no such checkpoint or data set, the split is empty, or the classes of
            checkpoint and data set do not fit.
    """
    check_resamples(config["resamples"])
    groups = checkpoint_groups(config["ckpt"], config["compare"])
    several = sum(map(len, groups.values())) > 1
    run_dir, trust = Path(config["run_dir"]), config.get("trust")
    data = EvaluationData(config.get("dataset"), config["split"], config["store"], trust)
    members: dict[str, list[compare.Member]] = {name: [] for name in groups}
    evaluated = 0
    for name, paths in groups.items():
        for number, path in enumerate(paths):
            checkpoint = load_classifier(path, trust)
            images = data.for_checkpoint(checkpoint)
            if not evaluated:
                warn_of_class_differences(images, config["restrict"])
            folder = run_dir / f"{name}-{number}" if several else run_dir
            members[name].append(_report(config, path, checkpoint, images, folder))
            evaluated += 1
    results = [member.result for group in members.values() for member in group]
    if several:
        context = {k: results[0][k] for k in ("dataset", "split", "images", "resamples")}
        compare.write(run_dir, members, context)
    log.info("report in %s", run_dir)
    return results


def _report(
    config: dict[str, Any], path: str, checkpoint: Checkpoint, images: ClassMatch, folder: Path
) -> compare.Member:
    """Evaluate one checkpoint and write its report."""
    device = pick_device(config["device"])
    network = in_form(checkpoint.network.to(device), config["form"], config["batch_size"])
    options = {k: config[k] for k in ("batch_size", "num_workers", "flip")}
    logits = apply(network, images.data, checkpoint.transform, device, **options)
    if config["restrict"]:
        logits = rule_out_lacking(logits, images)
    labels = torch.from_numpy(images.data.labels)
    context = {
        "dataset": images.data.root.resolve().name,
        "split": config["split"],
        "ckpt": path,
        "selected_on": checkpoint.recipe["select_on"],
        "flip": config["flip"],
        "form": config["form"],
        "left_out": images.left_out,
        "without_images": images.lacking,
        "restricted": config["restrict"] and bool(images.lacking),
        "renamed": {old: new for old, new in images.names.items() if old != new},
    }
    resamples, suffix = config["resamples"], config["format"]
    result = report.write(folder, logits, labels, images.data, context, resamples, suffix)
    return compare.Member(path, result, logits.argmax(1) == labels)


@command("eval")
def main(cfg: DictConfig) -> float:
    """Evaluate what the command line names; return the top-1 accuracy of the first checkpoint."""
    return evaluate(resolve(cfg, Settings))[0]["acc"]


if __name__ == "__main__":
    main()
