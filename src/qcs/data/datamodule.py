"""The LightningDataModule: groups of faces for training, single faces for evaluation.

B batch, R roles [a, p, n, n2], H and W pixels.
"""

import logging
from typing import Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qcs.config.bounds import Count, Fraction, Natural, Pixels, Seed, Workers
from qcs.config.errors import UserError
from qcs.data import workers
from qcs.data.batch_transforms import BatchAugmentation
from qcs.data.datasets import (
    Collate,
    Faces,
    GroupBatches,
    GroupLoader,
    Groups,
    Transform,
)
from qcs.data.manifest import SPLITS, Manifest
from qcs.data.sampling import (
    Anchor,
    AnchorBatches,
    Anchors,
    AnchorSampler,
    Negatives,
    QuadrupletDraw,
)

log = logging.getLogger(__name__)
AMPLE = 4 << 30  # bytes of shared memory, of which no more is asked

Selection = Literal["val", "test", "last"]


class FaceDataModule(LightningDataModule):
    """Loaders over a manifest.

    Args:
        manifest: the data set.
        train_transform, eval_transform: an image to (3, H, W) float32; or, to train, a
            `BatchAugmentation`.
        roles: images of a group: 1, 2 or 4.
        batch_size: groups of a training batch whose images are read.
        groups_per_image: groups that each image of a batch is in; those above 1 share the
            backbone's work, see `regroup`.
        eval_batch_size: images of an evaluation batch.
        num_workers: loader processes; the batches are the same for any number.
        timeout: seconds to wait for a batch of theirs; 0 for ever.
        negatives: "by_sample" or "by_class", see `QuadrupletDraw`.
        anchors: "shuffle" or "balanced", see `AnchorSampler`.
        samples_per_epoch: anchors an epoch; None for all.
        val_fraction: seeded share of each class's training images that becomes the validation
            set, where the data set has none and `select_on` needs one.
        select_on: what validation runs on: "val", "test" (the papers' habit; biased), or "last"
            (nothing is selected, so nothing is held out).
        seed: of the held-out share, the anchors and every draw.
        input_size: pixels that the network looks at; larger images are sub-sampled by the
            workers as it would do itself.

    Raises:
        UserError: no training or test images, or none to select on.
    """

    def __init__(
        self,
        manifest: Manifest,
        train_transform: Transform | BatchAugmentation,
        eval_transform: Transform,
        roles: int = 4,
        batch_size: Count = 24,
        eval_batch_size: Count = 128,
        groups_per_image: Count = 1,
        num_workers: Workers = 2,
        timeout: Natural = 300,
        negatives: Negatives = "by_sample",
        anchors: Anchors = "shuffle",
        samples_per_epoch: Count | None = None,
        val_fraction: Fraction = 0.1,
        select_on: Selection = "val",
        seed: Seed = 0,
        input_size: Pixels | None = None,
    ) -> None:
        super().__init__()
        if min(batch_size, eval_batch_size) < 1 or min(num_workers, timeout) < 0:
            raise UserError(
                "loader.batch_size and loader.eval_batch_size must be 1 or more and "
                "loader.num_workers and loader.timeout 0 or more, got "
                f"{batch_size}, {eval_batch_size}, {num_workers}, {timeout}"
            )
        if groups_per_image < 1 or (groups_per_image > 1 and roles == 1):
            raise UserError(
                f"loader.groups_per_image={groups_per_image} must be 1 or more, and 1 where "
                "nothing is compared (model.roles=1)"
            )
        if select_on == "val" and not manifest.has("val"):
            manifest = _held_out(manifest, val_fraction, seed)
        if select_on == "test" and not manifest.has("test"):
            raise UserError(
                f"data set {manifest.root} has no test images to select on: write select_on=val"
            )
        self.manifest, self.select_on, self.seed = manifest, select_on, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.timeout = num_workers, timeout
        self.collate = Collate(groups_per_image)
        self.eval_transform = eval_transform
        self.train = manifest.split("train")
        _warn_of_missing_classes(self.train)
        draw = QuadrupletDraw(self.train.labels, roles, negatives, manifest.class_names)
        self.whole = train_transform if isinstance(train_transform, BatchAugmentation) else None
        self.input_size = input_size
        if self.whole:
            self.whole.sub_sample(input_size)
        groups = GroupBatches if self.whole else Groups
        self.groups = groups(self.train, draw, train_transform, seed, input_size)
        self.sampler = AnchorSampler(self.train.labels, anchors, samples_per_epoch, seed)
        self.loader: GroupLoader | None = None
        self.done = 0
        sizes = {s: int((manifest.splits == s).sum()) for s in SPLITS}
        log.info("%s: %s; classes %s", manifest.root, sizes, ", ".join(manifest.class_names))

    def _loader(
        self, dataset: Dataset, kind: type[workers.Loader] = workers.Loader, **options: object
    ) -> DataLoader:
        loader = kind(
            dataset,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            timeout=self.timeout if self.num_workers else 0,
            # Workers share the tables instead of being sent copies.
            multiprocessing_context="fork" if self.num_workers and workers.LINUX else None,
            worker_init_fn=workers.start,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # not the loop's
            **options,
        )
        free = workers.free_shared_memory()
        if self.num_workers and free is not None and free < AMPLE:
            size = self.eval_batch_size if isinstance(dataset, Faces) else self.batch_size
            workers.require_shared_memory(size * _bytes(dataset), self.num_workers, len(loader))
        return loader

    def setup(self, stage: str) -> None:
        """Refuse to begin with more processes than there are images to evaluate on.

        Raises:
            UserError: a process would be left without one, and the others would wait for it.
        """
        world = self._process()[1]
        for split in sorted({self.select_on, "test"} & set(SPLITS)):
            number = int((self.manifest.splits == split).sum())
            if 0 < number < world:
                raise UserError(
                    f"{world} processes cannot share the {number} {split} images of data set "
                    f"{self.manifest.root}: write trainer.devices={number} or less"
                )

    def _process(self) -> tuple[int, int]:
        """Which process this is, and of how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> GroupLoader:
        """Batches of images (B, R, 3, H, W) and labels (B, R); the last partial one is kept.

        With several groups an image also "groups", see `Collate`.
        """
        batches = AnchorBatches(self.sampler, self.batch_size, *self._process())
        batches.skip, self.done = self.done, 0
        options = {"batch_sampler": batches, "collate_fn": self.collate}
        self.loader = self._loader(self.groups, GroupLoader, **options)
        return self.loader

    def state_dict(self) -> dict[str, int]:
        """For a checkpoint: the batches of the epoch that are done; none once all are."""
        return {"done": self.loader.taken % len(self.loader) if self.loader else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next epoch begin behind them.

        Not left to Lightning's own resumption of loaders, which passes over one that was made
        before, for `estimated_stepping_batches`.
        """
        self.done = state["done"]

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int = 0) -> dict:
        """Finish a training batch of `GroupBatches`, on the device: images float32."""
        if "seed" in batch:
            images, shape = batch["images"], batch["images"].shape[:2]
            images, rectangle = self.whole(images.flatten(0, 1), int(batch.pop("seed")))
            batch |= {"images": images.unflatten(0, shape), "erase": rectangle.unflatten(0, shape)}
        if "erase" in batch:
            batch["images"] = self.whole.finish(batch["images"], batch.pop("erase"))
            if self.trainer:  # which converted the batch to 64-true or bf16-true before
                images = batch["images"]
                batch["images"] = self.trainer.precision_plugin.convert_input(images)
        return batch

    def eval_dataloader(self, split: str) -> DataLoader:
        """Batches of images (B, 3, H, W) and labels (B,) of one split, in its order.

        Of several processes each has its share of the images, none of them twice.
        """
        faces = Faces(self.manifest.split(split), self.eval_transform, self.input_size)
        rank, world = self._process()
        rows = range(rank, len(faces), world)
        return self._loader(faces, batch_size=self.eval_batch_size, sampler=rows)

    def val_dataloader(self) -> DataLoader | list:
        """The split that `select_on` names; nothing for "last"."""
        return [] if self.select_on == "last" else self.eval_dataloader(self.select_on)

    def test_dataloader(self) -> DataLoader:
        """The test split."""
        return self.eval_dataloader("test")


def _held_out(manifest: Manifest, fraction: float, seed: int) -> Manifest:
    """Make a validation set of training images, for a data set without one."""
    manifest = manifest.hold_out(fraction, seed)
    if not manifest.has("val"):
        raise UserError(
            f"data set {manifest.root} has no validation images, and no class has the two training "
            "images of which one could be held out: write select_on=last, or select_on=test"
        )
    log.info("no validation images: held out %g of each class's train", fraction)
    return manifest


def _warn_of_missing_classes(train: Manifest) -> None:
    names = train.class_names
    if missing := [name for name, n in zip(names, train.counts(), strict=True) if not n]:
        log.warning("no training image of %s: the network cannot learn it", ", ".join(missing))


def _bytes(dataset: Dataset) -> int:
    """Bytes of an item's images, in a batch."""
    if isinstance(dataset, GroupBatches):
        return dataset.__getitems__([Anchor(0, 0, 0)])["images"].nbytes
    return dataset[Anchor(0, 0, 0) if isinstance(dataset, Groups) else 0]["images"].nbytes
