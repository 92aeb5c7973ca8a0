"""The paper's figures of any checkpoint: `python -m qcs.figures figure=attention ckpt=...`."""

import glob
import logging
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.checkpoints.datasets import checkpoint_manifest
from qcs.checkpoints.load import Checkpoint, load_checkpoint
from qcs.checkpoints.paths import checkpoint_groups, only_checkpoint
from qcs.config.bounds import Count, Seed, Workers
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import resolve
from qcs.evaluation import figures
from qcs.evaluation.device import pick_device
from qcs.training.loggers import by_epoch

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/figures.yaml."""

    figure: Literal["attention", "pairs", "embedding", "confusion", "curves"]
    ckpt: str | None
    trust: str | list[str] | None
    compare: Annotated[dict[str, str] | list[str], MinLen(1)] | None
    runs: str | Annotated[list[str], MinLen(1)] | None
    dataset: dict
    format: Literal["png", "pdf", "svg"]
    split: Literal["train", "val", "test"]
    seed: Seed
    faces_per_class: Count
    level: Count | None
    max_faces: Count
    batch_size: Count
    num_workers: Workers
    device: str | None
    store: str | None
    run_dir: str


def draw(config: dict[str, Any], path: Path) -> None:
    """Draw the figure that a config names.

    Raises:
        UserError: a checkpoint, a data set or a run is not there, or does not fit the figure.
    """
    figure, seed = config["figure"], config["seed"]
    if figure == "curves":
        figures.curves(_runs(config["runs"]), path)
        return
    checkpoints = {name: _load(config, file) for name, file in _files(config).items()}
    first = next(iter(checkpoints.values()))
    images = _images(config, first)
    if figure == "attention":
        figures.attention(checkpoints, images, path, seed, config["faces_per_class"])
    elif figure == "pairs":
        figures.pairs(first, images, path, seed, config["level"])
    elif figure == "embedding":
        figures.embedding(first, images, path, seed, config["max_faces"])
    else:
        figures.confusion(first, images, path)


def _files(config: dict[str, Any]) -> dict[str, str]:
    """The checkpoints to draw, by the name of their row; only attention takes several."""
    figure, ckpt, compare = config["figure"], config["ckpt"], config["compare"]
    if figure != "attention":
        return {"": only_checkpoint(ckpt, compare, f"figure={figure}")}
    return {
        name if len(files) == 1 else f"{name} {number}": file
        for name, files in checkpoint_groups(ckpt, compare).items()
        for number, file in enumerate(files, start=1)
    }


def _load(config: dict[str, Any], file: str) -> Checkpoint:
    checkpoint = load_checkpoint(file, config.get("trust"))
    checkpoint.network.to(pick_device(config["device"]))
    return checkpoint


def _images(config: dict[str, Any], checkpoint: Checkpoint) -> figures.Images:
    dataset, trust = config.get("dataset"), config.get("trust")
    data = checkpoint_manifest(checkpoint.recipe, dataset, config["store"], trust)
    return figures.Images(
        data=data.split(config["split"]),
        heading=f"{data.root.resolve().name}, {config['split']}",
        device=pick_device(config["device"]),
        batch_size=config["batch_size"],
        num_workers=config["num_workers"],
    )


def _runs(patterns: str | list[str] | None) -> dict[str, figures.Curves]:
    """The metrics of the runs that folders or patterns name.

    Raises:
        UserError: there is no such run, or it has no csv/metrics.csv with a whole epoch.
    """
    if not patterns:
        raise UserError("runs is not set: write runs=[runs/one,runs/two] or runs='runs/*'")
    found = {}
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        for folder in _folders(str(pattern)):
            table = folder / "csv" / "metrics.csv"
            if not table.is_file():
                raise UserError(f"no {table}: runs are the folders that training wrote")
            found[str(folder)] = by_epoch(table)
            if not found[str(folder)]:
                raise UserError(f"{table} holds no whole epoch: there is nothing to draw yet")
    return found


def _folders(pattern: str) -> list[Path]:
    """The folders that match a pattern; the name of a folder that exists is no pattern."""
    path = Path(os.path.expanduser(pattern))
    if path.exists():
        return [path]
    return [f for f in map(Path, sorted(glob.glob(str(path)))) if f.is_dir()] or [path]


@command("figures")
def main(cfg: DictConfig) -> None:
    """Draw the figure that the command line names, into the run's folder."""
    config = resolve(cfg, Settings)
    path = Path(config["run_dir"]) / f"{config['figure']}.{config['format']}"
    draw(config, path)
    log.info("%s", path)


if __name__ == "__main__":
    main()
