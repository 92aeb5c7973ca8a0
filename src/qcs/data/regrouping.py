"""Further groups from the images of a batch, for `loader.groups_per_image`.

B batch, R roles [a, p, n, n2].
"""

import numpy as np


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
