"""Colour changes of many images at once, in place.

The hue is turned without a conversion to HSV and back. Let M and m be the largest and the smallest
of a pixel's channels r, g and b, and c = M - m. Its hue in sixths of a turn, times c, is then
copysign(M + g + b - r - 2 m, g - b). After the turn a channel is M + c - d, clamped to m and M,
where d is the distance of the new hue from that of the channel, in sixths of a turn, times c.

N images, P pixels a side; levels run from 0 to 255, factors are (N, 1, 1, 1).
"""

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue, those of torchvision


def brightness(x: Tensor, factor: Tensor) -> None:
    """Scale levels (N, 3, P, P)."""
    x.mul_(factor).clamp_(0, 255)


def contrast(x: Tensor, factor: Tensor) -> None:
    """Scale the distance of levels (N, 3, P, P) to the image's mean grey."""
    grey = x.mean((2, 3)) @ x.new_tensor(GREY)  # (N,)
    x.mul_(factor).add_((1 - factor) * grey.view(-1, 1, 1, 1)).clamp_(0, 255)


def saturation(x: Tensor, factor: Tensor) -> None:
    """Scale the distance of levels (N, 3, P, P) to each pixel's grey."""
    red, green, blue = x.unbind(1)
    grey = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])[:, None]
    x.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 255)


def hue(x: Tensor, turns: Tensor) -> None:
    """Turn the hue of levels (N, 3, P, P) in place.

    Args:
        x: contiguous, of any range.
        turns: (N, 1, 1, 1), from -1/6 to 1/6; beyond, red as well would need the distance both
            ways round the circle.
    """
    red, green, blue = x.unbind(1)  # each (N, P, P)
    shape = (7, *red.shape)
    top, low, chroma, angle, distance, near, far = x.new_empty(shape).unbind()  # one allocation
    torch.maximum(torch.maximum(red, green, out=top), blue, out=top)
    torch.minimum(torch.minimum(red, green, out=low), blue, out=low)
    torch.sub(top, low, out=chroma)
    torch.sub(green, blue, out=distance)
    torch.add(top, green, out=angle).add_(blue).sub_(red).sub_(low, alpha=2)
    torch.copysign(angle, distance, out=angle)
    angle.add_(torch.mul(chroma, 6 * turns[:, 0], out=distance))
    torch.add(top, chroma, out=near)
    torch.sub(top, chroma, alpha=5, out=far)
    for channel, offset in zip((red, green, blue), (0, -2, 2), strict=True):
        torch.add(angle, chroma, alpha=offset, out=distance).abs_()
        torch.sub(near, distance, out=channel)
        if offset:  # the other way round the circle
            torch.maximum(channel, distance.add_(far), out=channel)
        torch.maximum(torch.minimum(channel, top, out=channel), low, out=channel)
