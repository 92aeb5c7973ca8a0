"""What is in a data set: counts, sizes, unreadable files, and images that appear more than once."""

from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import numpy as np
from PIL import Image

from qcs.data.decoding import decode_all
from qcs.data.manifest import SPLITS, Manifest


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set.

    Args:
        counts: (3, K) images by split (train, val, test) and class.
        sizes: how often each (width, height) occurs.
        unreadable: row of an image that cannot be decoded -> the sentence that says why.
        groups: rows of images with equal pixels, two or more in each group.
    """

    manifest: Manifest
    counts: np.ndarray
    sizes: Counter[tuple[int, int]]
    unreadable: dict[int, str]
    groups: list[list[int]]

    @property
    def across(self) -> list[list[int]]:
        """Groups of equal images that lie in more than one split."""
        splits = self.manifest.splits
        return [g for g in self.groups if len({str(splits[row]) for row in g}) > 1]

    def leaked(self) -> list[int]:
        """Rows to drop for honest results, as an equal image is in a later split.

        They are rows of train whose image is in val or test too, and of val where it is in test.
        """
        splits = self.manifest.splits
        rank = {split: i for i, split in enumerate(SPLITS)}
        rows = []
        for group in self.across:
            last = max(rank[str(splits[row])] for row in group)
            rows += [row for row in group if rank[str(splits[row])] < last]
        return sorted(rows)

    @property
    def contradicting(self) -> list[list[int]]:
        """Groups of equal images with more than one label."""
        labels = self.manifest.labels
        return [g for g in self.groups if len({int(labels[row]) for row in g}) > 1]

    @property
    def small_classes(self) -> list[str]:
        """Classes with fewer than two training images, which have no positive to be paired with."""
        names = self.manifest.class_names
        return [name for name, n in zip(names, self.counts[0], strict=True) if n < 2]

    def problems(self) -> list[str]:
        """One sentence for each kind of fault that was found."""
        found = []
        if self.unreadable:
            found.append(
                f"{len(self.unreadable)} images cannot be decoded: repair them, or prepare with "
                "on_error=skip"
            )
        if self.across:
            found.append(
                f"{len(self.across)} images appear in more than one split: results on the test "
                "set are too good (clean.csv leaves them out of train)"
            )
        if self.contradicting:
            found.append(f"{len(self.contradicting)} images appear with more than one label")
        if self.small_classes:
            names = ", ".join(self.small_classes)
            found.append(f"fewer than two training images: {names}; add some or drop the class")
        return found


def inspect(manifest: Manifest, num_workers: int = 2, progress: bool = True) -> Inspection:
    """Decode every image once and compare them by their pixels.

    Args:
        num_workers: processes that decode; 0 decodes in this one.
        progress: whether to show a progress bar.
    """
    labels, classes = manifest.labels, len(manifest.class_names)
    of_split = (labels[manifest.splits == split] for split in SPLITS)
    counts = np.stack([np.bincount(found, minlength=classes) for found in of_split])
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable, rows_of = {}, defaultdict(list)
    title = "reading" if progress else None
    decoded = decode_all(manifest, _hashed, range(len(manifest)), num_workers, title)
    with closing(decoded) as chunks:
        for row, found, error in chain.from_iterable(chunks):
            if error is not None:
                unreadable[row] = error
                continue
            sizes[found[0]] += 1
            rows_of[found].append(row)
    groups = [rows for rows in rows_of.values() if len(rows) > 1]
    return Inspection(manifest, counts, sizes, unreadable, groups)


def _hashed(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    """Size and hash of the pixels."""
    return image.size, blake2b(image.tobytes(), digest_size=16).digest()
