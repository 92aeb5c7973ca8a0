"""Training and evaluation transforms, torchvision v2.

Source: the authors' pipelines (tests/fixtures/parity/RECIPES.md): resize both sides, flip,
[rotation, crop], colour jitter, ImageNet normalisation, random erasing. The blur is not theirs.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval, Len
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from qcs.config.bounds import Dropout, Pixels, Positive, Probability, Weight
from qcs.config.errors import UserError
from qcs.data.augment import BatchAugmentation, kernel_size
from qcs.data.manifest import Manifest
from qcs.data.numpy_transforms import IMAGENET_MEAN, IMAGENET_STD, checked

Degrees = Annotated[float, Interval(ge=0, le=180)]
Sigma = Annotated[float, Interval(gt=0, le=100)]  # pixels


def resized(image: Image, size: int) -> Tensor:
    """The first step of every transform: a PIL image as (3, size, size) uint8."""
    return v2.functional.resize(v2.functional.pil_to_tensor(image), [size, size], antialias=True)


def pixels(manifest: Manifest, row: int, size: int | None = None) -> Tensor:
    """One image of a manifest, (3, H, W) uint8; the prepared one where the manifest has a store.

    `size` is H and W of an image that is not prepared; None stands for those of its file.
    """
    if manifest.store is not None and manifest.stored is not None:
        return torch.from_numpy(manifest.store[manifest.stored[row]])
    image = manifest.image(row)
    return v2.functional.pil_to_tensor(image) if size is None else resized(image, size)


def sub_sampled(images: Tensor, size: int | None) -> Tensor:
    """Images (..., 3, H, W) of `size` pixels a side at most, as the network would sub-sample them.

    Every pixel is the nearest one of the larger image. It is done where the images are read, so
    that less has to be handed over: a quarter, from 224 to 112 pixels.
    """
    if size is None or min(images.shape[-2:]) <= size:
        return images
    flat = images.flatten(0, -4) if images.ndim > 4 else images.view(-1, *images.shape[-3:])
    return F.interpolate(flat, size=size, mode="nearest").view(*images.shape[:-2], size, size)


def evaluation(
    size: Pixels,
    resize: Pixels | None = None,
    mean: Annotated[Sequence[float], Len(3, 3)] = IMAGENET_MEAN,
    std: Annotated[Sequence[Positive], Len(3, 3)] = IMAGENET_STD,
) -> v2.Compose:
    """Resize both sides to `resize` pixels, crop the centre to `size`, normalise.

    A PIL image, or one of `resized`, becomes (3, size, size) float32. `resize` is `size` by
    default (no crop).

    Raises:
        UserError: `resize` is smaller than `size`, or `mean` and `std` are not of three channels.
    """
    resize = checked(size, resize, mean, std)
    steps = [v2.PILToTensor(), v2.Resize([resize, resize], antialias=True)]
    if resize > size:
        steps.append(v2.CenterCrop(size))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def training(
    size: Pixels,
    resize: Pixels | None = None,
    flip: Probability = 0.5,
    rotation: Degrees = 0.0,
    jitter: Annotated[Sequence[Weight], Len(4, 4)] = (0.2, 0.2, 0.2, 0.1),
    erase: Probability = 0.5,
    erase_area: Annotated[Sequence[Dropout], Len(2, 2)] = (0.02, 0.1),
    blur: Probability = 0.0,
    blur_sigma: Annotated[Sequence[Sigma], Len(2, 2)] = (0.1, 2.0),
    mean: Annotated[Sequence[float], Len(3, 3)] = IMAGENET_MEAN,
    std: Annotated[Sequence[Positive], Len(3, 3)] = IMAGENET_STD,
    by: Literal["image", "batch", "device"] = "image",
) -> v2.Compose | BatchAugmentation:
    """The steps of `evaluation`, with random flip, rotation, crop, colours, blur and erasing.

    Args:
        size: pixels of the result.
        resize: pixels before the crop; the crop is random where they differ.
        flip: probability of a horizontal flip.
        rotation: degrees to either side.
        jitter: brightness, contrast, saturation, hue; all 0 switches it off.
        erase: probability of erasing a rectangle.
        erase_area: its share of the image, from and to.
        blur: probability of a Gaussian blur, before anything is erased.
        blur_sigma: its standard deviation in pixels of the result, from and to.
        mean, std: of the normalisation, for pixels in [0, 1].
        by: "image" uses torchvision v2 on each image. "batch" works on whole batches in the
            workers, with the same distribution, and is faster where there is colour jitter or
            rotation. "device" works on whole batches on the training device.

    Raises:
        UserError: `resize` is smaller than `size`, `jitter` does not have four numbers, a range
            has its larger end first, or `mean` and `std` do not have three numbers.
    """
    resize = checked(size, resize, mean, std)
    if len(jitter) != 4:
        raise UserError(f"augment.train.jitter needs four numbers, got {list(jitter)}")
    for name, (low, high) in {"erase_area": erase_area, "blur_sigma": blur_sigma}.items():
        if low > high:
            raise UserError(
                f"augment.train.{name} is from {low} to {high}: write the smaller first"
            )
    if by != "image":
        view = (resize, size, flip, rotation, jitter)
        spoilt = (erase, erase_area, blur, blur_sigma)
        return BatchAugmentation(*view, *spoilt, mean, std, on_device=by == "device")
    steps = _random_steps(size, resize, flip, rotation, jitter)
    if blur:
        gaussian = v2.GaussianBlur(kernel_size(size, blur_sigma), tuple(blur_sigma))
        steps.append(v2.RandomApply([gaussian], blur))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if erase:
        steps.append(v2.RandomErasing(erase, scale=tuple(erase_area)))
    return v2.Compose(steps)


def _random_steps(
    size: int, resize: int, flip: float, rotation: float, jitter: Sequence[float]
) -> list[Callable]:
    """From an image to its random view of `size` pixels, uint8."""
    steps = [v2.PILToTensor(), v2.Resize([resize, resize], antialias=True)]
    steps.append(v2.RandomHorizontalFlip(flip))
    if rotation:
        steps.append(v2.RandomRotation(rotation, interpolation=v2.InterpolationMode.BILINEAR))
    if resize > size:
        steps.append(v2.RandomCrop(size))
    if any(jitter):
        steps.append(v2.ColorJitter(*jitter))
    return steps


def unnormalised(images: Tensor, transform: Callable) -> Tensor:
    """Images (..., 3, H, W) to look at, in [0, 1]: the normalisation of a transform is undone."""
    for step in reversed(getattr(transform, "transforms", [])):
        if isinstance(step, v2.Normalize):
            mean, std = (images.new_tensor(x).view(3, 1, 1) for x in (step.mean, step.std))
            images = images * std + mean
    return images.clamp(0, 1)
