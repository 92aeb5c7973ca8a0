"""Training augmentation of many images at once, each with its own random numbers.

The distribution is that of `transforms.training` (torchvision v2): the steps, their ranges, the
random order of the colour changes, and the clamping are the same. The one difference is that values
are rounded to whole levels once, at the end, and not after each step. The CPU takes one image after
the other, so that each stays in the processor's cache; a device takes all of them at once.

N images, S pixels a side before, P pixels a side of the result.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from qcs.config.errors import UserError
from qcs.data.colours import brightness, contrast, hue, saturation

ERASE_TRIES, ERASE_RATIO = 10, (0.3, 3.3)  # those of torchvision


class Parameters(NamedTuple):
    """The random numbers of N images."""

    flip: Tensor  # (N,) bool
    angle: Tensor  # (N,) degrees, counter-clockwise
    corner: Tensor  # (N, 2) top and left of the crop
    factors: Tensor  # (N, 4) of brightness, contrast, saturation, and hue, in turns
    order: Tensor  # (N, 4) in which these four are applied
    rectangle: Tensor  # (N, 4) top, left, bottom, right of what is erased; 0 for nothing
    sigma: Tensor  # (N,) pixels, the standard deviation of the blur; 0 for none

    def rows(self, rows: slice) -> "Parameters":
        """The random numbers of some of the images."""
        return Parameters(*(column[rows] for column in self))


class BatchAugmentation:
    """Takes images (N, 3, S, S) uint8 to (N, 3, P, P) float32.

    Args:
        resize: S.
        size: P; the crop is random where it is smaller than S.
        flip: probability of a horizontal flip.
        rotation: degrees to either side.
        jitter: brightness, contrast, saturation, hue; 0 switches one off.
        erase: probability of erasing a rectangle.
        erase_area: its share of the image, from and to.
        blur: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels of the result, from and to.
        mean, std: of the normalisation, for pixels in [0, 1].
        on_device: whether the data module calls it on the training device, not in the workers.
    """

    def __init__(
        self,
        resize: int,
        size: int,
        flip: float,
        rotation: float,
        jitter: Sequence[float],
        erase: float,
        erase_area: Sequence[float],
        blur: float,
        blur_sigma: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
        on_device: bool = False,
    ) -> None:
        self.resize, self.size, self.flip, self.rotation = resize, size, flip, rotation
        self.jitter, self.erase, self.erase_area = tuple(jitter), erase, tuple(erase_area)
        self.blur, self.blur_sigma = blur, tuple(blur_sigma)
        self.scale = [1 / (255 * s) for s in std]
        self.shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.on_device = on_device
        self.side = size

    def sub_sample(self, size: int | None) -> None:
        """Sub-sample the results to `size` pixels a side, as `transforms.sub_sampled` does."""
        self.side = min(self.size, size or self.size)

    def parameters(self, number: int, generator: torch.Generator) -> Parameters:
        """Draw the random numbers of `number` images, on the CPU."""
        uniform = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
        spread = torch.tensor(self.jitter)
        low = torch.cat([(1 - spread[:3]).clamp(min=0), -spread[3:]])
        high = torch.cat([1 + spread[:3], spread[3:]])
        return Parameters(
            flip=uniform(number) < self.flip,
            angle=(2 * uniform(number) - 1) * self.rotation,
            corner=(uniform(number, 2) * (self.resize - self.size + 1)).long(),
            factors=low + uniform(number, 4) * (high - low),
            order=uniform(number, 4).argsort(1),
            rectangle=self._rectangles(number, uniform),
            sigma=self._sigmas(number, uniform),
        )

    def _rectangles(self, number: int, uniform: Callable[..., Tensor]) -> Tensor:
        low, high = self.erase_area
        area = (low + uniform(number, ERASE_TRIES) * (high - low)) * self.size**2
        low, high = (math.log(ratio) for ratio in ERASE_RATIO)
        aspect = torch.exp(low + uniform(number, ERASE_TRIES) * (high - low))
        sides = torch.stack([area * aspect, area / aspect], -1).sqrt().round().long()
        fits = (sides < self.size).all(-1)
        sides = sides[torch.arange(number), fits.long().argmax(1)]  # the first that fits
        corner = (uniform(number, 2) * (self.size - sides + 1)).long()
        erased = fits.any(1) & (uniform(number) < self.erase)
        return torch.cat([corner, corner + sides], 1) * erased[:, None]

    def _sigmas(self, number: int, uniform: Callable[..., Tensor]) -> Tensor:
        low, high = self.blur_sigma
        return (low + uniform(number) * (high - low)) * (uniform(number) < self.blur)

    def __call__(
        self, images: Tensor, seed: int, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Do every step but erasing and normalising, which `finish` does.

        The result depends on the images and the seed alone. As it is uint8, workers have to hand
        over a quarter of the bytes that float32 would take.

        Args:
            images: (N, 3, S, S) uint8.
            seed: of the random numbers.
            out: (N, 3, side, side) uint8, which the result is written to.

        Returns:
            Images (N, 3, side, side) uint8, and rectangles (N, 4) for `finish`.
        """
        if images.shape[-2:] != (self.resize, self.resize):
            raise UserError(f"expected images of {self.resize} pixels, got {tuple(images.shape)}")
        p = self.parameters(len(images), torch.Generator().manual_seed(seed))
        if out is None:
            out = images.new_empty((len(images), 3, self.side, self.side))
        step = 1 if images.device.type == "cpu" else len(images)
        for i in range(0, len(images), step):
            rows = slice(i, i + step)
            self._apply(images[rows], p.rows(rows), out[rows])
        return out, self._sub_sampled_edges(p.rectangle)

    def finish(self, images: Tensor, rectangle: Tensor) -> Tensor:
        """Normalise images (..., 3, side, side) uint8 to float32, erase rectangles (..., 4)."""
        scale = torch.tensor(self.scale, device=images.device).view(3, 1, 1)
        shift = torch.tensor(self.shift, device=images.device).view(3, 1, 1)
        if images.device.type != "cpu":
            return torch.mul(images, scale).add_(shift).masked_fill_(_inside(rectangle, images), 0)
        out = torch.empty(images.shape, dtype=torch.float32)
        faces = zip(out.flatten(0, -4), images.flatten(0, -4), strict=True)
        corners = rectangle.flatten(0, -2).tolist()
        for (face, levels), (top, left, bottom, right) in zip(faces, corners, strict=True):
            face.copy_(levels).mul_(scale).add_(shift)  # each stays in the processor's cache
            face[:, top:bottom, left:right] = 0
        return out

    def _sub_sampled_edges(self, rectangle: Tensor) -> Tensor:
        """The edges of rectangles (N, 4) among those pixels that sub-sampling keeps."""
        if self.side == self.size:
            return rectangle
        places = torch.arange(self.size, dtype=torch.float32).view(1, 1, -1)
        kept = F.interpolate(places, size=self.side, mode="nearest").long().flatten()
        return torch.searchsorted(kept, rectangle.contiguous())

    def _apply(self, images: Tensor, p: Parameters, out: Tensor) -> None:
        cut = self._rotated(images, p) if self.rotation else self._cropped(images, p)
        if any(self.jitter):
            cut = cut.float()
            self._colours(cut, p)
        if p.sigma.any():
            cut = self._blurred(cut.float(), p.sigma)
        if self.side < self.size:
            cut = F.interpolate(cut, size=self.side, mode="nearest")
        if cut.is_floating_point():
            cut = cut.round_().short()  # straight from float to uint8 is slower
        out.copy_(cut)

    def _cropped(self, images: Tensor, p: Parameters) -> Tensor:
        cuts = []
        for image, (top, left), flip in zip(images, p.corner.tolist(), p.flip, strict=True):
            image = image.flip(-1) if flip else image
            cuts.append(image[:, top : top + self.size, left : left + self.size])
        return torch.stack(cuts) if len(cuts) > 1 else cuts[0][None]

    def _rotated(self, images: Tensor, p: Parameters) -> Tensor:
        """Flip, rotate about the centre and crop, sampling once; what lies outside is black."""
        device, half = images.device, self.resize / 2
        corner = p.corner.to(device)
        line = torch.arange(self.size, device=device) + 0.5 - half
        y = (corner[:, :1] + line)[:, :, None]  # (N, P, 1)
        x = (corner[:, 1:] + line)[:, None]  # (N, 1, P)
        angle = torch.deg2rad(p.angle).to(device)[:, None, None]
        mirror = (1 - 2 * p.flip.float()).to(device)[:, None, None]
        source_x = (angle.cos() * x - angle.sin() * y) * mirror
        source_y = angle.sin() * x + angle.cos() * y
        grid = torch.stack([source_x, source_y], -1) / half  # (N, P, P, 2)
        planes = F.pad(images.float(), (0, 0, 0, 0, 0, 1), value=1.0)  # the fourth is 1 inside
        sampled = F.grid_sample(planes, grid, align_corners=False)
        return sampled[:, :3].mul_(sampled[:, 3:])

    def _colours(self, x: Tensor, p: Parameters) -> None:
        """Apply the four changes in each image's own order; in place, on levels from 0 to 255."""
        changes = (brightness, contrast, saturation, self._hue)
        factors = p.factors.to(x.device)
        for place in zip(*p.order.tolist(), strict=True):
            for kind in set(place):
                if not self.jitter[kind]:
                    continue
                rows = [i for i, other in enumerate(place) if other == kind]
                if len(rows) == len(x):
                    changes[kind](x, factors[:, kind].view(-1, 1, 1, 1))
                    continue
                some = x[rows]
                changes[kind](some, factors[rows, kind].view(-1, 1, 1, 1))
                x[rows] = some

    def _blurred(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Blur each of x (N, 3, P, P) by its own Gaussian, mirrored at the edges."""
        rows = sigma.nonzero().flatten().to(x.device)
        reach = kernel_size(self.size, self.blur_sigma) // 2
        away = torch.arange(-reach, reach + 1, dtype=torch.float32)
        weights = torch.softmax(-0.5 * (away / sigma[sigma > 0][:, None]) ** 2, 1)  # (n, K)
        weights = weights.to(x.device).repeat_interleave(3, 0)[:, None]  # (3n, 1, K)
        planes = F.pad(x[rows], (reach,) * 4, mode="reflect").flatten(0, 1)[None]
        planes = F.conv2d(planes, weights[:, :, :, None], groups=len(weights))
        planes = F.conv2d(planes, weights[:, :, None], groups=len(weights))
        return x.index_copy(0, rows, planes[0].unflatten(0, (-1, 3)))

    def _hue(self, x: Tensor, turns: Tensor) -> None:
        """Turn the hue, in steps of a sixth of a turn at most, see `colours.hue`."""
        steps = max(1, math.ceil(6 * self.jitter[3]))
        for _ in range(steps):
            hue(x, turns / steps)


def kernel_size(size: int, sigma: Sequence[float]) -> int:
    """Pixels of a side of the blur's kernel: three deviations, within an image of `size` pixels."""
    return 2 * min(math.ceil(3 * sigma[1]), size - 1) + 1


def _inside(rectangle: Tensor, images: Tensor) -> Tensor:
    """Which pixels of images (..., 3, H, W) lie in rectangles (..., 4): (..., 1, H, W)."""
    top, left, bottom, right = rectangle.to(images.device)[..., None].unbind(-2)  # (..., 1)
    y, x = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    return (rows[..., :, None] & columns[..., None, :]).unsqueeze(-3)
