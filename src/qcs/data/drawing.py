"""Draws synthetic faces with an expression, with Pillow and numpy only.

The faces are illustrations made by code. No photograph and no person stands behind them, and
a number measured on them says nothing about real faces. `qcs.data.synthetic` makes them into
a data set.

Lengths are in head units: the origin is the middle of the face, u points right, v points down,
the chin is near v = 1 and the crown near v = -1.08. Facial actions follow the action units (AU)
of the facial action coding system and run from 0 (absent) to about 1 (full).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

EXPRESSIONS: tuple[str, ...] = (
    "Surprise",
    "Fear",
    "Disgust",
    "Happiness",
    "Sadness",
    "Anger",
    "Neutral",
)

# brow_in AU1, brow_out AU2, knit AU4, lid AU5, cheek AU6, tight AU7, wrinkle AU9, upper AU10,
# smile AU12, frown AU15, chin AU17, stretch AU20, press AU24, part AU25, jaw AU26;
# droop, gaze and round (a round mouth) complete them. Each expression has some variants.
_ACTIONS = (
    *("brow_in", "brow_out", "knit", "lid", "cheek", "tight", "wrinkle", "upper", "smile"),
    *("frown", "chin", "stretch", "press", "part", "jaw", "droop", "gaze", "round"),
)
_VARIANTS: dict[str, tuple[dict[str, float], ...]] = {
    "Surprise": (
        {"brow_in": 1.0, "brow_out": 1.0, "lid": 0.9, "jaw": 1.0, "round": 0.9},
        {"brow_in": 0.9, "brow_out": 1.0, "lid": 0.7, "jaw": 0.6, "round": 0.7},
    ),
    "Fear": (
        {"brow_in": 1.0, "brow_out": 0.4, "knit": 0.5, "lid": 1.0, "stretch": 1.0, "part": 0.8},
        {"brow_in": 0.9, "brow_out": 0.5, "knit": 0.6, "lid": 0.9, "stretch": 0.7, "jaw": 0.45},
    ),
    "Disgust": (
        {"wrinkle": 1.0, "upper": 1.0, "knit": 0.5, "tight": 0.7, "frown": 0.3},
        {"wrinkle": 0.9, "upper": 0.9, "knit": 0.4, "tight": 0.6, "part": 0.6, "chin": 0.4},
    ),
    "Happiness": (
        {"smile": 1.0, "cheek": 0.9, "part": 1.0},
        {"smile": 0.9, "cheek": 0.7},
        {"smile": 1.0, "cheek": 1.0, "part": 0.6, "jaw": 0.5},
    ),
    "Sadness": (
        {"brow_in": 0.9, "knit": 0.35, "frown": 1.0, "droop": 0.6, "chin": 0.6, "gaze": 0.3},
        {"brow_in": 0.7, "knit": 0.3, "frown": 0.8, "droop": 0.8, "gaze": 1.0},
    ),
    "Anger": (
        {"knit": 1.0, "tight": 0.6, "press": 1.0, "lid": 0.3},
        {"knit": 1.0, "tight": 0.7, "part": 0.9, "upper": 0.25, "stretch": 0.3, "lid": 0.3},
    ),
    "Neutral": ({},),
}

_SKINS = np.array(
    [(252, 222, 202), (240, 196, 166), (222, 170, 130), (188, 130, 92), (138, 86, 58), (86, 54, 40)]
)
_HAIRS = np.array(
    [(24, 20, 20), (46, 32, 26), (84, 56, 38), (126, 66, 38), (196, 152, 92), (150, 148, 146)]
)
_IRISES = np.array([(58, 36, 22), (94, 62, 36), (104, 112, 62), (92, 128, 158), (118, 124, 126)])
_STYLES = ("bald", "buzz", "short", "part", "fringe", "receding", "long", "curly", "bun")
_SHADE_SIDE = 56  # soft shading is computed on a grid of this side and enlarged


@dataclass(frozen=True)
class _Person:
    """What stays the same in every image of one identity (lengths in head units)."""

    half_width: float
    jaw: float
    chin: float
    eye_gap: float
    eye_size: float
    eye_tilt: float
    eye_open: float
    nose_width: float
    nose_end: float
    mouth_width: float
    mouth_height: float
    corner_rest: float
    lip: float
    brow_height: float
    brow_thick: float
    brow_arch: float
    age: float
    makeup: float
    beard: float
    moustache: float
    style: str
    hairline: float
    glasses: bool
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray


def _person(seed: int, identity: int) -> _Person:
    rng = np.random.default_rng([seed, identity])
    tone = rng.uniform(0, len(_SKINS) - 1)
    low = int(min(tone, len(_SKINS) - 2))
    skin = _mix(_SKINS[low], _SKINS[low + 1], tone - low) + rng.normal(0, 4, 3)
    age = float(rng.beta(1.2, 1.8))
    hair = _HAIRS[rng.choice(6, p=(0.28, 0.24, 0.18, 0.08, 0.14, 0.08))] + rng.normal(0, 5, 3)
    hair = _mix(hair, np.array((196, 194, 192)), max(0.0, age - 0.65) * 2.2)
    bearded, female = rng.random(), rng.random() < 0.5
    weights = (1, 1, 1, 2, 3, 0.2, 5, 2, 2) if female else (2, 2, 4, 3, 1.5, 2, 0.7, 1.5, 0.2)
    draw = rng.uniform
    return _Person(
        half_width=draw(0.70, 0.83),
        jaw=draw(0.74, 0.86) if female else draw(0.80, 0.94),
        chin=draw(0.24, 0.34) if female else draw(0.28, 0.44),
        eye_gap=draw(0.285, 0.345),
        eye_size=draw(0.88, 1.16),
        eye_tilt=draw(-0.014, 0.03),
        eye_open=draw(0.82, 1.15),
        nose_width=draw(0.10, 0.165),
        nose_end=draw(0.31, 0.41),
        mouth_width=draw(0.23, 0.29),
        mouth_height=draw(0.58, 0.65),
        corner_rest=draw(-0.018, 0.018),
        lip=draw(0.75, 1.4),
        brow_height=draw(-0.285, -0.235),
        brow_thick=draw(0.022, 0.036) if female else draw(0.032, 0.056),
        brow_arch=draw(0.02, 0.065),
        age=age,
        makeup=draw(0.3, 1.0) if female and rng.random() < 0.5 else 0.0,
        beard=draw(0.35, 1.0) if not female and bearded < 0.38 else 0.0,
        moustache=draw(0.5, 1.0) if not female and 0.1 < bearded < 0.48 else 0.0,
        style=str(rng.choice(_STYLES, p=np.array(weights) / sum(weights))),
        hairline=draw(-0.76, -0.60),
        glasses=rng.random() < 0.22,
        skin=np.clip(skin, 20, 255),
        hair=np.clip(hair, 8, 235),
        iris=_IRISES[rng.integers(len(_IRISES))] + rng.normal(0, 8, 3),
    )


@dataclass(frozen=True)
class _Shot:
    """What changes from image to image and has nothing to do with the expression."""

    roll: float
    yaw: float
    pitch: float
    zoom: float
    shift: np.ndarray
    light: np.ndarray
    contrast: float
    tint: np.ndarray
    exposure: float
    blur: float
    noise: float
    grey: bool
    cover: str
    hat: str
    glasses: str
    gaze: float
    cloth: np.ndarray
    props: np.ndarray


def _shot(entropy: list[int], person: _Person) -> _Shot:
    rng = np.random.default_rng([*entropy, 1])
    roll, yaw, pitch = np.clip(rng.normal(0, 1, 3), -2, 2) * np.radians((6.0, 9.0, 5.0))
    light = np.array((rng.normal(0, 0.45), rng.uniform(-0.75, 0.1), 0.85))
    covers = ("", "mask", "scarf", "hand")
    glasses = ("clear" if rng.random() < 0.85 else "dark") if rng.random() < 0.06 else ""
    worn = "clear" if rng.random() < 0.93 else "dark"
    return _Shot(
        roll=roll,
        yaw=yaw,
        pitch=pitch,
        zoom=rng.uniform(0.385, 0.455),
        shift=rng.normal(0, 0.018, 2),
        light=light / np.linalg.norm(light),
        contrast=rng.uniform(0.25, 0.75),
        tint=1 + rng.normal(0, 0.05, 3),
        exposure=float(np.exp(rng.normal(0.02, 0.16))),
        blur=max(0.0, rng.normal(0.0, 0.55)),
        noise=rng.gamma(1.3, 2.6),
        grey=rng.random() < 0.15,
        cover=str(rng.choice(covers, p=(0.925, 0.025, 0.02, 0.03))),
        hat=str(
            rng.choice(("", "beanie", "cap", "brim", "veil"), p=(0.89, 0.03, 0.03, 0.02, 0.03))
        ),
        glasses=worn if person.glasses else glasses,
        gaze=float(np.clip(rng.normal(0, 0.35), -0.8, 0.8)),
        cloth=rng.uniform(25, 225, 3),
        props=rng.random(8),
    )


def _actions(entropy: list[int], expression: str) -> dict[str, float]:
    """Strength of every action on the left and right side: AU name with suffix l or r."""
    rng = np.random.default_rng([*entropy, 2])
    pick, intensity = rng.random(), rng.uniform(0.5, 1.0)
    variants = _VARIANTS[expression]
    weights = variants[int(pick * len(variants))]
    actions: dict[str, float] = {}
    for name in _ACTIONS:
        stray = max(0.0, rng.normal(-0.04, 0.11))
        value = weights.get(name, 0.0) * intensity * rng.uniform(0.75, 1.15) + stray
        skew = rng.normal(0, 0.09)
        actions[name] = value
        actions[name + "l"], actions[name + "r"] = value * (1 + skew), value * (1 - skew)
    return actions


def _mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    return np.asarray(a) * (1 - share) + np.asarray(b) * share


def _ink(colour: np.ndarray, gain: float = 1.0) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.asarray(colour) * gain, 0, 255).astype(int).tolist()
    return red, green, blue


def _spline(points: object, closed: bool = False, steps: int = 6) -> np.ndarray:
    """A smooth (Catmull-Rom) curve through the points: (m, 2) to about (m * steps, 2)."""
    p = np.asarray(points, float)
    ring = (
        np.concatenate((p[-1:], p, p[:2]))
        if closed
        else np.concatenate((2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]))
    )
    a, b, c, d = ring[:-3], ring[1:-2], ring[2:-1], ring[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    cubic = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = cubic.swapaxes(0, 1).reshape(-1, 2)
    return curve if closed else np.concatenate((curve, p[-1:]))


def _ribbon(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The outline of a stroke along the points with a width at each of them."""
    along = np.gradient(points, axis=0)
    normal = np.stack((-along[:, 1], along[:, 0]), 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    offset = normal * np.asarray(widths)[:, None] / 2
    return np.concatenate((points + offset, (points - offset)[::-1]))


def _mirror(points: np.ndarray) -> np.ndarray:
    """A right half, from top to bottom, continued by its mirror image to a closed outline."""
    half = np.asarray(points, float)
    return np.concatenate((half, (half * (-1, 1))[::-1]))


class _Scene:
    """A canvas with the map from head units to its pixels."""

    def __init__(self, side: int, person: _Person, shot: _Shot, actions: dict[str, float]):
        self.side, self.person, self.shot, self.act = side, person, shot, actions
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image)
        self.unit = shot.zoom * side
        self.centre = side * (np.array((0.5, 0.515)) + shot.shift)
        self.drop = 0.17 * actions["jaw"]

    def turn(self, points: object, lift: float = 0.0, rim: bool = False) -> np.ndarray:
        """Yaw and pitch in head units; `rim` points lie in the plane of the outline."""
        u, v = np.asarray(points, float).T
        width = self.person.half_width * 1.12
        depth = np.sqrt(np.maximum(0.0, 1 - (u / width) ** 2 - (v / 1.35) ** 2)) * 0.62
        depth = np.full_like(u, lift) if rim else depth + lift
        shot = self.shot
        x = u * np.cos(shot.yaw) + depth * np.sin(shot.yaw)
        return np.stack((x, v * np.cos(shot.pitch) - depth * np.sin(shot.pitch)), -1)

    def at(self, points: object, lift: float = 0.0, rim: bool = False) -> list[tuple]:
        """Pixels of points in head units."""
        x, y = self.turn(points, lift, rim).T
        cos, sin = np.cos(self.shot.roll), np.sin(self.shot.roll)
        across = self.centre[0] + self.unit * (x * cos - y * sin)
        down = self.centre[1] + self.unit * (x * sin + y * cos)
        return list(zip(across.tolist(), down.tolist(), strict=True))

    def fill(self, points: object, colour: tuple, lift: float = 0.0, rim: bool = False) -> None:
        self.pen.polygon(self.at(points, lift, rim), fill=colour)

    def stroke(self, points: object, colour: tuple, width: float, lift: float = 0.0) -> None:
        pixels = max(1, round(width * self.unit))
        self.pen.line(self.at(points, lift), fill=colour, width=pixels, joint="curve")

    def mask(self, *outlines: list[tuple]) -> Image.Image:
        mask = Image.new("L", self.image.size)
        pen = ImageDraw.Draw(mask)
        for outline in outlines:
            pen.polygon(outline, fill=255)
        return mask

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Head units (after yaw and pitch) of the points of the shading grid."""
        steps = (np.arange(_SHADE_SIDE) + 0.5) * self.side / _SHADE_SIDE
        x, y = np.meshgrid(
            (steps - self.centre[0]) / self.unit, (steps - self.centre[1]) / self.unit
        )
        cos, sin = np.cos(self.shot.roll), np.sin(self.shot.roll)
        return x * cos + y * sin, y * cos - x * sin

    def enlarge(self, grid: np.ndarray) -> Image.Image:
        """A shading grid as an image of the canvas's size."""
        small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
        return small.resize(self.image.size, Image.Resampling.BICUBIC)

    def sheet(self, share: float = 0.5) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """A smaller grey sheet for soft marks."""
        side = max(48, int(self.side * share))
        sheet = Image.new("L", (side, side))
        return sheet, ImageDraw.Draw(sheet)


def _background(s: _Scene, rng: np.random.Generator) -> None:
    first, second = rng.uniform(20, 235, (2, 3))
    cells = rng.integers(2, 7)
    mix = rng.random((cells, cells, 1)) * rng.uniform(0.2, 1.0)
    small = Image.fromarray(_mix(first, second, mix).astype(np.uint8))
    s.image.paste(small.resize(s.image.size, Image.Resampling.BICUBIC))
    for _ in range(rng.integers(0, 6)):
        x, y, w, h = rng.uniform((-0.2, -0.2, 0.05, 0.1), (1, 1, 0.6, 0.9)) * s.side
        shape = s.pen.rectangle if rng.random() < 0.6 else s.pen.ellipse
        shape((x, y, x + w, y + h), fill=_ink(_mix(first, rng.uniform(10, 245, 3), 0.5)))
    s.image.paste(s.image.resize((24, 24)).resize(s.image.size, Image.Resampling.BICUBIC))


def _body(s: _Scene) -> None:
    p, shot = s.person, s.shot
    neck = 0.62 * p.half_width + 0.12 * (p.jaw - 0.8)
    skin = p.skin * (0.80 - 0.2 * shot.contrast)
    s.fill(_mirror([(neck, 0.3), (neck, 1.15), (neck + 0.15, 1.5)]), _ink(skin), rim=True)
    shadow = _spline(_mirror([(neck, 0.6), (neck, 0.98), (neck * 0.5, 1.2)]))
    s.fill(shadow, _ink(skin, 0.72), -0.05, rim=True)
    top = 1.2 + 0.12 * shot.props[0]
    right = _spline([(neck * 0.9, top - 0.03), (0.75, top + 0.08), (1.25, top + 0.3), (1.5, 2.4)])
    dip = [(0.0, top + 0.25 * shot.props[1])]
    s.fill(np.concatenate((dip, right, (right * (-1, 1))[::-1])), _ink(shot.cloth), -0.1, rim=True)
    for side in (-1, 1):
        ear = _spline(
            np.array([(0.94, -0.12), (1.1, -0.14), (1.13, 0.05), (1.06, 0.25), (0.95, 0.24)])
            * (side * p.half_width, 1),
            closed=True,
        )
        s.fill(ear, _ink(p.skin, 0.84), -0.22, rim=True)
        inner = np.array((side * p.half_width * 1.03, 0.05))
        s.fill(inner + (ear - inner) * 0.55, _ink(p.skin * (0.7, 0.6, 0.58)), -0.22, rim=True)


def _head(s: _Scene) -> list[tuple]:
    p, d = s.person, s.drop
    w = p.half_width
    half = [
        *((0.2 * w, -1.08), (0.62 * w, -0.97), (0.9 * w, -0.68), (w, -0.25), (0.975 * w, 0.18)),
        *((p.jaw * w, 0.56 + 0.3 * d), (p.chin * 1.3, 0.84 + 0.8 * d), (p.chin * 0.6, 1 + d)),
    ]
    return s.at(_spline(_mirror(half), closed=True), rim=True)


def _bumps(s: _Scene) -> np.ndarray:
    """Soft light and dark spots, one a row: u, v, width, height, strength."""
    p, a = s.person, s.act
    mouth, end, gap = p.mouth_height, p.nose_end, p.eye_gap
    rows = [
        (0.0, 0.05, 0.05, 0.25, 0.10),
        (0.0, end - 0.05, 0.07, 0.06, 0.13),
        (0.0, end + 0.08, 0.10, 0.05, -0.13),
        (0.0, mouth + 0.16 + s.drop, 0.16, 0.05, -0.15),
        (0.0, 0.86 + s.drop, 0.13, 0.09, 0.07),
        (0.0, -0.52, 0.36, 0.2, 0.05),
        (0.0, -0.22, 0.06, 0.09, -0.14 * a["knit"]),
    ]
    for side, key in ((-1, "l"), (1, "r")):
        cheek = a["cheek" + key] + 0.5 * a["smile" + key]
        rows += [
            (side * gap * 0.55, -0.06, 0.09, 0.12, -0.15),
            (side * gap, -0.13, 0.18, 0.07, -0.09),
            (side * (gap + 0.06), 0.25 - 0.04 * cheek, 0.17, 0.13, 0.06 + 0.08 * cheek),
            (side * gap, 0.11, 0.13, 0.035, -0.05 - 0.10 * p.age),
            (side * 0.50, 0.54, 0.10, 0.2, -0.05 - 0.06 * p.age),
            (side * p.nose_width * 0.95, end - 0.14, 0.045, 0.15, -0.08),
            (side * (p.mouth_width + 0.07), mouth + 0.02, 0.05, 0.06, -0.08),
        ]
    return np.array(rows)


def _spots(s: _Scene, rows: np.ndarray) -> np.ndarray:
    x, y = s.grid()
    centre = s.turn(rows[:, :2], 0.06)
    dx = (x - centre[:, 0, None, None]) / rows[:, 2, None, None]
    dy = (y - centre[:, 1, None, None]) / rows[:, 3, None, None]
    return np.tensordot(rows[:, 4], np.exp(-dx * dx - dy * dy), 1)


def _skin(s: _Scene, head: Image.Image) -> None:
    p, shot = s.person, s.shot
    x, y = s.grid()
    nx, ny = x / p.half_width, y / 1.15
    nz = np.sqrt(np.maximum(0.04, 1 - 0.85 * (nx * nx + ny * ny)))
    lit = nx * shot.light[0] + ny * shot.light[1] + nz * shot.light[2]
    tone = 1.0 + shot.contrast * (lit - 0.75) - 0.10 * (1 - nz) + _spots(s, _bumps(s))
    flush = [(0, p.nose_end - 0.05, 0.1, 0.08, 0.05)]
    for side in (-1, 1):
        flush.append((side * (p.eye_gap + 0.08), 0.28, 0.15, 0.11, 0.05 + 0.09 * p.makeup))
    red = _spots(s, np.array(flush))[..., None]
    tone = np.maximum(tone, 0.15)[..., None] ** np.array((0.9, 1.08, 1.15))
    s.image.paste(s.enlarge(p.skin * tone * (1 + red * (0.5, -1.2, -0.9))), mask=head)


def _brow_creases(s: _Scene) -> list[tuple]:
    """Furrows of the upper face: points, strength from 0 to 1, width."""
    p, a = s.person, s.act
    marks = []
    wide = 0.16 + 0.26 * min(1.0, a["brow_out"])
    raised = max(a["brow_in"], a["brow_out"])
    for row in range(3):
        v = p.brow_height - 0.13 - 0.085 * row
        line = [(-wide, v + 0.015), (-wide / 2, v - 0.01), (0, v + 0.01), (wide / 2, v - 0.01)]
        marks.append(([*line, (wide, v + 0.015)], 0.42 * raised + 0.22 * p.age, 0.018))
    for side, key in ((-1, "l"), (1, "r")):
        furrow = [(side * 0.045, -0.33), (side * 0.055, -0.25), (side * 0.045, -0.17)]
        marks.append((furrow, 0.75 * a["knit" + key] + 0.1 * p.age, 0.02))
        wrinkle = a["wrinkle" + key]
        for step in range(3):
            v = -0.05 + 0.055 * step
            line = [(0, v - 0.01), (side * 0.05, v), (side * 0.1, v + 0.045)]
            marks.append((line, 0.75 * wrinkle, 0.018))
        outer = p.eye_gap + 0.17
        for slope in (-0.05, 0.0, 0.05):
            line = [(side * outer, slope * 0.4), (side * (outer + 0.11), slope * 1.6)]
            marks.append((line, 0.4 * a["cheek" + key] + 0.3 * p.age - 0.08, 0.014))
        bag = [(side * (p.eye_gap + du), 0.055 + dv) for du, dv in _BAG]
        lower = 0.4 * a["cheek" + key] + 0.3 * a["tight" + key] + 0.3 * wrinkle
        marks.append((_spline(bag), 0.12 + 0.3 * p.age + lower, 0.018))
    return marks


_BAG = ((-0.13, 0.0), (-0.06, 0.035), (0.03, 0.04), (0.12, 0.01))


def _cheek_creases(s: _Scene) -> list[tuple]:
    """Furrows of the lower face: points, strength from 0 to 1, width."""
    p, a = s.person, s.act
    end, mouth, wing = p.nose_end, p.mouth_height, p.nose_width
    marks = []
    for side, key in ((-1, "l"), (1, "r")):
        smile, upper = a["smile" + key], a["upper" + key] + 0.6 * a["wrinkle" + key]
        lift = 0.03 * upper
        out = p.mouth_width * (1 + 0.3 * smile) + 0.07
        fold = [
            (side * (wing + 0.025), end - 0.08 - lift),
            (side * (wing + 0.10 + 0.03 * smile), end + 0.04 - lift),
            (side * out, mouth - 0.09 - 0.02 * smile),
            (side * (out + 0.01), mouth + 0.02),
        ]
        marks.append((_spline(fold), 0.08 + 0.3 * p.age + 0.4 * smile + 0.5 * upper, 0.026))
        round_wing = [(wing * 0.8, -0.09), (wing * 1.1, -0.04), (wing, 0.01), (wing * 0.7, 0.02)]
        round_wing = [(side * u, end + v - lift) for u, v in round_wing]
        marks.append((_spline(round_wing), 0.55, 0.022))
        marks.append(([(side * 0.03, end + 0.08), (side * 0.04, mouth - 0.08)], 0.14, 0.025))
        bridge = [(side * 0.11, -0.15), (side * 0.065, -0.02), (side * 0.075, end - 0.15)]
        dark = 0.30 if side * s.shot.light[0] < 0 else 0.10
        marks.append((_spline(bridge), dark, 0.035))
        sag = [(side * (out - 0.05), mouth + 0.05), (side * (out - 0.02), mouth + 0.15)]
        marks.append((sag, 0.5 * a["frown" + key] + 0.2 * p.age - 0.05, 0.022))
    dent = [(-0.12, 0.83), (-0.05, 0.79), (0.05, 0.79), (0.12, 0.83)]
    marks.append((_spline(dent), 0.6 * a["chin"] + 0.2 * a["press"], 0.025))
    return marks


def _creases(s: _Scene) -> None:
    sheet, pen = s.sheet()
    ratio = sheet.width / s.side
    for points, strength, width in _brow_creases(s) + _cheek_creases(s):
        if strength > 0.03:
            line = [(x * ratio, y * ratio) for x, y in s.at(points, 0.04)]
            wide = max(1, round(width * s.unit * ratio))
            pen.line(line, fill=int(min(1.0, strength) * 200), width=wide, joint="curve")
    sheet = sheet.filter(ImageFilter.GaussianBlur(0.011 * s.unit * ratio + 0.4))
    dark = _ink(s.person.skin * (0.42, 0.33, 0.30))
    s.image.paste(dark, mask=sheet.resize(s.image.size, Image.Resampling.BILINEAR))


def _beard(s: _Scene, rng: np.random.Generator) -> None:
    """A beard over jaw and chin, with gaps of random grain."""
    p, d = s.person, s.drop
    sheet, pen = s.sheet()
    ratio = sheet.width / s.side
    w, m = p.half_width, p.mouth_height
    half = [
        *((0.99 * w, -0.05), (0.985 * w, 0.2), (p.jaw * w, 0.6 + 0.3 * d)),
        *((p.chin * 1.3, 0.88 + 0.8 * d), (p.chin * 0.6, 1.06 + d)),
    ]
    inner = [(0.1, m + 0.19 + d), (0.3, m + 0.12), (0.40, m - 0.08), (0.72 * w, 0.35)]
    outer, inner = _spline(half), _spline([*inner, (0.9 * w, -0.02)])
    ring = s.at(np.concatenate((outer, outer[::-1] * (-1, 1))), rim=True)
    hole = s.at(np.concatenate((inner, inner[::-1] * (-1, 1))), -0.04)
    pen.polygon([(x * ratio, y * ratio) for x, y in ring], fill=int(225 * p.beard))
    pen.polygon([(x * ratio, y * ratio) for x, y in hole], fill=0)
    sheet = sheet.filter(ImageFilter.GaussianBlur(0.035 * s.unit * ratio))
    grain = rng.uniform(0.65, 1.0, (sheet.height, sheet.width))
    sheet = Image.fromarray((np.asarray(sheet) * grain).astype(np.uint8))
    s.image.paste(_ink(p.hair, 0.85), mask=sheet.resize(s.image.size))


def _moustache(s: _Scene, top: np.ndarray, rng: np.random.Generator) -> None:
    p = s.person
    sheet = Image.new("L", s.image.size)
    pen = ImageDraw.Draw(sheet)
    places, lean = rng.uniform(-1, 1, 70), rng.uniform(0.6, 1.2, 70)
    line = np.interp(places, np.linspace(-1, 1, len(top)), top)
    reach = p.mouth_width * 1.05
    start = np.stack((places * reach * 0.8, line - 0.075 + 0.03 * np.abs(places)), 1)
    stop = np.stack((places * reach * (0.8 + 0.3 * lean), line + 0.01 + 0.05 * places**2), 1)
    for a, b in zip(s.at(start, 0.05), s.at(stop, 0.05), strict=True):
        pen.line((a, b), fill=int(230 * p.moustache), width=max(1, round(0.022 * s.unit)))
    s.image.paste(_ink(p.hair, 0.9), mask=sheet)


def _lids(s: _Scene, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u of the eye from the inner to the outer corner, v of upper and of lower lid."""
    p, key = s.person, "l" if side < 0 else "r"
    a = {name: min(1.2, s.act[name + key]) for name in _ACTIONS}
    t = np.linspace(-1, 1, 15)
    upper = 0.078 * p.eye_open * p.eye_size + 0.042 * a["lid"] - 0.042 * a["droop"]
    upper -= 0.016 * a["tight"] + 0.014 * a["cheek"] + 0.02 * a["wrinkle"] + 0.01 * a["gaze"]
    lower = 0.05 * p.eye_open + 0.014 * a["lid"] - 0.03 * a["tight"]
    lower -= 0.034 * a["cheek"] + 0.03 * a["wrinkle"]
    upper, lower = max(0.018, upper), max(-0.008, lower)
    line = -0.02 - p.eye_tilt * t + 0.012 * a["droop"] * t
    top = line - upper * (1 - t * t) ** 0.7 * (1 - 0.13 * t)
    bottom = np.maximum(line + lower * (1 - np.abs(t) ** 2.3) * (1 + 0.1 * t), top + 0.002)
    return side * p.eye_gap + 0.152 * p.eye_size * t * side, top, bottom


def _eyes(s: _Scene) -> None:
    p, a, shot = s.person, s.act, s.shot
    layer = Image.new("RGB", s.image.size, _ink(_mix((238, 234, 230), p.skin, 0.12)))
    balls, pen = s.image, ImageDraw.Draw(layer)
    openings = []
    for side in (-1, 1):
        u, top, bottom = _lids(s, side)
        opening = np.concatenate((np.stack((u, top), 1), np.stack((u, bottom), 1)[::-1]))
        openings.append(s.at(opening))
        shade = _ribbon(np.stack((u, top + 0.012), 1), np.full(len(u), 0.045))
        pen.polygon(s.at(shade), fill=_ink(_mix((178, 172, 172), p.skin, 0.2)))
        look = (side * p.eye_gap + 0.05 * shot.gaze, -0.027 + 0.045 * min(1.0, a["gaze"]))
        ((x, y),) = s.at([look], 0.02)
        for radius, colour in ((0.077, p.iris * 0.45), (0.068, p.iris), (0.034, (12, 10, 10))):
            r = radius * p.eye_size**0.5 * s.unit
            pen.ellipse((x - r, y - r, x + r, y + r), fill=_ink(colour))
        gx, gy, r = x + 0.025 * s.unit * np.sign(shot.light[0]), y - 0.026 * s.unit, 0.015 * s.unit
        pen.ellipse((gx - r, gy - r, gx + r, gy + r), fill=(250, 250, 250))
        _lid_skin(s, u, top)
    balls.paste(layer, mask=s.mask(*openings))
    for side in (-1, 1):
        _lashes(s, side)


def _lid_skin(s: _Scene, u: np.ndarray, top: np.ndarray) -> None:
    """The upper lid between lashes and crease, with or without eye shadow."""
    p = s.person
    bulge = 0.03 * (1 - np.linspace(-1, 1, len(u)) ** 2) ** 0.6 + 0.008
    crease = np.minimum(top - bulge * 0.6, -0.095 - 0.03 * (p.eye_open - 1) + bulge * -0.5)
    crease[[0, -1]] = top[[0, -1]]
    lid = np.concatenate((np.stack((u, top), 1), np.stack((u, crease), 1)[::-1]))
    colour = _mix(p.skin * (0.90, 0.84, 0.82), (110, 70, 100), 0.5 * p.makeup)
    s.fill(lid, _ink(colour))
    s.stroke(np.stack((u, crease), 1)[1:-1], _ink(p.skin * (0.66, 0.56, 0.53)), 0.012)


def _lashes(s: _Scene, side: int) -> None:
    p = s.person
    u, top, bottom = _lids(s, side)
    t = np.linspace(-1, 1, len(u))
    dark = _ink(_mix((38, 26, 24), p.hair, 0.3), 0.8)
    width = 0.014 + 0.01 * (t + 1) / 2 + 0.014 * p.makeup
    s.fill(_ribbon(np.stack((u, top), 1), width), dark)
    s.stroke(np.stack((u, bottom), 1)[2:], _ink(p.skin * (0.62, 0.48, 0.46)), 0.011)
    if p.makeup > 0.5:
        tip = [(u[-2], top[-2]), (u[-1] + side * 0.035, top[-1] - 0.03), (u[-1], top[-1] + 0.01)]
        s.fill(tip, dark)


def _brows(s: _Scene, rng: np.random.Generator) -> None:
    p = s.person
    sheet = Image.new("L", s.image.size)
    pen = ImageDraw.Draw(sheet)
    t = np.linspace(0, 1, 14)
    for side, key in ((-1, "l"), (1, "r")):
        a = {name: min(1.2, s.act[name + key]) for name in _ACTIONS}
        u = 0.125 + (p.eye_gap + 0.055) * t - 0.045 * a["knit"] * (1 - t)
        v = p.brow_height + 0.025 - p.brow_arch * np.sin(np.pi * t**1.25) + 0.02 * t
        v = v - 0.105 * a["brow_in"] * (1 - t) ** 1.3 - 0.10 * a["brow_out"] * np.sin(2.2 * t)
        v = v + 0.085 * a["knit"] * (1 - 0.75 * t) + 0.03 * (a["wrinkle"] + 0.4 * a["tight"])
        line = np.stack((side * u, v), 1)
        width = p.brow_thick * (0.75 + 0.5 * np.sin(np.pi * t**0.7)) * (1.1 - 0.75 * t)
        pen.polygon(s.at(_ribbon(line, width * 1.5), 0.03), fill=150)
        root, jitter = rng.uniform(0, 0.95, 34), rng.normal(0, 0.5, (34, 2))
        _hairs(s, pen, (line, width), root, jitter)
    s.image.paste(_ink(_mix(p.hair, p.skin * 0.4, 0.2), 0.8), mask=sheet)


def _hairs(s: _Scene, pen: ImageDraw.ImageDraw, brow: tuple, root: np.ndarray, jitter: np.ndarray):
    """Short strokes along a brow, given as its middle line and its widths."""
    line, width = brow
    t = np.linspace(0, 1, len(line))
    start = np.stack([np.interp(root, t, line[:, i]) for i in (0, 1)], 1)
    ahead = np.stack([np.interp(root + 0.13, t, line[:, i]) for i in (0, 1)], 1)
    thick = np.interp(root, t, width)[:, None]
    start = start + thick * (0, 0.9) * (jitter[:, :1] + 0.3)
    ahead = ahead + thick * (0, 0.7) * (jitter[:, 1:] - 0.5)
    for a, b in zip(s.at(start, 0.03), s.at(ahead, 0.03), strict=True):
        pen.line((a, b), fill=235, width=max(1, round(0.013 * s.unit)))


def _nose(s: _Scene) -> None:
    p, a = s.person, s.act
    for side, key in ((-1, "l"), (1, "r")):
        lift = 0.025 * (a["wrinkle" + key] + 0.5 * a["upper" + key])
        centre = np.array((side * p.nose_width * 0.52, p.nose_end + 0.012 - lift))
        wide = p.nose_width * (0.26 + 0.06 * a["wrinkle" + key])
        shape = [(-wide, 0.012), (-wide * 0.3, -0.022), (wide, -0.01), (wide * 0.5, 0.018)]
        spot = _spline(centre + np.array(shape) * (side, 1), closed=True, steps=4)
        s.fill(spot, _ink(p.skin * (0.34, 0.24, 0.22)), 0.07)
    base = [(-0.05, p.nose_end + 0.035), (0, p.nose_end + 0.048), (0.05, p.nose_end + 0.035)]
    s.stroke(_spline(base), _ink(p.skin * (0.62, 0.52, 0.5)), 0.014, 0.07)


def _lips(s: _Scene) -> dict[str, np.ndarray]:
    """Curves of the mouth over t from -1 to 1: u and v of four lip edges, from top to bottom."""
    p = s.person
    t = np.linspace(-1, 1, 29)
    r = np.abs(t)
    share = (t + 1) / 2
    a = {k: s.act[k + "l"] * (1 - share) + s.act[k + "r"] * share for k in _ACTIONS}
    mid = s.act
    half = 1 + 0.28 * a["smile"] + 0.26 * a["stretch"] - 0.36 * a["round"] - 0.06 * a["press"]
    half = half * (1 - 0.1 * mid["jaw"])
    corner = p.corner_rest - 0.125 * a["smile"] + 0.10 * a["frown"] + 0.03 * a["stretch"]
    line = p.mouth_height + corner * r**1.7 + 0.035 * a["smile"] - 0.035 * a["frown"]
    line = line - 0.02 * a["chin"] - 0.04 * a["upper"] * (1 - r**3)
    power = 2 + 3 * mid["stretch"] + 1.5 * mid["upper"]
    bow = (1 - r**power) ** (0.5 + 0.35 * max(0.0, 1 - mid["round"] - mid["stretch"]))
    gap = max(0.0, mid["part"] - 0.12) * 0.15 + max(0.0, mid["jaw"] - 0.08) * 0.27
    gap = gap + 0.05 * max(0.0, mid["upper"] - 0.2) * (1 - 0.8 * min(1.0, mid["press"]))
    top = line - gap * (0.28 - 0.2 * min(1.0, mid["smile"])) * bow
    bottom = top + gap * bow + 0.03 * mid["jaw"] * bow
    thin = np.clip(1 - 0.62 * mid["press"] - 0.25 * mid["smile"] - 0.2 * mid["stretch"], 0.25, 1)
    cupid = 1 - 0.25 * np.exp(-((t / 0.13) ** 2))
    upper = top - 0.056 * p.lip * thin * (1 - r**2.2) ** 0.8 * cupid
    lower = bottom + 0.078 * p.lip * thin * (1 - r**2) ** 0.75
    return {"u": p.mouth_width * half * t, "a": upper, "b": top, "c": bottom, "d": lower}


def _between(u: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.concatenate((np.stack((u, top), 1), np.stack((u, bottom), 1)[::-1]))


def _mouth(s: _Scene) -> np.ndarray:
    """Draws the mouth and returns the upper edge of its upper lip."""
    p, lips = s.person, _lips(s)
    u, top, bottom = lips["u"], lips["b"], lips["c"]
    rose = _mix(p.skin * (0.82, 0.60, 0.58), (186, 40, 62), 0.12 + 0.5 * p.makeup)
    side = 0.06 * s.shot.contrast
    s.fill(_between(u, lips["a"], top), _ink(rose, 0.86 - side), 0.03)
    s.fill(_between(u, bottom, lips["d"]), _ink(rose, 1.0 - side), 0.03)
    thick = lips["d"] - bottom
    shine = np.stack((u, bottom + 0.45 * thick), 1)[9:20]
    s.fill(_ribbon(shine, thick[9:20] * 0.4), _ink(rose * 1.08 + 8), 0.03)
    gap = bottom - top
    if gap.max() > 0.02:
        _cavity(s, u, top, bottom)
    else:
        seam = np.stack((u * 1.03, (top + bottom) / 2), 1)
        width = 0.02 + 0.006 * np.cos(np.linspace(-9, 9, len(u)))
        s.fill(_ribbon(seam, width), _ink(rose, 0.38), 0.03)
    return lips["a"]


def _cavity(s: _Scene, u: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> None:
    """The open mouth: dark inside, tongue, upper teeth and, in a wide mouth, lower teeth."""
    gap = bottom - top
    r = np.abs(np.linspace(-1, 1, len(u)))
    s.fill(_between(u, top, bottom), (52, 16, 18), 0.03)
    inner = r < 0.72
    hump = bottom - np.minimum(gap * 0.45, 0.10) * (1 - (r / 0.72) ** 2).clip(0)
    s.fill(_between(u[inner], hump[inner], bottom[inner]), (150, 62, 66), 0.03)
    bite = np.minimum(gap * 0.85, 0.062 + 0.02 * min(1.0, s.act["smile"]))
    edge = top + bite * (1 - r**4)
    inner = r < 0.9
    s.fill(_between(u[inner], top[inner], edge[inner]), (226, 220, 206), 0.03)
    for place in (4, 7, 10, 14, 18, 21, 24):
        s.stroke([(u[place], top[place]), (u[place], edge[place])], (190, 180, 168), 0.006, 0.03)
    if s.act["stretch"] > 0.25 and gap.max() > 0.05:
        inner = r < 0.75
        low = bottom - np.minimum(gap * 0.3, 0.04) * (1 - r**4)
        s.fill(_between(u[inner], low[inner], bottom[inner]), (208, 200, 186), 0.03)
    s.stroke(np.stack((u, top), 1), (70, 26, 28), 0.012, 0.03)


# Volume over the skull and v of the lower end at the side of the face, by style of hair.
_HAIR_SHAPES = {
    "buzz": (0.03, -0.12),
    "short": (0.10, -0.05),
    "part": (0.14, -0.02),
    "fringe": (0.12, 0.1),
    "receding": (0.06, -0.05),
    "long": (0.12, 0.3),
    "curly": (0.20, 0.0),
    "bun": (0.07, -0.1),
}


def _hair_back(s: _Scene) -> None:
    p = s.person
    w = p.half_width
    dark = _ink(p.hair, 0.62)
    if p.style in ("long", "fringe"):
        length = 1.5 if p.style == "long" else 0.75
        half = [(0.3, -1.15), (w + 0.1, -0.75), (w + 0.17, -0.1), (w + 0.2, length * 0.6)]
        s.fill(_spline(_mirror([*half, (w + 0.12, length)]), closed=True), dark, -0.2, rim=True)
    if p.style == "bun":
        ((x, y),) = s.at([(0, -1.22)], -0.1, rim=True)
        r = 0.26 * s.unit
        s.pen.ellipse((x - r, y - r, x + r, y + r), fill=dark)


def _hairline(p: _Person) -> list[tuple]:
    """The lower edge of the front hair, from the right temple to the left one."""
    w, h = p.half_width, p.hairline
    if p.style == "fringe":
        return [(0.8 * w, -0.38), (0.5, -0.40), (0.22, -0.37), (0, -0.40), (-0.25, -0.36)] + [
            (-0.5, -0.40),
            (-0.8 * w, -0.36),
        ]
    if p.style == "part":
        return [(0.86 * w, -0.42), (0.5 * w, h - 0.06), (0.32 * w, h - 0.1), (0, h + 0.02)] + [
            (-0.5 * w, -0.5),
            (-0.88 * w, -0.34),
        ]
    if p.style == "receding":
        return [(0.9 * w, -0.5), (0.62 * w, -0.86), (0.2, h - 0.12), (-0.2, h - 0.12)] + [
            (-0.62 * w, -0.86),
            (-0.9 * w, -0.5),
        ]
    return [(0.88 * w, -0.42), (0.6 * w, h + 0.06), (0.2, h), (-0.2, h)] + [
        (-0.6 * w, h + 0.06),
        (-0.88 * w, -0.42),
    ]


def _hair(s: _Scene, rng: np.random.Generator) -> None:
    p = s.person
    strokes = rng.random((70, 4))
    if p.style == "bald":
        return
    volume, end = _HAIR_SHAPES[p.style]
    w = p.half_width
    half = [
        *((0.25 * w, -1.09 - volume), (0.68 * w, -0.98 - volume * 0.8)),
        *((0.93 * w + volume * 0.7, -0.66), (w + volume * 0.6, -0.25), (w + volume * 0.3, end)),
    ]
    outer = np.array(s.at(_spline((np.array(half) * (-1, 1))[::-1].tolist() + half), rim=True))
    temple = [(0.97 * w, -0.15), (0.99 * w, end)]
    edge = [*temple[::-1], *_hairline(p), *((-u, v) for u, v in temple)]
    inner = np.array(s.at(_spline(edge), -0.02))
    mask = s.mask(np.concatenate((outer, inner)).ravel().tolist())
    layer = Image.new("RGB", s.image.size, _ink(p.hair, 0.82))
    if p.style == "curly":
        _curls(s, layer, mask, outer, strokes)
    else:
        _strands(s, layer, outer, inner, strokes)
    if p.style == "buzz":
        mask = mask.point(lambda value: value * 3 // 4)
    s.image.paste(layer, mask=mask)


def _strands(
    s: _Scene, layer: Image.Image, outer: np.ndarray, inner: np.ndarray, strokes: np.ndarray
) -> None:
    pen, p = ImageDraw.Draw(layer), s.person
    whorl = 0.3 if p.style == "part" else 0.05
    (top,) = s.at([(whorl * p.half_width, -1.05)], rim=True)
    for place, reach, gain, wave in strokes:
        rim = outer[int(place * (len(outer) - 1))]
        near = inner[::-1][int(place * (len(inner) - 1))]
        stop = rim + (near - rim) * reach
        middle = (np.array(top) + rim) / 2 + (stop - rim) * 0.6 + (wave - 0.5) * 0.1 * s.unit
        shine = 0.66 + 0.6 * gain + 0.3 * (place - 0.5) * np.sign(s.shot.light[0])
        curve = _spline([top, tuple(middle), tuple(stop)], steps=4)
        pen.line(curve.ravel().tolist(), fill=_ink(p.hair + 6, shine), width=max(1, s.side // 110))


def _curls(
    s: _Scene, layer: Image.Image, mask: Image.Image, outer: np.ndarray, strokes: np.ndarray
) -> None:
    """Round locks: along the outline they widen the mask, inside they give texture."""
    pen, shape = ImageDraw.Draw(layer), ImageDraw.Draw(mask)
    centre = s.centre
    for index, (place, reach, gain, _) in enumerate(strokes):
        rim = outer[int(place * (len(outer) - 1))]
        x, y = rim + (centre - rim) * reach * (0.0 if index % 2 else 0.3)
        r = s.unit * (0.06 + 0.06 * gain)
        if index % 2:
            shape.ellipse((x - r, y - r, x + r, y + r), fill=255)
        colour = _ink(s.person.hair + 5, 0.6 + 0.6 * gain)
        pen.arc((x - r, y - r, x + r, y + r), 160, 400, fill=colour, width=max(1, s.side // 90))


def _spectacles(s: _Scene) -> None:
    p, props = s.person, s.shot.props
    rx, ry = 0.195 + 0.03 * props[0], 0.13 + 0.06 * props[1]
    power = 0.55 + 0.45 * props[2]
    angle = np.linspace(0, 2 * np.pi, 28)
    cos, sin = np.cos(angle), np.sin(angle)
    oval = np.stack((np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power), 1)
    frame = _ink(_mix((28, 24, 26), s.shot.cloth, 0.35 * props[3]))
    width = 0.016 + 0.022 * props[4]
    for side in (-1, 1):
        ring = oval * (rx, ry) + (side * (p.eye_gap + 0.015), 0.015)
        if s.shot.glasses == "dark":
            s.fill(ring, (26, 24, 28), 0.08)
        s.stroke(ring, frame, width, 0.08)
        s.pen.line(
            s.at([(side * (p.eye_gap + 0.015 + rx), -0.02)], 0.08)
            + s.at([(side * p.half_width * 1.02, -0.03)], -0.1, rim=True),
            fill=frame,
            width=max(1, round(width * s.unit)),
        )
    gap = p.eye_gap + 0.015 - rx
    s.stroke(_spline([(-gap, 0.0), (0, -0.03), (gap, 0.0)]), frame, width, 0.1)


def _hat(s: _Scene) -> None:
    w, colour, hat = s.person.half_width, s.shot.cloth, s.shot.hat
    if hat == "veil":
        outer = [(0.3, -1.28), (w + 0.14, -0.85), (w + 0.2, -0.1), (w + 0.15, 0.7), (1.1, 1.5)]
        hole = [(0.25, -0.74), (0.72 * w, -0.58), (0.93 * w, -0.1), (0.86 * w, 0.45), (0.3, 1.0)]
        hole[-1] = (0.3, 1.02 + s.drop)
        rim = s.at(_spline(_mirror([*outer, (1.2, 2.5)]), closed=True), rim=True)
        mask = s.mask(rim)
        opening = s.at(_spline(_mirror(hole), closed=True), 0.04, rim=True)
        ImageDraw.Draw(mask).polygon(opening, fill=0)
        s.image.paste(_ink(colour), mask=mask)
        s.pen.line([*opening, opening[0]], fill=_ink(colour, 0.6), width=max(1, s.side // 60))
        return
    dome = [(0.25 * w, -1.3), (0.75 * w, -1.16), (w + 0.06, -0.78), (w + 0.07, -0.5)]
    dome = _spline((np.array(dome) * (-1, 1))[::-1].tolist() + dome)
    edge = _spline([(w * 0.98, -0.5), (0.5 * w, -0.47), (-0.5 * w, -0.47), (-w * 0.98, -0.5)])
    s.pen.polygon(s.at(dome, rim=True) + s.at(edge, -0.2), fill=_ink(colour))
    if hat == "beanie":
        band = np.concatenate((edge, edge[::-1] * (1.02, 1) - (0, 0.2)))
        s.fill(band, _ink(colour, 0.78), -0.2)
        for u in np.linspace(-0.85, 0.85, 13) * w:
            s.stroke([(u, -0.5), (u * 1.02, -0.68)], _ink(colour, 0.6), 0.014, -0.2)
        return
    reach = (0.9, 0.06) if hat == "cap" else (1.6, 0.14)
    brim = [(reach[0] * w * u, -0.55 + dv) for u, dv in _BRIM]
    s.fill(_spline(brim, closed=True), _ink(colour, 0.62), reach[1] - 0.2, rim=True)


_BRIM = (
    (-1.0, 0.02),
    (-0.6, -0.08),
    (0.0, -0.11),
    (0.6, -0.08),
    (1.0, 0.02),
    (0.5, 0.1),
    (-0.5, 0.1),
)


def _cloth_over_mouth(s: _Scene) -> None:
    """A medical mask or a scarf."""
    p, props = s.person, s.shot.props
    w = p.half_width
    if s.shot.cover == "scarf":
        colour = s.shot.cloth
        edge = [(-w - 0.15, 0.35), (-0.4, 0.45), (0, 0.38 + 0.1 * props[5]), (0.4, 0.47)]
        sheet = _spline([*edge, (w + 0.15, 0.32), (w + 0.3, 1.4), (0, 1.8), (-w - 0.3, 1.4)], True)
        s.fill(sheet, _ink(colour), 0.05, rim=True)
        for row in range(5):
            fold = [(-w - 0.1, 0.5 + 0.2 * row), (0.1, 0.62 + 0.2 * row), (w, 0.45 + 0.2 * row)]
            s.pen.line(s.at(_spline(fold), rim=True), fill=_ink(colour, 0.75), width=s.side // 50)
        return
    colours = ((150, 190, 214), (232, 236, 238), (44, 44, 50))
    colour = np.array(colours[int(props[5] * 3)])
    half = [(0.12, 0.13), (0.5 * w, 0.2), (0.86 * w, 0.3), (0.84 * w, 0.66), (0.5 * w, 0.95)]
    for side in (-1, 1):
        for v, ear in ((0.3, -0.08), (0.62, 0.2)):
            strap = s.at([(side * 0.86 * w, v)]) + s.at([(side * 1.02 * w, ear)], rim=True)
            s.pen.line(strap, fill=_ink(colour, 0.85), width=max(1, round(0.02 * s.unit)))
    s.fill(_spline(_mirror([*half, (0.18, 1.04 + s.drop)]), closed=True), _ink(colour), 0.04)
    for v in (0.38, 0.52, 0.66):
        pleat = _spline([(-0.8 * w, v), (0, v + 0.05), (0.8 * w, v)])
        s.stroke(pleat, _ink(colour, 0.84), 0.018, 0.06)


def _hand(s: _Scene) -> None:
    """A hand laid on the cheek, its fingers over part of the face."""
    props, side = s.shot.props, -1 if s.shot.props[5] < 0.5 else 1
    skin = s.person.skin
    base = np.array((side * (0.62 + 0.15 * props[6]), 0.75 + 0.2 * props[7]))
    palm = [(-0.22, -0.05), (0.2, -0.12), (0.3, 0.4), (0.25, 1.4), (-0.2, 1.4), (-0.25, 0.3)]
    palm = _spline(base + np.array(palm) * (side, 1), closed=True)
    parts = [(palm, 0.97)]
    for finger in range(4):
        root = base + np.array((side * (-0.16 + 0.115 * finger), 0.05 - 0.03 * finger))
        lean = -0.22 + 0.14 * finger
        tip = root + np.array((side * lean, -0.55 - 0.08 * (finger in (1, 2)))) * 0.95
        t = np.linspace(0, 1, 9)[:, None]
        width = 0.125 * np.append(1 - 0.2 * t[:-1, 0] ** 2, 0.45)
        parts.append((_ribbon(root + (tip - root) * t, width), 1.0))
    for outline, gain in parts:
        pixels = s.at(outline, 0.1, rim=True)
        s.pen.polygon(pixels, fill=_ink(skin, gain))
        dark = _ink(skin * (0.6, 0.48, 0.45))
        s.pen.line(pixels, fill=dark, width=max(1, round(0.012 * s.unit)))


def _finish(s: _Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """Light, blur, colour and noise of the photograph: canvas to (size, size, 3) uint8."""
    shot = s.shot
    image = s.image.resize((size, size), Image.Resampling.BOX)
    if shot.blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(shot.blur * size / 96))
    pixels = np.asarray(image, np.float32)
    slope = np.linspace(-1, 1, size, dtype=np.float32)
    fall = slope[None, :] * shot.light[0] + slope[:, None] * shot.light[1] * 0.5
    light = shot.exposure * (1 + 0.6 * shot.contrast * fall)
    pixels = pixels * light[..., None] * shot.tint.astype(np.float32)
    if shot.grey:
        pixels = np.repeat(pixels @ np.array((0.3, 0.59, 0.11), np.float32)[:, None], 3, axis=2)
    channels = 1 if shot.grey else 3
    pixels = pixels + shot.noise * rng.standard_normal((size, size, channels), np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _compose(s: _Scene, entropy: list[int]) -> None:
    """Everything from the background to what lies over the face, from back to front."""
    looks, shot = np.random.default_rng([*entropy[:2], 3]), s.shot
    _background(s, np.random.default_rng([*entropy, 4]))
    if shot.hat != "veil":
        _hair_back(s)
    _body(s)
    _skin(s, s.mask(_head(s)))
    _creases(s)
    if s.person.beard:
        _beard(s, looks)
    _eyes(s)
    _brows(s, looks)
    _nose(s)
    lip = _mouth(s)
    if s.person.moustache:
        _moustache(s, lip, looks)
    if shot.hat != "veil":
        _hair(s, looks)
    if shot.glasses:
        _spectacles(s)
    if shot.hat:
        _hat(s)
    if shot.cover == "hand":
        _hand(s)
    elif shot.cover:
        _cloth_over_mouth(s)


def draw_face(
    identity: int, sample: int, expression: str, size: int = 96, seed: int = 0
) -> np.ndarray:
    """Draws one synthetic face; a pure function of its arguments.

    Identity, pose, light and everything else that is not expression come from generators
    seeded by (seed, identity, sample) alone, so that they tell nothing about the class.

    Args:
        identity: number of the person, 0 or more.
        sample: number of the image of this person, 0 or more.
        expression: one of EXPRESSIONS.
        size: side of the image in pixels; made for 32 to 256.
        seed: seed of the whole data set, 0 or more.

    Returns:
        (size, size, 3) uint8 RGB image.

    Raises:
        ValueError: the expression is not one of EXPRESSIONS.
    """
    if expression not in EXPRESSIONS:
        raise ValueError(f"unknown expression {expression!r}; choose from {', '.join(EXPRESSIONS)}")
    entropy = [seed, identity, sample]
    person = _person(seed, identity)
    side = size * (3 if size <= 128 else 2)
    scene = _Scene(side, person, _shot(entropy, person), _actions(entropy, expression))
    _compose(scene, entropy)
    return _finish(scene, size, np.random.default_rng([*entropy, 5]))
