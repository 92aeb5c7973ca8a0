"""Background, shoulders, head and the soft shading and furrows of its skin."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageFilter

from qcs.data.synthetic.scene import Scene
from qcs.data.synthetic.shapes import ink, mirror, mix, spline

Crease = tuple[ArrayLike, float, float]  # points of a furrow, its strength from 0 to 1, its width


def draw_background(s: Scene, rng: np.random.Generator) -> None:
    """Fills the canvas with a blurred background."""
    first, second = mix(rng.uniform(20, 235, (2, 3)), rng.uniform(20, 230, (2, 1)), 0.6)
    cells = rng.integers(2, 7)
    share = rng.random((cells, cells, 1)) * rng.uniform(0.2, 1.0)
    small = Image.fromarray(mix(first, second, share).astype(np.uint8))
    s.image.paste(small.resize(s.image.size, Image.Resampling.BICUBIC))
    for _ in range(rng.integers(0, 6)):
        x, y, w, h = rng.uniform((-0.2, -0.2, 0.05, 0.1), (1, 1, 0.6, 0.9)) * s.side
        shape = s.pen.rectangle if rng.random() < 0.6 else s.pen.ellipse
        colour = mix(rng.uniform(10, 245, 3), rng.uniform(10, 245), 0.5)
        shape((x, y, x + w, y + h), fill=ink(mix(first, colour, 0.5)))
    s.image.paste(s.image.resize((24, 24)).resize(s.image.size, Image.Resampling.BICUBIC))


def draw_body(s: Scene) -> None:
    """Draws neck, shoulders and ears."""
    p, shot = s.person, s.shot
    neck = 0.62 * p.half_width + 0.12 * (p.jaw - 0.8)
    skin = p.skin * (0.80 - 0.2 * shot.contrast)
    s.fill(mirror([(neck, 0.3), (neck, 1.15), (neck + 0.15, 1.5)]), ink(skin), rim=True)
    shadow = spline(mirror([(neck, 0.6), (neck, 0.98), (neck * 0.5, 1.2)]))
    s.fill(shadow, ink(skin, 0.72), -0.05, rim=True)
    top = 1.2 + 0.12 * shot.props[0]
    right = spline([(neck * 0.9, top - 0.03), (0.75, top + 0.08), (1.25, top + 0.3), (1.5, 2.4)])
    dip = [(0.0, top + 0.25 * shot.props[1])]
    s.fill(np.concatenate((dip, right, (right * (-1, 1))[::-1])), ink(shot.cloth), -0.1, rim=True)
    for side in (-1, 1):
        edge = [(0.94, -0.12), (1.1, -0.14), (1.13, 0.05), (1.06, 0.25), (0.95, 0.24)]
        ear = spline(np.array(edge) * (side * p.half_width, 1), closed=True)
        s.fill(ear, ink(p.skin, 0.84), -0.22, rim=True)
        inner = np.array((side * p.half_width * 1.03, 0.05))
        s.fill(inner + (ear - inner) * 0.55, ink(p.skin * (0.7, 0.6, 0.58)), -0.22, rim=True)


def head_outline(s: Scene) -> list[tuple]:
    """The outline of the head in pixels; a dropped jaw lengthens it."""
    p, d = s.person, s.drop
    w = p.half_width
    skull = [(0.2 * w, -1.08), (0.62 * w, -0.97), (0.9 * w, -0.68), (w, -0.25), (0.975 * w, 0.18)]
    jaw = [(p.jaw * w, 0.56 + 0.3 * d), (p.chin * 1.3, 0.84 + 0.8 * d), (p.chin * 0.6, 1 + d)]
    return s.at(spline(mirror(skull + jaw), closed=True), rim=True)


def _bumps(s: Scene) -> np.ndarray:
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


def _spots(s: Scene, rows: np.ndarray) -> np.ndarray:
    x, y = s.grid()
    centre = s.turn(rows[:, :2], 0.06)
    dx = (x - centre[:, 0, None, None]) / rows[:, 2, None, None]
    dy = (y - centre[:, 1, None, None]) / rows[:, 3, None, None]
    return np.tensordot(rows[:, 4], np.exp(-dx * dx - dy * dy), 1)


def draw_skin(s: Scene, head: Image.Image) -> None:
    """Fills the mask of the head with skin, shaded as a lit volume."""
    p, shot = s.person, s.shot
    x, y = s.grid()
    nx, ny = x / p.half_width, y / 1.15
    nz = np.sqrt(np.maximum(0.04, 1 - 0.85 * (nx * nx + ny * ny)))
    lit = nx * shot.light[0] + ny * shot.light[1] + nz * shot.light[2]
    tone = 1.0 + shot.contrast * (lit - 0.75) - 0.10 * (1 - nz) + _spots(s, _bumps(s))
    flush = [(0.0, p.nose_end - 0.05, 0.1, 0.08, 0.05)]
    for side in (-1, 1):
        flush.append((side * (p.eye_gap + 0.08), 0.28, 0.15, 0.11, 0.05 + 0.05 * p.makeup))
    red = _spots(s, np.array(flush))[..., None]
    tone = np.maximum(tone, 0.15)[..., None] ** np.array((0.9, 1.08, 1.15))
    s.image.paste(s.enlarge(p.skin * tone * (1 + red * (0.5, -1.2, -0.9))), mask=head)


def _brow_creases(s: Scene) -> list[Crease]:
    """Furrows of the upper face."""
    p, a = s.person, s.act
    marks: list[Crease] = []
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
        marks.append((spline(bag), 0.12 + 0.3 * p.age + lower, 0.018))
    return marks


_BAG = ((-0.13, 0.0), (-0.06, 0.035), (0.03, 0.04), (0.12, 0.01))


def _cheek_creases(s: Scene) -> list[Crease]:
    """Furrows of the lower face."""
    p, a = s.person, s.act
    end, mouth, wing = p.nose_end, p.mouth_height, p.nose_width
    marks: list[Crease] = []
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
        marks.append((spline(fold), 0.08 + 0.3 * p.age + 0.4 * smile + 0.5 * upper, 0.026))
        round_wing = [(wing * 0.8, -0.09), (wing * 1.1, -0.04), (wing, 0.01), (wing * 0.7, 0.02)]
        round_wing = [(side * u, end + v - lift) for u, v in round_wing]
        marks.append((spline(round_wing), 0.55, 0.022))
        marks.append(([(side * 0.03, end + 0.08), (side * 0.04, mouth - 0.08)], 0.14, 0.025))
        bridge = [(side * 0.11, -0.15), (side * 0.065, -0.02), (side * 0.075, end - 0.15)]
        dark = 0.30 if side * s.shot.light[0] < 0 else 0.10
        marks.append((spline(bridge), dark, 0.035))
        sag = [(side * (out - 0.05), mouth + 0.05), (side * (out - 0.02), mouth + 0.15)]
        marks.append((sag, 0.5 * a["frown" + key] + 0.2 * p.age - 0.05, 0.022))
    dent = [(-0.12, 0.83), (-0.05, 0.79), (0.05, 0.79), (0.12, 0.83)]
    marks.append((spline(dent), 0.6 * a["chin"] + 0.2 * a["press"], 0.025))
    return marks


def draw_creases(s: Scene) -> None:
    """Draws the furrows that age and facial actions fold into the skin."""
    sheet, pen = s.sheet()
    ratio = sheet.width / s.side
    for points, strength, width in _brow_creases(s) + _cheek_creases(s):
        if strength > 0.03:
            line = [(x * ratio, y * ratio) for x, y in s.at(points, 0.04)]
            wide = max(1, round(width * s.unit * ratio))
            pen.line(line, fill=int(min(1.0, strength) * 200), width=wide, joint="curve")
    sheet = sheet.filter(ImageFilter.GaussianBlur(0.011 * s.unit * ratio + 0.4))
    dark = ink(s.person.skin * (0.42, 0.33, 0.30))
    s.image.paste(dark, mask=sheet.resize(s.image.size, Image.Resampling.BILINEAR))
