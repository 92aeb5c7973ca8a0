"""Further groups from the images of a batch, for `loader.groups_per_image`.

The backbone's work on an image is then shared by several groups, as with the in-batch negatives of
other metric learning.

B batch, R roles [a, p, n, n2].
"""

import numpy as np


def in_batch_groups(labels: np.ndarray, rows: np.ndarray, groups_per_image: int) -> np.ndarray:
    """Form further groups from the images of a batch of groups.

    Each image is in `groups_per_image` groups, and always in the same role. The anchors exchange
    their positives; the pairs of another class exchange their second images, and move from anchor
    to anchor. The groups are as valid as those that were drawn, and they are new wherever the batch
    holds the images for it.

    Args:
        labels: (B, R) of the groups as drawn, R 2 or 4.
        rows: (B, R), which images they are.
        groups_per_image: 1 or more.

    Returns:
        (groups_per_image * B, R) positions in the flattened (B, R); the first B groups are those
        that were drawn.
    """
    place = np.arange(labels.size).reshape(labels.shape)
    pairs = [slice(0, 2), slice(2, 4)][: labels.shape[1] // 2]
    partners = [_Permutations(_may_pair(labels[:, pair], rows[:, pair])) for pair in pairs]
    others = _Permutations(labels[:, :1] != labels[:, 2].T) if len(pairs) == 2 else None
    groups = [place]
    for _ in range(groups_per_image - 1):
        made = [
            np.stack([place[:, pair.start], place[permutation.next(), pair.start + 1]], axis=1)
            for pair, permutation in zip(pairs, partners, strict=True)
        ]
        if others:
            made[1] = made[1][others.next()]
        groups.append(np.concatenate(made, axis=1))
    return np.concatenate(groups)


def _may_pair(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether (B, B) the first image of a pair (B, 2) may be paired with the second of another."""
    allowed = (labels[:, :1] == labels[:, 1]) & (rows[:, :1] != rows[:, 1])
    return allowed | np.eye(len(allowed), dtype=bool)  # the pairs as drawn are valid in any case


class _Permutations:
    """Permutations of B items over B places, one after the other, each as new as possible.

    Args:
        allowed: (B, B), whether an item (column) may be at a place (row); the diagonal is how they
            lie at first, and always allowed.
    """

    def __init__(self, allowed: np.ndarray) -> None:
        size = len(allowed)
        turns = [[(i + step) % size for step in range(1, size)] for i in range(size)]
        self.fresh = [[j for j in turn if allowed[i, j]] for i, turn in enumerate(turns)]
        self.used = [[i] for i in range(size)]

    def next(self) -> list[int]:
        """The item at each place: one that was not there before, for as many places as possible.

        This is Kuhn's algorithm with augmenting paths, first for the fresh items alone and then
        for all of them. SciPy's `linear_sum_assignment` finds such permutations too. It is not
        used, as training does not depend on SciPy, and as it picks others among those that are
        equally good, which would change the groups that belong to a seed.
        """
        owner: dict[int, int] = {}  # item -> place
        for options in (self.fresh, [f + u for f, u in zip(self.fresh, self.used, strict=True)]):
            for place in set(range(len(options))) - set(owner.values()):
                _augment(place, options, owner, set())
        found = [item for item, _ in sorted(owner.items(), key=lambda pair: pair[1])]
        for place, item in enumerate(found):
            if item in self.fresh[place]:
                self.fresh[place].remove(item)
                self.used[place].append(item)
        return found


def _augment(place: int, options: list[list[int]], owner: dict[int, int], tried: set[int]) -> bool:
    """Find an item for a place, moving others to other places; return whether there was one."""
    for item in options[place]:
        if item not in tried:
            tried.add(item)
            if item not in owner or _augment(owner[item], options, owner, tried):
                owner[item] = place
                return True
    return False
