"""The evaluation transform in numpy, for predictions that do not need PyTorch.

It gives exactly the numbers of `qcs.data.transforms.evaluation` where torchvision resizes uint8
images in integers of 16 bits, as Pillow-SIMD does (aten/src/ATen/native/cpu/UpSampleKernel.cpp). On
CPUs without AVX2, and with torchvision 0.23 on those with AVX512, it resizes in floating point, and
some pixels differ by one grey level of 255.

H and W pixels.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Len
from PIL.Image import Image

from qcs.config.bounds import Pixels, Positive
from qcs.config.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def evaluation(
    size: Pixels,
    resize: Pixels | None = None,
    mean: Annotated[Sequence[float], Len(3, 3)] = IMAGENET_MEAN,
    std: Annotated[Sequence[Positive], Len(3, 3)] = IMAGENET_STD,
) -> Callable[[Image], np.ndarray]:
    """Resize both sides to `resize` pixels, crop the centre to `size`, normalise.

    An RGB image becomes (3, size, size) float32. `resize` is `size` by default (no crop).

    Raises:
        UserError: `resize` is smaller than `size`, or `mean` and `std` are not of three channels.
    """
    resize = checked(size, resize, mean, std)
    start = round((resize - size) / 2)
    shift, scale = (np.array(x, dtype=np.float32).reshape(3, 1, 1) for x in (mean, std))

    def transform(image: Image) -> np.ndarray:
        centre = resized(image, resize)[:, start : start + size, start : start + size]
        return (centre * np.float32(1 / 255) - shift) / scale

    return transform


def checked(size: int, resize: int | None, mean: Sequence[float], std: Sequence[float]) -> int:
    """Return the side before the crop.

    Raises:
        UserError: it is smaller than `size`, or `mean` and `std` are not of three channels.
    """
    if resize is not None and resize < size:
        raise UserError(f"augment: resize={resize} is smaller than size={size}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            "augment.mean and augment.std need three numbers each, those of std above 0, "
            f"got {list(mean)} and {list(std)}"
        )
    return resize or size


def resized(image: Image, size: int) -> np.ndarray:
    """An RGB image as (3, size, size) uint8, resized with antialiasing."""
    pixels = np.asarray(image)
    return _resized(_resized(pixels, size, 1), size, 0).transpose(2, 0, 1)


def _resized(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Resize one axis of (H, W, 3) uint8."""
    old = pixels.shape[axis]
    if old == size:
        return pixels
    taps, weights = _triangles(old, size)
    # As many bits as 16-bit weights allow; sums stay below 2 ** 31.
    bits = max(b for b in range(23) if weights.max() * 2**b < (1 << 15) - 0.5)
    weights = (0.5 + weights * (1 << bits)).astype(np.int32)
    rows = np.moveaxis(pixels, axis, 0)
    total = np.full((size, *rows.shape[1:]), (1 << bits) >> 1, dtype=np.int32)  # to round
    for tap, weight in zip(taps.T, weights.T, strict=True):
        total += rows[tap] * weight[:, None, None]
    return np.moveaxis((total >> bits).clip(0, 255).astype(np.uint8), 0, axis)


def _triangles(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the old pixels make each of the new ones, and with what weights, both (new, N)."""
    scale = old / new
    support = max(scale, 1.0)
    centres = scale * (np.arange(new) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    end = np.minimum((centres + support + 0.5).astype(int), old)
    taps = first[:, None] + np.arange((end - first).max())
    weights = 1 - np.abs((taps - centres[:, None] + 0.5) * (1 / support))
    weights = weights.clip(0) * (taps < end[:, None])
    return taps.clip(max=old - 1), weights / weights.sum(1, keepdims=True)
