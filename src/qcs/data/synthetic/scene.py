"""The canvas and the map from head units to its pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from qcs.data.synthetic.people import Person, Shot

_SHADE_SIDE = 56  # soft shading is computed on a grid of this side and enlarged


class Scene:
    """A canvas with the map from head units to its pixels."""

    def __init__(self, side: int, person: Person, shot: Shot, actions: dict[str, float]) -> None:
        self.side, self.person, self.shot, self.act = side, person, shot, actions
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image)
        self.unit = shot.zoom * side
        self.centre = side * (np.array((0.5, 0.515)) + shot.shift)
        self.drop = 0.17 * actions["jaw"]

    def turn(self, points: ArrayLike, lift: float = 0.0, rim: bool = False) -> np.ndarray:
        """Points in head units after yaw and pitch.

        Args:
            points: (n, 2), of the face as seen from the front.
            lift: how far they lie above the face, in head units.
            rim: whether they lie in the plane of the head's outline, not on the face.
        """
        u, v = np.asarray(points, float).T
        width = self.person.half_width * 1.12
        depth = np.sqrt(np.maximum(0.0, 1 - (u / width) ** 2 - (v / 1.35) ** 2)) * 0.62
        depth = np.full_like(u, lift) if rim else depth + lift
        shot = self.shot
        x = u * np.cos(shot.yaw) + depth * np.sin(shot.yaw)
        return np.stack((x, v * np.cos(shot.pitch) - depth * np.sin(shot.pitch)), -1)

    def at(self, points: ArrayLike, lift: float = 0.0, rim: bool = False) -> list[tuple]:
        """The pixels of points in head units, see `turn`."""
        x, y = self.turn(points, lift, rim).T
        cos, sin = np.cos(self.shot.roll), np.sin(self.shot.roll)
        across = self.centre[0] + self.unit * (x * cos - y * sin)
        down = self.centre[1] + self.unit * (x * sin + y * cos)
        return list(zip(across.tolist(), down.tolist(), strict=True))

    def fill(self, points: ArrayLike, colour: tuple, lift: float = 0.0, rim: bool = False) -> None:
        """Fills a polygon of points in head units."""
        self.pen.polygon(self.at(points, lift, rim), fill=colour)

    def stroke(self, points: ArrayLike, colour: tuple, width: float, lift: float = 0.0) -> None:
        """Draws a line along points in head units; the width is in head units too."""
        pixels = max(1, round(width * self.unit))
        self.pen.line(self.at(points, lift), fill=colour, width=pixels, joint="curve")

    def mask(self, *outlines: list[tuple]) -> Image.Image:
        """A grey canvas that is 255 inside the outlines, which are in pixels."""
        mask = Image.new("L", self.image.size)
        pen = ImageDraw.Draw(mask)
        for outline in outlines:
            pen.polygon(outline, fill=255)
        return mask

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Head units (after yaw and pitch) of the points of the shading grid."""
        steps = (np.arange(_SHADE_SIDE) + 0.5) * self.side / _SHADE_SIDE
        x, y = np.meshgrid(*((steps - middle) / self.unit for middle in self.centre))
        cos, sin = np.cos(self.shot.roll), np.sin(self.shot.roll)
        return x * cos + y * sin, y * cos - x * sin

    def enlarge(self, grid: np.ndarray) -> Image.Image:
        """A shading grid as an image of the canvas's size."""
        small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
        return small.resize(self.image.size, Image.Resampling.BICUBIC)

    def sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """A grey canvas of half the side, for soft marks."""
        side = max(48, self.side // 2)
        sheet = Image.new("L", (side, side))
        return sheet, ImageDraw.Draw(sheet)
