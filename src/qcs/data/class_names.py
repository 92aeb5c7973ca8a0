"""The same classes under the names and in the orders of different data sets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest

# Other spellings -> ours.
ALIASES = {
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "fearful": "fear",
    "scared": "fear",
    "disgusted": "disgust",
    "surprised": "surprise",
    "neutrality": "neutral",
    "contemptuous": "contempt",
}


class Mapped(NamedTuple):
    """A data set in the classes of a network."""

    data: Manifest
    names: dict[str, str]  # the data set's name -> the network's
    left_out: dict[str, int]  # names that the network does not know -> their images
    lacking: list[str]  # the network's names that the data set does not have


def canonical(name: str) -> str:
    """A class name without case, blanks, underscores, hyphens and other spellings."""
    plain = "".join(c for c in name.lower() if c not in " _-")
    return ALIASES.get(plain, plain)


def mapped(data: Manifest, class_names: Sequence[str]) -> Mapped:
    """Put a data set into the classes of a network, by name; other images are left out.

    Args:
        data: the images.
        class_names: of the network, in its order.

    Raises:
        UserError: fewer than two classes in common, or one name twice.
    """
    ours = {canonical(name): index for index, name in enumerate(class_names)}
    theirs = [canonical(name) for name in data.class_names]
    if len(ours) < len(class_names) or len(set(theirs)) < len(theirs):
        raise UserError(
            f"two classes have one name, among {', '.join(data.class_names)} or among "
            f"{', '.join(class_names)}"
        )
    index = np.array([ours.get(name, -1) for name in theirs])
    if (index >= 0).sum() < 2:
        raise UserError(
            f"the checkpoint knows {', '.join(class_names)} and {data.root} has "
            f"{', '.join(data.class_names)}: they have fewer than two classes in common by name"
        )
    counts = data.counts()
    left = {n: int(counts[k]) for k, n in enumerate(data.class_names) if index[k] < 0}
    labels = index[data.labels]
    if left:
        data, labels = data.select(labels >= 0), labels[labels >= 0]
    known = set(theirs)
    return Mapped(
        # Soft labels are in the data set's order, and evaluation looks at the labels.
        replace(data, labels=labels, class_names=tuple(class_names), targets=None),
        {n: class_names[k] for n, k in zip(data.class_names, index, strict=True) if k >= 0},
        left,
        [name for name in class_names if canonical(name) not in known],
    )
