"""The draw of anchors, positives and negatives: O(1) a draw, no table scan.

Source: Wang et al., "QCS", arXiv 2411.01988, section 3.1, and the authors' data sets: negatives
"by_sample" (any image of another class; RAF-DB, FERPlus) or "by_class" (first a class,
uniformly, then an image; AffectNet), anchors shuffled or balanced by class (AffectNet).

A draw depends on (seed, epoch, index) alone, so it is the same for any number of workers.
"""

import logging
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

log = logging.getLogger(__name__)

Negatives = Literal["by_sample", "by_class"]
Anchors = Literal["shuffle", "balanced"]


class QuadrupletDraw:
    """Draws the rows of a group [a], [a, p] or [a, p, n, n2] for an anchor.

    Rows are sorted by class once; then a class is a range, and an image of it, or of any other
    class, is one random number.

    Args:
        labels: (N,) class indices.
        roles: 1, 2 or 4.
        negatives: "by_sample" or "by_class".
        class_names: for messages.

    Raises:
        ValueError: negatives are asked for, but all images are of one class.
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
        self.label = labels
        count = np.bincount(labels)
        self.stop = np.cumsum(count).tolist()
        self.start = [stop - n for stop, n in zip(self.stop, count.tolist(), strict=True)]
        self.present = np.flatnonzero(count).tolist()
        self.rank = {label: i for i, label in enumerate(self.present)}
        if roles == 4 and len(self.present) < 2:
            raise ValueError("quadruplets need training images of two classes or more")
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
        label, position = int(self.label[anchor]), int(self.position[anchor])
        positions = [position]
        if self.roles > 1:
            positions.append(self._partner(position, label, rng))
        if self.roles == 4:
            negative = self._negative(label, rng)
            other = int(self.label[self.order[negative]])
            positions += [negative, self._partner(negative, other, rng)]
        return [int(self.order[p]) for p in positions]


def regroup(labels: np.ndarray, rows: np.ndarray, times: int) -> np.ndarray:
    """Further groups of the images of a batch, so that the backbone's work on them is shared.

    Each image is in `times` groups and always in the same role: anchors exchange their positives,
    and pairs of the other class, which exchange their second images, move from anchor to anchor.
    Groups are as valid as those drawn, and new where the batch holds what they need.

    Args:
        labels: (B, R), R 2 or 4.
        rows: (B, R), which images they are.
        times: 1 or more.

    Returns:
        (times * B, R) positions in the flattened (B, R); the first B groups are as drawn.
    """
    place = np.arange(labels.size).reshape(labels.shape)
    pairs = [slice(0, 2), slice(2, 4)][: labels.shape[1] // 2]
    partners = [_Exchange(_fit(labels[:, pair], rows[:, pair])) for pair in pairs]
    others = _Exchange(labels[:, :1] != labels[:, 2].T) if len(pairs) == 2 else None
    groups = [place]
    for _ in range(times - 1):
        made = [
            np.stack([place[:, pair.start], place[exchange(), pair.start + 1]], axis=1)
            for pair, exchange in zip(pairs, partners, strict=True)
        ]
        if others:
            made[1] = made[1][others()]
        groups.append(np.concatenate(made, axis=1))
    return np.concatenate(groups)


def _fit(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether (B, B) the second image of a pair (B, 2) may be the partner of another's first."""
    fit = (labels[:, :1] == labels[:, 1]) & (rows[:, :1] != rows[:, 1])
    return fit | np.eye(len(fit), dtype=bool)  # as drawn


class _Exchange:
    """Permutations of B things over B places that fit (B, B); the diagonal is as drawn."""

    def __init__(self, fit: np.ndarray) -> None:
        size = len(fit)
        turns = [[(i + step) % size for step in range(1, size)] for i in range(size)]
        self.fresh = [[j for j in turn if fit[i, j]] for i, turn in enumerate(turns)]
        self.used = [[i] for i in range(size)]

    def __call__(self) -> list[int]:
        """The thing of each place: one that it has not had yet, wherever all fit in that way.

        Augmenting paths (Kuhn's algorithm), first over what is fresh alone.
        """
        owner: dict[int, int] = {}
        for options in (self.fresh, [f + u for f, u in zip(self.fresh, self.used, strict=True)]):
            for place in set(range(len(options))) - set(owner.values()):
                _augment(place, options, owner, set())
        found = [thing for thing, _ in sorted(owner.items(), key=lambda pair: pair[1])]
        for place, thing in enumerate(found):
            if thing in self.fresh[place]:
                self.fresh[place].remove(thing)
                self.used[place].append(thing)
        return found


def _augment(place: int, options: list[list[int]], owner: dict[int, int], tried: set[int]) -> bool:
    """Find a thing for the place, moving others on where needed; whether there was one."""
    for thing in options[place]:
        if thing not in tried:
            tried.add(thing)
            if thing not in owner or _augment(owner[thing], options, owner, tried):
                owner[thing] = place
                return True
    return False


def draw_generator(seed: int, epoch: int, index: int) -> Random:
    """The random numbers of one item: a pure function of its three arguments."""
    return Random(f"{seed}/{epoch}/{index}")


class Anchor(NamedTuple):
    """An anchor of an epoch; the data set draws the rest of its group from it."""

    epoch: int
    index: int
    row: int
    share: float = 1.0  # factor of its batch's loss, see `AnchorBatches`


class AnchorSampler(Sampler[Anchor]):
    """Yields the anchors of an epoch.

    Args:
        labels: (N,) class indices.
        anchors: "shuffle" visits each image once an epoch; "balanced" draws with replacement, a
            class first, uniformly over the classes that have images.
        samples_per_epoch: anchors an epoch; None for N. A shuffled epoch takes the first of its
            order.
        seed: of the order.

    Raises:
        ValueError: `samples_per_epoch` is below 1, or above N for shuffled anchors.
    """

    def __init__(
        self,
        labels: np.ndarray,
        anchors: Anchors = "shuffle",
        samples_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        self.labels, self.anchors, self.seed, self.epoch = labels, anchors, seed, 0
        self.number = samples_per_epoch or len(labels)
        if self.number < 1 or (anchors == "shuffle" and self.number > len(labels)):
            raise ValueError(
                f"loader.samples_per_epoch={samples_per_epoch} must be from 1 to the {len(labels)} "
                "training images (loader.anchors=balanced may draw more)"
            )

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch, after a resume as well."""
        self.epoch = epoch

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
        for index, row in enumerate(rows.tolist()):
            yield Anchor(self.epoch, index, row)


class AnchorBatches(Sampler[list[Anchor]]):
    """Cuts an epoch into the batches of one of `world` processes; nothing is lost or doubled.

    All processes together see what one would with batches of `batch_size * world`. Where the last
    one does not divide, `share` weighs the losses, so that the mean over the processes is the mean
    over the batch. A process left without an anchor sees one with a share of 0.

    Args:
        sampler: of the whole epoch, the same in every process.
        batch_size: anchors of a process's batch.
        rank: which process.
        world: number of processes.
    """

    def __init__(
        self, sampler: AnchorSampler, batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        self.sampler, self.batch_size, self.rank, self.world = sampler, batch_size, rank, world
        self.skip = 0  # batches that a resumed epoch has behind it; forgotten after one epoch

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
