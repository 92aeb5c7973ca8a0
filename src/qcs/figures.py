"""The paper's figures of any checkpoint: `python -m qcs.figures figure=attention ckpt=...`."""

import glob
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import MinLen
from omegaconf import DictConfig
from torch import Tensor
from typing_extensions import TypedDict

from qcs import plots
from qcs.checkpoints import recipe
from qcs.checkpoints.load import Checkpoint, load_checkpoint
from qcs.checkpoints.paths import named, single
from qcs.config.bounds import Count, Seed, Workers
from qcs.config.command import command
from qcs.config.errors import UserError, missing_extra
from qcs.config.escape import terminal
from qcs.config.options import resolve
from qcs.data.datasets import Faces
from qcs.data.manifest import Manifest
from qcs.data.transforms import unnormalised
from qcs.evaluation.apply import apply, pick_device
from qcs.evaluation.figures import faces_by_class, pairs_by_class
from qcs.evaluation.files import write_csv
from qcs.evaluation.metrics import check_finite, confusion_matrix
from qcs.models.attention_maps import class_token_attention, pair_maps
from qcs.training import build
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


@torch.no_grad()
def attention(config: dict[str, Any], path: Path) -> None:
    """Draw where base branches look, on the same faces of each class, a row for each checkpoint.

    What is drawn is the attention of the class token, all levels together.

    Raises:
        UserError: no checkpoint, or checkpoints of different classes or grids.
    """
    loaded = {name: _load(config, ckpt) for name, ckpt in _checkpoints(config).items()}
    first = next(iter(loaded.values()))
    data = _data(config, first)
    rows = faces_by_class(data, config["seed"], config["faces_per_class"])
    maps, titles, correct = [], [], []
    for name, checkpoint in loaded.items():
        _same_classes(checkpoint, data, name)
        images = _images(config, data, checkpoint, rows)
        shown = class_token_attention(checkpoint.network, images)
        answers = checkpoint.network(images).softmax(1)
        check_finite(torch.cat([answers, shown.flatten(1)], dim=1).cpu(), data.select(rows))
        shares, predicted = answers.max(1)
        titles.append([_answer(data, p, q) for p, q in zip(predicted, shares, strict=True)])
        correct.append((predicted.cpu().numpy() == data.labels[rows]).tolist())
        maps.append(shown.sum(1).cpu())
    if len({m.shape for m in maps}) > 1:
        raise UserError("the checkpoints of compare differ in model.grid: draw them one by one")
    pixels = unnormalised(_images(config, data, first, rows).cpu(), first.transform)
    names = [data.class_names[label] for label in data.labels[rows]]
    plots.class_token_maps(
        pixels,
        torch.stack(maps),
        titles,
        path,
        list(loaded),
        _heading(config, data),
        correct,
        names,
    )


def _checkpoints(config: dict[str, Any]) -> dict[str, str]:
    """The checkpoints to draw, a row each, by name."""
    return {
        name if len(files) == 1 else f"{name} {number}": file
        for name, files in named(config["ckpt"], config["compare"]).items()
        for number, file in enumerate(files, start=1)
    }


def _answer(data: Manifest, predicted: Tensor, share: Tensor) -> str:
    return f"{terminal(data.class_names[predicted])} {100 * share:.0f} %"


@torch.no_grad()
def pairs(config: dict[str, Any], path: Path) -> None:
    """Draw the maps between one face of each class and one of each other class.

    On the diagonal a face is compared with another one of its class, and what they share is drawn;
    elsewhere what tells the two apart.

    Raises:
        UserError: a network without cross similarity attention, or without that level.
    """
    checkpoint = _load(config, single(config["ckpt"], config["compare"], "figure=pairs"))
    data = _data(config, checkpoint)
    _same_classes(checkpoint, data)
    rows = pairs_by_class(data, config["seed"])
    number = len(rows) // 2
    images = _images(config, data, checkpoint, rows)
    labels = torch.from_numpy(data.labels[rows])
    same = (labels[:, None] == labels).to(images.device)
    maps = pair_maps(checkpoint.network, images, same).cpu()  # (2K, 2K, L, N)
    check_finite(maps, data.select(rows), "maps")
    levels, level = maps.shape[2], config["level"]
    if level is not None and not 1 <= level <= levels:
        raise UserError(f"level={level}: the network has levels 1 to {levels}")
    maps = maps.mean(2) if level is None else maps[:, :, level - 1]
    partner = torch.arange(number)
    grid = maps[:number, :number].clone()
    grid[partner, partner] = maps[partner, partner + number]
    pixels = unnormalised(images.cpu(), checkpoint.transform)
    names = [data.class_names[label] for label in data.labels[rows[:number]]]
    what = "mean of the levels" if level is None else f"level {level}"
    heading = f"{_heading(config, data)}: cross similarity, {what}"
    plots.pair_grid(pixels[:number], grid, names, path, heading, pixels[number:])


@torch.no_grad()
def embedding(config: dict[str, Any], path: Path) -> None:
    """Draw t-SNE of the features before the head, and write the points beside it.

    Raises:
        UserError: scikit-learn is not installed.
        UserError: fewer than four faces.
    """
    try:
        from sklearn.manifold import TSNE
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise missing_extra("figures", "figure=embedding needs") from error
    checkpoint = _load(config, single(config["ckpt"], config["compare"], "figure=embedding"))
    data = _data(config, checkpoint)
    rng = np.random.default_rng(config["seed"])
    number = max(config["max_faces"], 0)
    data = data.select(np.sort(rng.permutation(len(data))[:number]))
    classes = len(np.unique(data.labels))
    if len(data) < 4 or not 2 <= classes < len(data):
        raise UserError(
            "an embedding needs four faces and two classes, and more faces than classes, got "
            f"{len(data)} faces of {classes} classes: raise max_faces or take another split"
        )
    features = _apply(config, data, checkpoint, lambda x: checkpoint.network.base(x)[1]).numpy()
    if (features == features[0]).all():
        raise UserError("the network gives every face the same features: there is nothing to draw")
    perplexity = min(30.0, (len(data) - 1) / 3)
    options = {"init": "pca", "perplexity": perplexity, "random_state": config["seed"]}
    points = TSNE(**options).fit_transform(features)
    score = silhouette_score(features, data.labels)
    names = [data.class_names[label] for label in data.labels]
    rows = zip(data.paths.tolist(), names, *points.T.round(4).tolist(), strict=True)
    write_csv(path.with_suffix(".csv"), ("path", "label", "x", "y"), rows)
    heading = f"{_heading(config, data)}: t-SNE of {len(data)} faces, silhouette {score:.2f}"
    plots.embedding(points, data.labels, data.class_names, path, heading)


@torch.no_grad()
def confusion(config: dict[str, Any], path: Path) -> None:
    """Draw the confusion matrix of a split."""
    checkpoint = _load(config, single(config["ckpt"], config["compare"], "figure=confusion"))
    data = _data(config, checkpoint)
    _same_classes(checkpoint, data)
    predicted = _apply(config, data, checkpoint, checkpoint.network).argmax(1)
    matrix = confusion_matrix(predicted, torch.from_numpy(data.labels), len(data.class_names))
    share = 100 * matrix.diagonal().sum() / matrix.sum()
    title = f"{_heading(config, data)}: top-1 {share:.2f} %"
    plots.confusion(matrix, data.class_names, path, title)


def curves(config: dict[str, Any], path: Path) -> None:
    """Draw losses and accuracies of runs by epoch.

    Raises:
        UserError: no such run, or one without csv/metrics.csv.
        UserError: no runs given.
    """
    wanted = config["runs"]
    if not wanted:
        raise UserError("runs is not set: write runs=[runs/one,runs/two] or runs='runs/*'")
    found = {}
    for pattern in wanted if isinstance(wanted, list) else [wanted]:
        for folder in _folders(str(pattern)):
            table = folder / "csv" / "metrics.csv"
            if not table.is_file():
                raise UserError(f"no {table}: runs are the folders that training wrote")
            found[str(folder)] = by_epoch(table)
            if not found[str(folder)]:
                raise UserError(f"{table} holds no whole epoch: there is nothing to draw yet")
    for folder, values in found.items():
        for metric, points in values.items():
            lost = [epoch for epoch, value in points if not math.isfinite(value)]
            if lost:
                what = "%s: %s is not finite in %d of %d epochs, first in epoch %d: left out"
                log.warning(what, folder, metric, len(lost), len(points), lost[0])
    plots.curves(found, path, "Losses and accuracies by epoch")


def _folders(pattern: str) -> list[Path]:
    """The folders that a pattern stands for; a path that exists stands for itself."""
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    return [f for f in map(Path, sorted(glob.glob(str(path)))) if f.is_dir()] or [path]


def _load(config: dict[str, Any], path: str) -> Checkpoint:
    checkpoint = load_checkpoint(path, config.get("trust"))
    checkpoint.network.to(pick_device(config["device"]))
    return checkpoint


def _data(config: dict[str, Any], checkpoint: Checkpoint) -> Manifest:
    dataset = recipe.chosen_dataset(checkpoint.recipe, config.get("dataset"))
    transform, trust = checkpoint.recipe["transform"], config.get("trust")
    return build.manifest(dataset, [transform], config["store"], trust).split(config["split"])


def _same_classes(checkpoint: Checkpoint, data: Manifest, name: str = "") -> None:
    if checkpoint.class_names != data.class_names:
        raise UserError(
            f"the checkpoint {name} knows {', '.join(checkpoint.class_names)} and {data.root} has "
            f"{', '.join(data.class_names)}; this figure needs the same, in the same order"
        )


def _images(
    config: dict[str, Any], data: Manifest, checkpoint: Checkpoint, rows: np.ndarray
) -> Tensor:
    faces = Faces(data, checkpoint.transform)
    return torch.stack([faces[int(row)]["images"] for row in rows]).to(
        pick_device(config["device"])
    )


def _apply(
    config: dict[str, Any],
    data: Manifest,
    checkpoint: Checkpoint,
    function: Callable[[Tensor], Tensor],
) -> Tensor:
    options = {k: config[k] for k in ("batch_size", "num_workers")}
    device = pick_device(config["device"])
    return apply(function, data, checkpoint.transform, device, **options)


def _heading(config: dict[str, Any], data: Manifest) -> str:
    return f"{data.root.resolve().name}, {config['split']}"


FIGURES = {f.__name__: f for f in (attention, pairs, embedding, confusion, curves)}


@command("figures")
def main(cfg: DictConfig) -> None:
    """Compose, check, draw."""
    config = resolve(cfg, Settings)
    path = Path(config["run_dir"]) / f"{config['figure']}.{config['format']}"
    FIGURES[config["figure"]](config, path)
    log.info("%s", path)


if __name__ == "__main__":
    main()
