"""The LightningDataModule: batches of groups of faces for training, of single faces for evaluation.

B batch, R roles [a, p, n, n2], H and W pixels.
"""

import logging
import math
from typing import Any, Literal, TypeVar

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from qcs.config.bounds import Count, Fraction, Natural, Pixels, Seed, Workers
from qcs.config.errors import UserError
from qcs.data import workers
from qcs.data.augment import BatchAugmentation
from qcs.data.datasets import Collate, Faces, GroupBatches, GroupLoader, Groups, Transform
from qcs.data.manifest import SPLITS, Manifest
from qcs.data.quadruplets import (
    AnchorBatchSampler,
    Anchors,
    AnchorSampler,
    Negatives,
    QuadrupletDraw,
)
from qcs.data.splits import hold_out, keep_training
from qcs.data.workers import Loader

log = logging.getLogger(__name__)
AMPLE = 4 << 30  # bytes of shared memory that are enough for any batches, and need no closer look

Selection = Literal["val", "test", "last"]
AnyLoader = TypeVar("AnyLoader", bound=Loader)


class FaceDataModule(LightningDataModule):
    """The loaders of a data set for training, validation and test.

    >>> from tempfile import TemporaryDirectory
    >>> from qcs.data import transforms
    >>> from qcs.data.sources import synthetic
    >>> folder = TemporaryDirectory()
    >>> manifest = synthetic.read(folder.name, size=32, train=4, val=1, test=1)
    >>> views = transforms.training(32), transforms.evaluation(32)
    >>> data = FaceDataModule(manifest, *views, batch_size=8, num_workers=0)
    >>> batch = next(iter(data.train_dataloader()))
    >>> tuple(batch["images"].shape), tuple(batch["labels"].shape)
    ((8, 4, 3, 32, 32), (8, 4))

    Args:
        manifest: the data set.
        train_transform, eval_transform: from an image to (3, H, W) float32; for training also a
            `BatchAugmentation`.
        roles: images in a group: 1, 2 or 4.
        batch_size: groups in a training batch whose images are read.
        groups_per_image: groups that each image of a batch is in; above 1 they share the
            backbone's work, see `in_batch_groups`.
        eval_batch_size: images in an evaluation batch.
        num_workers: loader processes; the batches are the same for any number.
        timeout: seconds to wait for a batch of theirs; 0 waits for ever.
        negatives: "by_sample" or "by_class", see `qcs.data.quadruplets`.
        anchors: "shuffle" or "balanced", see `AnchorSampler`.
        samples_per_epoch: anchors in an epoch; None for all.
        train_images: number of training images to use, stratified by class, after those of
            `val_fraction` were held out; None for all.
        val_fraction: share of each class's training images that becomes the validation set, where
            the data set has none and `select_on` needs one.
        select_on: what validation runs on: "val", "test" (the papers' habit; biased), or "last"
            (the last epoch is taken, so nothing is held out).
        seed: of the held-out images, those of `train_images`, the anchors and every draw.
        input_size: pixels that the network looks at; the workers sub-sample larger images as the
            network itself would.

    Raises:
        UserError: there are no training images, or none to select on, or `groups_per_image` is
            above 1 for a single role.
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
        train_images: Count | None = None,
        val_fraction: Fraction = 0.1,
        select_on: Selection = "val",
        seed: Seed = 0,
        input_size: Pixels | None = None,
    ) -> None:
        super().__init__()
        if groups_per_image < 1 or (groups_per_image > 1 and roles == 1):
            raise UserError(
                f"loader.groups_per_image={groups_per_image} must be 1 or more, and 1 where "
                "nothing is compared (model.roles=1)"
            )
        manifest = _with_selection(manifest, select_on, val_fraction, seed)
        if train_images is not None:
            manifest = keep_training(manifest, train_images, seed)
        self.manifest = manifest
        self.select_on, self.seed, self.input_size = select_on, seed, input_size
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.timeout = num_workers, timeout
        self.collate, self.eval_transform = Collate(groups_per_image), eval_transform
        self.train = manifest.split("train")
        _warn_of_missing_classes(self.train)
        draw = QuadrupletDraw(self.train.labels, roles, negatives, manifest.class_names)
        self.augmentation: BatchAugmentation | None = None  # of whole batches
        self.groups: Groups | GroupBatches
        if isinstance(train_transform, BatchAugmentation):
            train_transform.sub_sample(input_size)
            self.augmentation = train_transform
            self.groups = GroupBatches(self.train, draw, train_transform, seed)
        else:
            self.groups = Groups(self.train, draw, train_transform, seed, input_size)
        self.sampler = AnchorSampler(self.train.labels, anchors, samples_per_epoch, seed)
        self.loader: GroupLoader | None = None
        self.done = 0  # the batches of a resumed epoch that were trained on before
        sizes = {s: int((manifest.splits == s).sum()) for s in SPLITS}
        log.info("%s: %s; classes %s", manifest.root, sizes, ", ".join(manifest.class_names))

    def _loader(
        self, kind: type[AnyLoader], dataset: Groups | GroupBatches | Faces, **options: Any
    ) -> AnyLoader:
        options |= workers.loader_options(self.num_workers, self.timeout, self.seed)
        loader = kind(dataset, **options)
        free = workers.free_shared_memory()
        if self.num_workers and free is not None and free < AMPLE:
            size = self.eval_batch_size if isinstance(dataset, Faces) else self.batch_size
            batch = size * dataset.item_bytes()
            workers.require_shared_memory(batch, self.num_workers, len(loader))
        return loader

    def require_images_for(self, processes: int) -> None:
        """Check that there are as many images to evaluate on as there are processes.

        Raises:
            UserError: a process would get no image, and the others would wait for it.
        """
        for split in sorted({self.select_on, "test"} & set(SPLITS)):
            number = int((self.manifest.splits == split).sum())
            if 0 < number < processes:
                raise UserError(
                    f"{processes} processes cannot share the {number} {split} images of data set "
                    f"{self.manifest.root}: write trainer.devices={number} or less"
                )

    def _process(self) -> tuple[int, int]:
        """Which process this is, and of how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> GroupLoader:
        """Batches of images (B, R, 3, H, W) and labels (B, R); the last one may be smaller.

        With several groups for each image a batch also has "groups", see `Collate`.
        """
        batches = AnchorBatchSampler(self.sampler, self.batch_size, *self._process())
        batches.skip, self.done = self.done, 0
        self.sampler.fixed = bool(getattr(self.trainer, "overfit_batches", 0))  # set by Lightning
        self.loader = self._loader(
            GroupLoader, self.groups, batch_sampler=batches, collate_fn=self.collate
        )
        return self.loader

    def state_dict(self) -> dict[str, int]:
        """For a checkpoint: how many batches of the epoch are done; 0 when all of them are."""
        if not self.loader:
            return {"done": 0}
        most = self.trainer.num_training_batches if self.trainer else math.inf  # it may take fewer
        return {"done": self.loader.taken % int(min(len(self.loader), most))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next epoch begin behind the batches that are done.

        Lightning's own way to resume a loader is not used: it misses a loader that was made before
        the checkpoint is read, as happens for `estimated_stepping_batches`.
        """
        self.done = state["done"]

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int = 0) -> dict:
        """Turn the images of a batch of `GroupBatches` into float32, on the device."""
        if self.augmentation is None:
            return batch
        if "seed" in batch:
            images, shape = batch["images"], batch["images"].shape[:2]
            images, rectangle = self.augmentation(images.flatten(0, 1), int(batch.pop("seed")))
            batch |= {"images": images.unflatten(0, shape), "erase": rectangle.unflatten(0, shape)}
        if "erase" in batch:
            batch["images"] = self.augmentation.finish(batch["images"], batch.pop("erase"))
            if self.trainer:  # with 64-true or bf16-true it converted the batch before this
                images = batch["images"]
                batch["images"] = self.trainer.precision_plugin.convert_input(images)
        return batch

    def eval_dataloader(self, split: str) -> DataLoader:
        """Batches of images (B, 3, H, W) and labels (B,) of one split, in its order.

        Where there are several processes, each image is in a batch of one of them.
        """
        faces = Faces(self.manifest.split(split), self.eval_transform, self.input_size)
        rank, world = self._process()
        rows = range(rank, len(faces), world)
        return self._loader(Loader, faces, batch_size=self.eval_batch_size, sampler=rows)

    def val_dataloader(self) -> DataLoader | list:
        """Batches of the split that `select_on` names; none for "last"."""
        return [] if self.select_on == "last" else self.eval_dataloader(self.select_on)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split."""
        return self.eval_dataloader("test")


def _with_selection(
    manifest: Manifest, select_on: Selection, fraction: float, seed: int
) -> Manifest:
    """The manifest with images to select on, held out of the training images where need be."""
    if select_on == "test" and not manifest.has("test"):
        raise UserError(
            f"data set {manifest.root} has no test images to select on: write select_on=val"
        )
    if select_on != "val" or manifest.has("val"):
        return manifest
    manifest = hold_out(manifest, fraction, seed)
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
