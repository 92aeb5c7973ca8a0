"""The paper's figures: where networks look, what they compare, which classes they confuse.

Each function draws `images` into the file `path`; `seed` chooses the images that are shown.

C checkpoints, M faces, K classes, L levels, N tokens of a level.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from qcs import plots
from qcs.checkpoints.load import Checkpoint
from qcs.config.errors import UserError, missing_extra
from qcs.config.escape import terminal
from qcs.data.datasets import Faces
from qcs.data.manifest import Manifest
from qcs.data.transforms import unnormalised
from qcs.evaluation.apply import apply
from qcs.evaluation.faces import faces_by_class, pairs_by_class
from qcs.evaluation.files import write_csv
from qcs.evaluation.metrics import check_finite, confusion_matrix
from qcs.models import QCSNetwork
from qcs.models.attention_maps import class_token_attention, pair_maps

log = logging.getLogger(__name__)

MAX_PERPLEXITY = 30.0  # of t-SNE: the default of scikit-learn


class Images(NamedTuple):
    """The images of a figure, and how networks see them."""

    data: Manifest
    heading: str  # the name of the data set and its split
    device: str
    batch_size: int = 128
    num_workers: int = 0

    def tensors(self, checkpoint: Checkpoint, rows: np.ndarray) -> Tensor:
        """Return some images as a checkpoint takes them, (M, 3, H, W)."""
        faces = Faces(self.data, checkpoint.transform)
        return torch.stack([faces[int(row)]["images"] for row in rows]).to(self.device)

    def apply(self, checkpoint: Checkpoint, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function of images to all images."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        return apply(function, self.data, checkpoint.transform, self.device, **options)

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the class names of some images."""
        return [self.data.class_names[label] for label in self.data.labels[rows]]


def require_same_classes(checkpoint: Checkpoint, data: Manifest, name: str = "") -> None:
    """Check that a checkpoint knows the classes of a data set, in the same order.

    Raises:
        UserError: it does not.
    """
    if checkpoint.class_names != data.class_names:
        raise UserError(
            f"the checkpoint {name} knows {', '.join(checkpoint.class_names)} and {data.root} has "
            f"{', '.join(data.class_names)}; this figure needs the same, in the same order"
        )


@torch.no_grad()
def attention(
    checkpoints: Mapping[str, Checkpoint],
    images: Images,
    path: Path,
    seed: int = 0,
    faces_per_class: int = 1,
) -> None:
    """Draw where base branches look, on the same faces of each class, a row for each checkpoint.

    What is drawn is the attention of the class token, the sum over the levels.

    Args:
        checkpoints: by the name of their row.
        images: of the classes of every checkpoint.

    Raises:
        UserError: the checkpoints differ in their classes or in the grids of their tokens.
    """
    rows = faces_by_class(images.data, seed, faces_per_class)
    maps, titles, correct = [], [], []
    for name, checkpoint in checkpoints.items():
        require_same_classes(checkpoint, images.data, name)
        batch, network = images.tensors(checkpoint, rows), _network(checkpoint)
        levels = class_token_attention(network, batch)  # (M, L, N)
        answers = network(batch).softmax(1)
        values = torch.cat([answers, levels.flatten(1)], dim=1)
        check_finite(values.cpu(), images.data.select(rows))
        titles.append(_titles(answers, images.data.class_names))
        correct.append((answers.argmax(1).cpu().numpy() == images.data.labels[rows]).tolist())
        maps.append(levels.sum(1).cpu())
    if len({m.shape for m in maps}) > 1:
        raise UserError("the checkpoints of compare differ in model.grid: draw them one by one")
    first = next(iter(checkpoints.values()))
    pixels = unnormalised(images.tensors(first, rows).cpu(), first.transform)
    drawn = torch.stack(maps)  # (C, M, N)
    names, classes = list(checkpoints), images.names(rows)
    plots.class_token_maps(
        pixels, drawn, titles, path, names, images.heading, correct, columns=classes
    )


def _network(checkpoint: Checkpoint) -> QCSNetwork:
    """The network; the user's own one is taken to have the parts of ours."""
    return cast(QCSNetwork, checkpoint.network)


def _titles(answers: Tensor, class_names: Sequence[str]) -> list[str]:
    """The prediction of each row of probabilities (M, K), as text."""
    shares, predicted = answers.max(1)
    return [
        f"{terminal(class_names[int(k)])} {100 * float(share):.0f} %"
        for k, share in zip(predicted, shares, strict=True)
    ]


@torch.no_grad()
def pairs(
    checkpoint: Checkpoint, images: Images, path: Path, seed: int = 0, level: int | None = None
) -> None:
    """Draw the maps between one face of each class and one of each other class.

    On the diagonal a face is compared with another one of its class, and what both share is drawn;
    elsewhere what tells the two apart.

    Args:
        checkpoint: with cross similarity attention, for the classes of the images.
        level: from 1; None for the mean of all levels.

    Raises:
        UserError: the network has no cross similarity attention, or not that level.
    """
    require_same_classes(checkpoint, images.data)
    rows = pairs_by_class(images.data, seed)
    number = len(rows) // 2
    batch = images.tensors(checkpoint, rows)
    labels = torch.from_numpy(images.data.labels[rows])
    same = (labels[:, None] == labels).to(batch.device)
    maps = pair_maps(_network(checkpoint), batch, same).cpu()  # (2K, 2K, L, N)
    check_finite(maps, images.data.select(rows), "maps")
    levels = maps.shape[2]
    if level is not None and not 1 <= level <= levels:
        raise UserError(f"level={level}: the network has levels 1 to {levels}")
    maps = maps.mean(2) if level is None else maps[:, :, level - 1]
    diagonal = torch.arange(number)
    grid = maps[:number, :number].clone()
    grid[diagonal, diagonal] = maps[diagonal, diagonal + number]
    pixels = unnormalised(batch.cpu(), checkpoint.transform)
    drawn = "mean of the levels" if level is None else f"level {level}"
    heading = f"{images.heading}: cross similarity, {drawn}"
    names = images.names(rows[:number])
    plots.pair_grid(pixels[:number], grid, names, path, heading, pixels[number:])


@torch.no_grad()
def embedding(
    checkpoint: Checkpoint, images: Images, path: Path, seed: int = 0, max_faces: int = 2000
) -> None:
    """Draw t-SNE of the features before the head, and write the points into a CSV file beside it.

    Raises:
        UserError: scikit-learn is not installed, or there are too few faces.
    """
    try:
        from sklearn.manifold import TSNE
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise missing_extra("figures", "figure=embedding needs") from error
    rng, number = np.random.default_rng(seed), len(images.data)
    data = images.data.select(np.sort(rng.permutation(number)[: max(max_faces, 0)]))
    classes = len(np.unique(data.labels))
    if len(data) < 4 or not 2 <= classes < len(data):
        raise UserError(
            "an embedding needs four faces and two classes, and more faces than classes, got "
            f"{len(data)} faces of {classes} classes: raise max_faces or take another split"
        )
    base = _network(checkpoint).base
    features = images._replace(data=data).apply(checkpoint, lambda x: base(x)[1]).numpy()
    if (features == features[0]).all():
        raise UserError("the network gives every face the same features: there is nothing to draw")
    perplexity = min(MAX_PERPLEXITY, (len(data) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    points = tsne.fit_transform(features)
    score = silhouette_score(features, data.labels)
    names = [data.class_names[label] for label in data.labels]
    rows = zip(data.paths.tolist(), names, *points.T.round(4).tolist(), strict=True)
    write_csv(path.with_suffix(".csv"), ("path", "label", "x", "y"), rows)
    heading = f"{images.heading}: t-SNE of {len(data)} faces, silhouette {score:.2f}"
    plots.embedding(points, data.labels, data.class_names, path, heading)


@torch.no_grad()
def confusion(checkpoint: Checkpoint, images: Images, path: Path) -> None:
    """Draw the confusion matrix of a checkpoint.

    Raises:
        UserError: the classes differ.
    """
    require_same_classes(checkpoint, images.data)
    data, predicted = images.data, images.apply(checkpoint, checkpoint.network).argmax(1)
    matrix = confusion_matrix(predicted, torch.from_numpy(data.labels), len(data.class_names))
    share = 100 * matrix.diagonal().sum() / matrix.sum()
    plots.confusion(matrix, data.class_names, path, f"{images.heading}: top-1 {share:.2f} %")


Curves = dict[str, list[tuple[float, float]]]  # metric -> (epoch, value)


def curves(runs: dict[str, Curves], path: Path) -> None:
    """Draw losses and accuracies of runs by epoch; values that are not finite are left out."""
    for run, metrics in runs.items():
        for metric, points in metrics.items():
            lost = [epoch for epoch, value in points if not math.isfinite(value)]
            if lost:
                log.warning(
                    "%s: %s is not finite in %d of %d epochs, first in epoch %d: left out",
                    *(run, metric, len(lost), len(points), lost[0]),
                )
    plots.curves(runs, path, "Losses and accuracies by epoch")
