"""The paper's figures of any checkpoint: `python -m qcs.figures figure=attention ckpt=...`."""

import csv
import glob
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import MinLen
from omegaconf import DictConfig
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from qcs import plots
from qcs.checkpoints.load import Checkpoint, load_checkpoint
from qcs.config.bounds import Count, Seed, Workers
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import plain
from qcs.data.datasets import Faces
from qcs.data.manifest import Manifest
from qcs.data.transforms import unnormalised
from qcs.evaluation.apply import apply, pick_device
from qcs.evaluation.metrics import confusion_matrix
from qcs.models.attention_maps import class_token_attention, pair_maps
from qcs.training import build
from qcs.training.loggers import by_epoch

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/figures.yaml."""

    figure: Literal["attention", "pairs", "embedding", "confusion", "curves"]
    ckpt: str | None
    compare: Annotated[dict[str, str] | list[str], MinLen(1)] | None
    runs: str | Annotated[list[str], MinLen(1)] | None
    dataset: NotRequired[dict | None]
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
    named = config["compare"] or {"": config["ckpt"]}
    if isinstance(named, list):
        named = {Path(path).stem: path for path in named}
    loaded = {name: _load(config, ckpt) for name, ckpt in named.items()}
    first = next(iter(loaded.values()))
    data = _data(config, first)
    rows = _rows(data, config["seed"], config["faces_per_class"])
    gaze, titles, correct = [], [], []
    for name, checkpoint in loaded.items():
        _same_classes(checkpoint, data, name)
        images = _images(config, data, checkpoint, rows)
        maps = class_token_attention(checkpoint.network, images)
        shares, predicted = checkpoint.network(images).softmax(1).max(1)
        answers = zip(predicted, shares, strict=True)
        titles.append([f"{data.class_names[p]} {100 * q:.0f} %" for p, q in answers])
        correct.append((predicted.cpu().numpy() == data.labels[rows]).tolist())
        gaze.append(maps.sum(1).cpu())
    if len({maps.shape for maps in gaze}) > 1:
        raise UserError("the checkpoints of compare differ in model.grid: draw them one by one")
    pixels = unnormalised(_images(config, data, first, rows).cpu(), first.transform)
    names = [data.class_names[label] for label in data.labels[rows]]
    plots.gaze_sheet(
        pixels,
        torch.stack(gaze),
        titles,
        path,
        list(loaded),
        _heading(config, data),
        correct,
        names,
    )


@torch.no_grad()
def pairs(config: dict[str, Any], path: Path) -> None:
    """Draw the maps between one face of each class and one of each other class.

    On the diagonal a face is compared with another one of its class, and what they share is drawn;
    elsewhere what tells the two apart.

    Raises:
        UserError: a network without cross similarity attention, or without that level.
    """
    checkpoint = _load(config, config["ckpt"])
    data = _data(config, checkpoint)
    _same_classes(checkpoint, data)
    rows = _rows(data, config["seed"], 2)
    number = len(rows) // 2
    rows = np.concatenate([rows[::2], rows[1::2]])  # a face of each class, then another one
    images = _images(config, data, checkpoint, rows)
    labels = torch.from_numpy(data.labels[rows])
    same = (labels[:, None] == labels).to(images.device)
    maps = pair_maps(checkpoint.network, images, same).cpu()  # (2K, 2K, L, N)
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
        raise UserError("figure=embedding needs `pip install 'qcs[figures]'`") from error
    checkpoint = _load(config, config["ckpt"])
    data = _data(config, checkpoint)
    rng = np.random.default_rng(config["seed"])
    data = data.select(np.sort(rng.permutation(len(data))[: config["max_faces"]]))
    if len(data) < 4 or len(np.unique(data.labels)) < 2:
        raise UserError(f"an embedding needs four faces and two classes, got {len(data)} faces")
    features = _apply(config, data, checkpoint, lambda x: checkpoint.network.base(x)[1]).numpy()
    perplexity = min(30.0, (len(data) - 1) / 3)
    options = {"init": "pca", "perplexity": perplexity, "random_state": config["seed"]}
    points = TSNE(**options).fit_transform(features)
    score = silhouette_score(features, data.labels)
    heading = f"{_heading(config, data)}: t-SNE of {len(data)} faces, silhouette {score:.2f}"
    plots.embedding(points, data.labels, data.class_names, path, heading)
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "x", "y"))
        names = np.array(data.class_names)[data.labels]
        writer.writerows(zip(data.paths, names, *points.T.round(4).tolist(), strict=True))


@torch.no_grad()
def confusion(config: dict[str, Any], path: Path) -> None:
    """Draw the confusion matrix of a split."""
    checkpoint = _load(config, config["ckpt"])
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
    patterns = wanted if isinstance(wanted, list) else [wanted]
    found = {}
    for pattern in patterns:
        folders = sorted(Path(f) for f in glob.glob(str(Path(pattern).expanduser())))
        for folder in [f for f in folders if f.is_dir()] or [Path(pattern)]:
            table = folder / "csv" / "metrics.csv"
            if not table.is_file():
                raise UserError(f"no {table}: runs are the folders that training wrote")
            found[str(folder)] = by_epoch(table)
    plots.curves(found, path)


def _load(config: dict[str, Any], path: str | None) -> Checkpoint:
    if not isinstance(path, str):
        raise UserError("ckpt is not set: write ckpt=model.ckpt")
    checkpoint = load_checkpoint(path)
    checkpoint.network.to(pick_device(config["device"]))
    return checkpoint


def _data(config: dict[str, Any], checkpoint: Checkpoint) -> Manifest:
    dataset = config.get("dataset") or checkpoint.recipe["dataset"]
    transform = checkpoint.recipe["transform"]
    return build.manifest(dataset, [transform], config["store"]).split(config["split"])


def _same_classes(checkpoint: Checkpoint, data: Manifest, name: str = "") -> None:
    if checkpoint.class_names != data.class_names:
        raise UserError(
            f"the checkpoint {name} knows {', '.join(checkpoint.class_names)} and {data.root} has "
            f"{', '.join(data.class_names)}; this figure needs the same, in the same order"
        )


def _rows(data: Manifest, seed: int, number: int) -> np.ndarray:
    """Random rows, `number` of each class that has any, in the order of the classes."""
    if number < 1:
        raise UserError(f"faces_per_class must be 1 or more, got {number}")
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(data.labels == c)) for c in np.unique(data.labels)]
    return np.concatenate([np.resize(r, number) for r in rows])


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
    return f"{data.root.name}, {config['split']}"


FIGURES = {f.__name__: f for f in (attention, pairs, embedding, confusion, curves)}


@command("figures")
def main(cfg: DictConfig) -> None:
    """Compose, check, draw."""
    config = plain(cfg, Settings)
    path = Path(config["run_dir"]) / f"{config['figure']}.png"
    FIGURES[config["figure"]](config, path)
    log.info("%s", path)


if __name__ == "__main__":
    main()
