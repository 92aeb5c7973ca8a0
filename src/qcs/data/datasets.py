"""Groups of faces as items and batches for training, and single faces for evaluation.

B batch, R roles [a, p, n, n2], H and W pixels.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from qcs.data.augment import BatchAugmentation
from qcs.data.manifest import Manifest
from qcs.data.quadruplets import Anchor, AnchorBatchSampler, QuadrupletDraw, draw_generator
from qcs.data.regrouping import in_batch_groups
from qcs.data.transforms import pixels, sub_sampled
from qcs.data.workers import Loader

Transform = Callable[[Image | Tensor], Tensor]


def _truth(manifest: Manifest, rows: np.ndarray, share: float) -> dict[str, Tensor]:
    """Rows, labels, and targets where the data set has them, in the shape of the rows."""
    found = {"labels": torch.from_numpy(manifest.labels[rows])}
    found |= {"rows": torch.from_numpy(rows), "share": torch.tensor(share)}
    if manifest.targets is not None:
        found["targets"] = torch.from_numpy(manifest.targets[rows])
    return found


class Groups(Dataset):
    """Groups of R faces; an item is asked for by an anchor that `AnchorSampler` yields.

    Images that are larger than `input_size` are sub-sampled, see `sub_sampled`.
    """

    def __init__(
        self,
        manifest: Manifest,
        draw: QuadrupletDraw,
        transform: Transform,
        seed: int,
        input_size: int | None = None,
    ) -> None:
        self.manifest, self.draw, self.transform, self.seed = manifest, draw, transform, seed
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, anchor: Anchor) -> dict[str, Tensor]:
        """Return images (R, 3, H, W), labels and rows (R,), share (), maybe targets (R, K)."""
        rng = draw_generator(self.seed, anchor.epoch, anchor.position)
        rows = self.draw(anchor.row, rng)
        with torch.random.fork_rng(devices=[]):  # the loop's own random numbers stay untouched
            torch.default_generator.manual_seed(rng.getrandbits(63))
            images = torch.stack([self.transform(pixels(self.manifest, row)) for row in rows])
        images = sub_sampled(images, self.input_size)
        return {"images": images, **_truth(self.manifest, np.array(rows), anchor.share)}

    def item_bytes(self) -> int:
        """Bytes of a group's images in a batch."""
        return self[Anchor(0, 0, 0)]["images"].nbytes


class GroupBatches(Dataset):
    """Whole batches of groups; `FaceDataModule.on_after_batch_transfer` finishes them."""

    def __init__(
        self, manifest: Manifest, draw: QuadrupletDraw, augmentation: BatchAugmentation, seed: int
    ) -> None:
        self.manifest, self.draw, self.seed = manifest, draw, seed
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitems__(self, anchors: list[Anchor]) -> dict[str, Tensor]:
        """Return images (B, R, 3, P, P) uint8, labels, ..., and rectangles (B, R, 4) to erase.

        For augmentation on the device it returns the images (B, R, 3, S, S) uint8 as they are, and
        the seed of their augmentation.
        """
        groups, seed = [], 0
        for anchor in anchors:
            rng = draw_generator(self.seed, anchor.epoch, anchor.position)
            groups.append(self.draw(anchor.row, rng))
            seed ^= rng.getrandbits(63)
        rows = np.array(groups)
        images, shape = self._images(rows.ravel()), rows.shape
        batch = _truth(self.manifest, rows, anchors[0].share)
        if self.augmentation.on_device:
            return {"images": images.unflatten(0, shape), "seed": torch.tensor(seed), **batch}
        out = None
        if get_worker_info():  # straight into shared memory, as torch's default_collate does
            side = self.augmentation.side
            shared = images.untyped_storage()._new_shared(len(images) * 3 * side**2)
            out = images.new_empty(0).set_(shared).view(len(images), 3, side, side)
        images, rectangle = self.augmentation(images, seed, out)
        return {
            "images": images.unflatten(0, shape),
            "erase": rectangle.unflatten(0, shape),
            **batch,
        }

    def _images(self, rows: np.ndarray) -> Tensor:
        manifest = self.manifest
        if manifest.store is not None and manifest.stored is not None:
            return torch.from_numpy(manifest.store.images[manifest.stored[rows]])
        return torch.stack([pixels(manifest, row, self.augmentation.resize) for row in rows])

    def item_bytes(self) -> int:
        """Bytes of a group's images in a batch."""
        return self.__getitems__([Anchor(0, 0, 0)])["images"].nbytes


class Faces(Dataset):
    """Single faces, in the manifest's order; `input_size` is that of `Groups`."""

    def __init__(
        self, manifest: Manifest, transform: Transform, input_size: int | None = None
    ) -> None:
        self.manifest, self.transform, self.input_size = manifest, transform, input_size

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return image (3, H, W), label and row."""
        image = sub_sampled(self.transform(pixels(self.manifest, row)), self.input_size)
        return {"images": image, "labels": int(self.manifest.labels[row]), "rows": row}

    def item_bytes(self) -> int:
        """Bytes of a face's image in a batch."""
        return self[0]["images"].nbytes


class GroupLoader(Loader):
    """A loader of groups that counts the batches of the epoch that were taken from it."""

    batch_sampler: AnchorBatchSampler
    taken = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override] # see Loader
        self.taken = self.batch_sampler.skip
        for batch in super().__iter__():
            self.taken += 1
            yield batch


class Collate:
    """Makes a batch of items, or takes a batch that was made as one.

    With `groups_per_image` above 1 each image is in that many groups, see `in_batch_groups`. The
    batch then holds "groups" (groups_per_image * B, R), positions in the flattened (B, R) of the
    images; its labels, rows and targets are those of the groups.
    """

    def __init__(self, groups_per_image: int = 1) -> None:
        self.groups_per_image = groups_per_image

    def __call__(self, items: list[dict[str, Tensor]] | dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch."""
        batch = default_collate(items) if isinstance(items, list) else items
        if self.groups_per_image == 1:
            return batch
        labels, rows = batch["labels"].numpy(), batch["rows"].numpy()
        batch["groups"] = torch.from_numpy(in_batch_groups(labels, rows, self.groups_per_image))
        for name in {"labels", "rows", "targets"} & set(batch):
            batch[name] = batch[name].flatten(0, 1)[batch["groups"]]
        return batch
