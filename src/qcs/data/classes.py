"""The same classes under the names and in the orders of different data sets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest

# Other spellings of a class, and the one that they are compared by.
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


class ClassMatch(NamedTuple):
    """A data set in the classes of a network."""

    data: Manifest  # the images of the classes that both have
    names: dict[str, str]  # the data set's name of a class -> the network's
    left_out: dict[str, int]  # a class that the network does not know -> the number of its images
    lacking: list[str]  # the network's classes that the data set does not have


def canonical(name: str) -> str:
    """What all spellings of a class have in common: "Happy", "happiness" -> "happiness".

    Capitals, blanks, underscores and hyphens do not count.
    """
    plain = "".join(c for c in name.lower() if c not in " _-")
    return ALIASES.get(plain, plain)


def match_classes(data: Manifest, class_names: Sequence[str]) -> ClassMatch:
    """Give the images of a data set the labels of a network, by the names of their classes.

    Images of a class that the network does not know are left out. Names that are the same in both,
    such as those of the data set that it was trained on, may be spellings of one class.

    Raises:
        UserError: the two have fewer than two classes in common, or one of them has two classes
            of the same name.
    """
    spelling = str if set(class_names) == set(data.class_names) else canonical
    ours = {spelling(name): index for index, name in enumerate(class_names)}
    theirs = [spelling(name) for name in data.class_names]
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
    return ClassMatch(
        # Soft labels are left out: they are in the data set's order, and evaluation needs none.
        replace(data, labels=labels, class_names=tuple(class_names), targets=None),
        {n: class_names[k] for n, k in zip(data.class_names, index, strict=True) if k >= 0},
        left,
        [name for name in class_names if spelling(name) not in known],
    )
