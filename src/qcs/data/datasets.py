"""Groups of faces as items and batches, and single faces to evaluate on.

B batch, R roles [a, p, n, n2], H and W pixels.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from qcs.data.batch_transforms import BatchAugmentation
from qcs.data.manifest import Manifest
from qcs.data.regrouping import regroup
from qcs.data.sampling import Anchor, AnchorBatches, QuadrupletDraw, draw_generator
from qcs.data.transforms import pixels, sub_sampled
from qcs.data.workers import Loader

Transform = Callable[[Image | Tensor], Tensor]


class Groups(Dataset):
    """Groups of R faces; an item is what `AnchorSampler` yields.

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

    def truth(self, rows: np.ndarray, share: float) -> dict[str, Tensor]:
        """Rows, labels, and targets where the data set has them, in the shape of the rows."""
        found = {"labels": torch.from_numpy(self.manifest.labels[rows])}
        found |= {"rows": torch.from_numpy(rows), "share": torch.tensor(share)}
        if self.manifest.targets is not None:
            found["targets"] = torch.from_numpy(self.manifest.targets[rows])
        return found

    def __getitem__(self, item: Anchor) -> dict[str, Tensor]:
        """Return images (R, 3, H, W), labels and rows (R,), share (), maybe targets (R, K)."""
        rng = draw_generator(self.seed, item.epoch, item.index)
        rows = self.draw(item.row, rng)
        with torch.random.fork_rng(devices=[]):  # the loop's own random numbers stay untouched
            torch.default_generator.manual_seed(rng.getrandbits(63))
            images = torch.stack([self.transform(pixels(self.manifest, row)) for row in rows])
        images = sub_sampled(images, self.input_size)
        return {"images": images, **self.truth(np.array(rows), item.share)}


class GroupBatches(Groups):
    """Whole batches of groups; `FaceDataModule.on_after_batch_transfer` finishes them."""

    transform: BatchAugmentation

    def __getitems__(self, items: list[Anchor]) -> dict[str, Tensor]:
        """Return images (B, R, 3, P, P) uint8, labels, ..., and rectangles (B, R, 4) to erase.

        For augmentation on the device: images (B, R, 3, S, S) uint8 as they are, and its seed.
        """
        groups, seed = [], 0
        for item in items:
            rng = draw_generator(self.seed, item.epoch, item.index)
            groups.append(self.draw(item.row, rng))
            seed ^= rng.getrandbits(63)
        rows = np.array(groups)
        images, shape = self._images(rows.ravel()), rows.shape
        batch = self.truth(rows, items[0].share)
        if self.transform.on_device:
            return {"images": images.unflatten(0, shape), "seed": torch.tensor(seed), **batch}
        out = None
        if get_worker_info():  # where the other process reads it, as torch's default_collate does
            side = self.transform.side
            shared = images.untyped_storage()._new_shared(len(images) * 3 * side**2)
            out = images.new_empty(0).set_(shared).view(len(images), 3, side, side)
        images, rectangle = self.transform(images, seed, out)
        return {
            "images": images.unflatten(0, shape),
            "erase": rectangle.unflatten(0, shape),
            **batch,
        }

    def _images(self, rows: np.ndarray) -> Tensor:
        manifest = self.manifest
        if manifest.store is not None:
            return torch.from_numpy(manifest.store.images[manifest.stored[rows]])
        return torch.stack([pixels(manifest, row, self.transform.resize) for row in rows])


class Faces(Dataset):
    """Single faces, in the manifest's order; `input_size` as of `Groups`."""

    def __init__(
        self, manifest: Manifest, transform: Transform, input_size: int | None = None
    ) -> None:
        self.manifest, self.transform, self.input_size = manifest, transform, input_size

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> dict[str, Tensor | int]:
        """Return image (3, H, W), label and row."""
        image = sub_sampled(self.transform(pixels(self.manifest, row)), self.input_size)
        return {"images": image, "labels": int(self.manifest.labels[row]), "rows": row}


class GroupLoader(Loader):
    """Counts the batches taken of the epoch."""

    batch_sampler: AnchorBatches
    taken = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.taken = self.batch_sampler.skip
        for batch in super().__iter__():
            self.taken += 1
            yield batch


class Collate:
    """Makes a batch of items, or takes one that is whole already.

    With `times` above 1 each image is in so many groups, see `regroup`: "groups" (times * B, R) are
    their positions in the flattened (B, R) of the images, and labels, rows and targets are theirs.
    """

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def __call__(self, batch: list[dict[str, Tensor]] | dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch."""
        if isinstance(batch, list):
            batch = default_collate(batch)
        if self.times == 1:
            return batch
        groups = regroup(batch["labels"].numpy(), batch["rows"].numpy(), self.times)
        batch["groups"] = torch.from_numpy(groups)
        for name in {"labels", "rows", "targets"} & set(batch):
            batch[name] = batch[name].flatten(0, 1)[batch["groups"]]
        return batch
