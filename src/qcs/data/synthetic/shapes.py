"""Curves, outlines and colours to draw with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def mix(a: ArrayLike, b: ArrayLike, share: float | np.ndarray) -> np.ndarray:
    """A blend of two colours (or arrays): `a` at share 0, `b` at share 1."""
    return np.asarray(a) * (1 - share) + np.asarray(b) * share


def ink(colour: ArrayLike, gain: float = 1.0) -> tuple[int, int, int]:
    """A colour times a gain, as Pillow takes it."""
    red, green, blue = np.clip(np.asarray(colour) * gain, 0, 255).astype(int).tolist()
    return red, green, blue


def spline(points: ArrayLike, closed: bool = False, steps: int = 6) -> np.ndarray:
    """A smooth curve (a Catmull-Rom spline) through points (m, 2), about (m * steps, 2)."""
    p = np.asarray(points, float)
    before, after = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    ring = np.concatenate((before, p, after))
    a, b, c, d = ring[:-3], ring[1:-2], ring[2:-1], ring[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    cubic = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = cubic.swapaxes(0, 1).reshape(-1, 2)
    return curve if closed else np.concatenate((curve, p[-1:]))


def ribbon(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The outline of a stroke along points that has the given width at each of them."""
    along = np.gradient(points, axis=0)
    normal = np.stack((-along[:, 1], along[:, 0]), 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    offset = normal * np.asarray(widths)[:, None] / 2
    return np.concatenate((points + offset, (points - offset)[::-1]))


def mirror(points: ArrayLike) -> np.ndarray:
    """The closed outline of a right half, given from top to bottom, and its mirror image."""
    half = np.asarray(points, float)
    return np.concatenate((half, (half * (-1, 1))[::-1]))
