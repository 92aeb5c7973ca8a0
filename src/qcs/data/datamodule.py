"""The LightningDataModule: groups of faces for training, single faces for evaluation.

B batch, R roles [a, p, n, n2], H and W pixels.
"""

import logging
from collections.abc import Callable
from typing import Literal

import torch
from lightning import LightningDataModule
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qcs.data.manifest import SPLITS, Manifest
from qcs.data.quadruplets import (
    Anchors,
    AnchorSampler,
    Negatives,
    QuadrupletDraw,
    draw_generator,
)

log = logging.getLogger(__name__)

Transform = Callable[[Image], Tensor]
Selection = Literal["val", "test", "last"]


class Groups(Dataset):
    """Groups of R faces; an item is what `AnchorSampler` yields: (epoch, index, anchor row)."""

    def __init__(
        self, manifest: Manifest, draw: QuadrupletDraw, transform: Transform, seed: int
    ) -> None:
        self.manifest, self.draw, self.transform, self.seed = manifest, draw, transform, seed
        self.labels = torch.from_numpy(manifest.labels)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, item: tuple[int, int, int]) -> dict[str, Tensor]:
        """Return images (R, 3, H, W) and labels (R,)."""
        epoch, index, anchor = item
        rng = draw_generator(self.seed, epoch, index)
        rows = self.draw(anchor, rng)
        with torch.random.fork_rng(devices=[]):  # the loop's own random numbers stay untouched
            torch.default_generator.manual_seed(rng.getrandbits(63))
            images = torch.stack([self.transform(self.manifest.image(row)) for row in rows])
        return {"images": images, "labels": self.labels[rows]}


class Faces(Dataset):
    """Single faces, in the manifest's order."""

    def __init__(self, manifest: Manifest, transform: Transform) -> None:
        self.manifest, self.transform = manifest, transform

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> dict[str, Tensor | int]:
        """Return image (3, H, W) and label."""
        image = self.transform(self.manifest.image(row))
        return {"images": image, "labels": int(self.manifest.labels[row])}


class FaceDataModule(LightningDataModule):
    """Loaders over a manifest.

    Args:
        manifest: the data set.
        train_transform, eval_transform: PIL image to (3, H, W).
        roles: images of a group: 1, 2 or 4.
        batch_size: groups of a training batch.
        eval_batch_size: images of an evaluation batch.
        num_workers: loader processes; the batches are the same for any number.
        negatives: "by_sample" or "by_class", see `QuadrupletDraw`.
        anchors: "shuffle" or "balanced", see `AnchorSampler`.
        samples_per_epoch: anchors an epoch; None for all.
        val_fraction: seeded share of each class's training images that becomes the validation
            set, where the data set has none and `select_on` needs one.
        select_on: what validation runs on: "val", "test" (the papers' habit; biased), or "last"
            (nothing is selected, so nothing is held out).
        seed: of the held-out share, the anchors and every draw.

    Raises:
        ValueError: no training or test images, or none to select on.
    """

    def __init__(
        self,
        manifest: Manifest,
        train_transform: Transform,
        eval_transform: Transform,
        roles: int = 4,
        batch_size: int = 24,
        eval_batch_size: int = 128,
        num_workers: int = 2,
        negatives: Negatives = "by_sample",
        anchors: Anchors = "shuffle",
        samples_per_epoch: int | None = None,
        val_fraction: float = 0.1,
        select_on: Selection = "val",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(batch_size, eval_batch_size) < 1 or num_workers < 0:
            raise ValueError(
                "loader.batch_size and loader.eval_batch_size must be 1 or more and "
                f"loader.num_workers 0 or more, got {batch_size}, {eval_batch_size}, {num_workers}"
            )
        if select_on == "val" and not manifest.has("val"):
            manifest = manifest.hold_out(val_fraction, seed)
            log.info("no validation images: held out %g of each class's train", val_fraction)
        self.manifest, self.select_on, self.seed = manifest, select_on, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = num_workers
        self.eval_transform = eval_transform
        self.train = manifest.split("train")
        draw = QuadrupletDraw(self.train.labels, roles, negatives, manifest.class_names)
        self.groups = Groups(self.train, draw, train_transform, seed)
        self.sampler = AnchorSampler(self.train.labels, anchors, samples_per_epoch, seed)
        sizes = {s: int((manifest.splits == s).sum()) for s in SPLITS}
        log.info("%s: %s; classes %s", manifest.root, sizes, ", ".join(manifest.class_names))

    def _loader(self, dataset: Dataset, **options: object) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # not the loop's
            **options,
        )

    def train_dataloader(self) -> DataLoader:
        """Batches of images (B, R, 3, H, W) and labels (B, R); the last partial one is kept."""
        return self._loader(self.groups, batch_size=self.batch_size, sampler=self.sampler)

    def eval_dataloader(self, split: str) -> DataLoader:
        """Batches of images (B, 3, H, W) and labels (B,) of one split, in its order."""
        faces = Faces(self.manifest.split(split), self.eval_transform)
        return self._loader(faces, batch_size=self.eval_batch_size)

    def val_dataloader(self) -> DataLoader | list:
        """The split that `select_on` names; nothing for "last"."""
        return [] if self.select_on == "last" else self.eval_dataloader(self.select_on)

    def test_dataloader(self) -> DataLoader:
        """The test split."""
        return self.eval_dataloader("test")
