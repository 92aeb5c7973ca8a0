"""The draw of anchors, positives and negatives, in constant time for each of them.

A draw depends on the seed, the epoch and the position in the epoch alone, so it is the same for any
number of workers.

Source: Wang et al., "QCS", arXiv 2411.01988, section 3.1, and the code of the authors' data sets.
For RAF-DB and FERPlus it draws a negative "by_sample" (any image of another class) and shuffles the
anchors; for AffectNet it draws a negative "by_class" (first a class, all being equally likely, and
then one of its images) and balances the classes of the anchors.
"""

import logging
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from qcs.config.errors import UserError

log = logging.getLogger(__name__)

Negatives = Literal["by_sample", "by_class"]
Anchors = Literal["shuffle", "balanced"]


class QuadrupletDraw:
    """Draws the rows of a group [a], [a, p] or [a, p, n, n2] for an anchor.

    The rows are sorted by class once. The images of a class are then a range of positions, and to
    draw one of them, or one of any other class, takes a single random number.

    >>> draw = QuadrupletDraw(np.array([0, 0, 0, 1, 1]), roles=4)
    >>> group = draw(0, draw_generator(seed=0, epoch=0, position=0))
    >>> draw.labels[group].tolist()
    [0, 0, 1, 1]

    Args:
        labels: (N,) class indices.
        roles: 1, 2 or 4.
        negatives: "by_sample" or "by_class".
        class_names: K names, for messages.

    Raises:
        UserError: there are to be negatives, but all images are of one class.
    """

    def __init__(
        self,
        labels: np.ndarray,
        roles: int,
        negatives: Negatives = "by_sample",
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.roles, self.negatives = roles, negatives
        self.order = np.argsort(labels, kind="stable")  # position -> row
        self.position = np.empty_like(self.order)  # row -> position
        self.position[self.order] = np.arange(len(labels))
        self.labels = labels
        count = np.bincount(labels)
        self.stop = np.cumsum(count).tolist()
        self.start = [stop - n for stop, n in zip(self.stop, count.tolist(), strict=True)]
        self.present = np.flatnonzero(count).tolist()
        self.rank = {label: i for i, label in enumerate(self.present)}
        if roles == 4 and len(self.present) < 2:
            raise UserError("quadruplets need training images of two classes or more")
        if roles > 1 and (single := np.flatnonzero(count == 1).tolist()):
            names = [class_names[i] if class_names else i for i in single]
            log.warning("classes with one training image pair it with itself: %s", names)

    def _partner(self, position: int, label: int, rng: Random) -> int:
        """Position of another image of the class (the image itself where it is the only one)."""
        start, size = self.start[label], self.stop[label] - self.start[label]
        if size == 1:
            return position
        return start + (position - start + 1 + rng.randrange(size - 1)) % size

    def _negative(self, label: int, rng: Random) -> int:
        """Position of an image of another class."""
        start, stop = self.start[label], self.stop[label]
        if self.negatives == "by_sample":
            position = rng.randrange(len(self.order) - (stop - start))
            return position if position < start else position + stop - start
        i = rng.randrange(len(self.present) - 1)
        other = self.present[i if i < self.rank[label] else i + 1]
        return rng.randrange(self.start[other], self.stop[other])

    def __call__(self, anchor: int, rng: Random) -> list[int]:
        """Return the rows of the group of this anchor row, `roles` of them."""
        label, position = int(self.labels[anchor]), int(self.position[anchor])
        positions = [position]
        if self.roles > 1:
            positions.append(self._partner(position, label, rng))
        if self.roles == 4:
            negative = self._negative(label, rng)
            other = int(self.labels[self.order[negative]])
            positions += [negative, self._partner(negative, other, rng)]
        return [int(self.order[p]) for p in positions]


def draw_generator(seed: int, epoch: int, position: int) -> Random:
    """The generator of one group's random numbers; it depends on its three arguments alone."""
    return Random(f"{seed}/{epoch}/{position}")


class Anchor(NamedTuple):
    """An anchor of an epoch; the data set draws the rest of its group."""

    epoch: int
    position: int  # in the epoch, over all processes
    row: int
    share: float = 1.0  # a factor of its batch's loss, see `AnchorBatchSampler`


class AnchorSampler(Sampler[Anchor]):
    """Yields the anchors of an epoch.

    Args:
        labels: (N,) class indices.
        anchors: "shuffle" takes each image once an epoch; "balanced" draws with replacement, and
            each class that has images equally often.
        samples_per_epoch: number of anchors in an epoch; None for N. Of shuffled anchors the first
            ones are taken.
        seed: of the order.

    Attributes:
        fixed: whether all epochs are the first one, for `trainer.overfit_batches`.

    Raises:
        UserError: `samples_per_epoch` is below 1, or above N for shuffled anchors.
    """

    def __init__(
        self,
        labels: np.ndarray,
        anchors: Anchors = "shuffle",
        samples_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        self.labels, self.anchors, self.seed, self.epoch = labels, anchors, seed, 0
        self.fixed = False
        self.number = samples_per_epoch or len(labels)
        if self.number < 1 or (anchors == "shuffle" and self.number > len(labels)):
            raise UserError(
                f"loader.samples_per_epoch={samples_per_epoch} must be from 1 to the {len(labels)} "
                "training images (loader.anchors=balanced may draw more)"
            )

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch, after a resume as well."""
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Anchor]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.anchors == "balanced":
            weights = 1.0 / np.bincount(self.labels)[self.labels]
            cumulative = np.cumsum(weights)
            draws = rng.random(self.number) * cumulative[-1]
            rows = np.searchsorted(cumulative, draws, side="right").clip(max=len(self.labels) - 1)
        else:
            rows = rng.permutation(len(self.labels))[: self.number]
        for position, row in enumerate(rows.tolist()):
            yield Anchor(self.epoch, position, row)


class AnchorBatchSampler(Sampler[list[Anchor]]):
    """Cuts an epoch into the batches of one of `world` processes; each anchor is in one of them.

    All processes together see the batches that a single one would see with batches of
    `batch_size * world`. The last batch may not divide evenly. The losses are then weighted by
    `share`, so that their mean over the processes is the mean over the whole batch. A process that
    no anchor is left for gets one with a share of 0.

    Args:
        sampler: of the whole epoch, the same in every process.
        batch_size: anchors in a batch of one process.
        rank: which process.
        world: number of processes.
    """

    def __init__(
        self, sampler: AnchorSampler, batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        self.sampler, self.batch_size, self.rank, self.world = sampler, batch_size, rank, world
        self.skip = 0  # batches that a resumed epoch has done already; 0 again after that epoch

    def __len__(self) -> int:
        return -(-len(self.sampler) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Anchor]]:
        skip, self.skip, size = self.skip, 0, self.batch_size * self.world
        anchors = list(self.sampler)
        for start in range(skip * size, len(anchors), size):
            batch = anchors[start : start + size]
            mine = batch[self.rank :: self.world]
            share = len(mine) * self.world / len(batch)
            yield [anchor._replace(share=share) for anchor in mine or batch[:1]]
