"""Hair in several styles, beards and moustaches."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from qcs.data.synthetic.people import Person
from qcs.data.synthetic.scene import Scene
from qcs.data.synthetic.shapes import ink, mirror, spline


def draw_beard(s: Scene, rng: np.random.Generator) -> None:
    """A beard over jaw and chin, with gaps of random grain."""
    p, d = s.person, s.drop
    sheet, pen = s.sheet()
    ratio = sheet.width / s.side
    w, m = p.half_width, p.mouth_height
    cheek = [(0.99 * w, -0.05), (0.985 * w, 0.2), (p.jaw * w, 0.6 + 0.3 * d)]
    chin = [(p.chin * 1.3, 0.88 + 0.8 * d), (p.chin * 0.6, 1.06 + d)]
    lips = [(0.1, m + 0.19 + d), (0.3, m + 0.12), (0.40, m - 0.08)]
    outer, inner = spline(cheek + chin), spline([*lips, (0.72 * w, 0.35), (0.9 * w, -0.02)])
    ring = s.at(np.concatenate((outer, outer[::-1] * (-1, 1))), rim=True)
    hole = s.at(np.concatenate((inner, inner[::-1] * (-1, 1))), -0.04)
    pen.polygon([(x * ratio, y * ratio) for x, y in ring], fill=int(225 * p.beard))
    pen.polygon([(x * ratio, y * ratio) for x, y in hole], fill=0)
    sheet = sheet.filter(ImageFilter.GaussianBlur(0.035 * s.unit * ratio))
    grain = rng.uniform(0.65, 1.0, (sheet.height, sheet.width))
    sheet = Image.fromarray((np.asarray(sheet) * grain).astype(np.uint8))
    s.image.paste(ink(p.hair, 0.85), mask=sheet.resize(s.image.size))


def draw_moustache(s: Scene, top: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a moustache down to `top`, the v of the upper edge of the lips from left to right."""
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
    s.image.paste(ink(p.hair, 0.9), mask=sheet)


# Volume over the skull and v of the lower end at the side of the face, by style of hair.
_HAIR_SHAPES = {
    "buzz": (0.03, -0.12), "short": (0.10, -0.05), "part": (0.14, -0.02), "fringe": (0.12, 0.1),
    "receding": (0.06, -0.05), "long": (0.12, 0.3), "curly": (0.20, 0.0), "bun": (0.07, -0.1),
}  # fmt: skip


def draw_hair_behind(s: Scene) -> None:
    """Draws the hair that lies behind head and shoulders."""
    p = s.person
    w = p.half_width
    dark = ink(p.hair, 0.62)
    if p.style in ("long", "fringe"):
        length = 1.5 if p.style == "long" else 0.75
        half = [(0.3, -1.15), (w + 0.1, -0.75), (w + 0.17, -0.1), (w + 0.2, length * 0.6)]
        s.fill(spline(mirror([*half, (w + 0.12, length)]), closed=True), dark, -0.2, rim=True)
    if p.style == "bun":
        ((x, y),) = s.at([(0, -1.22)], -0.1, rim=True)
        r = 0.26 * s.unit
        s.pen.ellipse((x - r, y - r, x + r, y + r), fill=dark)


def _hairline(p: Person) -> list[tuple]:
    """The lower edge of the front hair, from the right temple to the left one."""
    w, h = p.half_width, p.hairline
    if p.style == "fringe":
        edge = [(0.8 * w, -0.38), (0.5, -0.40), (0.22, -0.37), (0, -0.40), (-0.25, -0.36)]
        return [*edge, (-0.5, -0.40), (-0.8 * w, -0.36)]
    if p.style == "part":
        edge = [(0.86 * w, -0.42), (0.5 * w, h - 0.06), (0.32 * w, h - 0.1), (0, h + 0.02)]
        return [*edge, (-0.5 * w, -0.5), (-0.88 * w, -0.34)]
    if p.style == "receding":
        edge = [(0.9 * w, -0.5), (0.62 * w, -0.86), (0.2, h - 0.12), (-0.2, h - 0.12)]
        return [*edge, (-0.62 * w, -0.86), (-0.9 * w, -0.5)]
    edge = [(0.88 * w, -0.42), (0.6 * w, h + 0.06), (0.2, h), (-0.2, h)]
    return [*edge, (-0.6 * w, h + 0.06), (-0.88 * w, -0.42)]


def draw_hair(s: Scene, rng: np.random.Generator) -> None:
    """Draws the hair over the skull."""
    p = s.person
    strokes = rng.random((70, 4))
    if p.style == "bald":
        return
    volume, end = _HAIR_SHAPES[p.style]
    w = p.half_width
    top = [(0.25 * w, -1.09 - volume), (0.68 * w, -0.98 - volume * 0.8)]
    side = [(0.93 * w + volume * 0.7, -0.66), (w + volume * 0.6, -0.25), (w + volume * 0.3, end)]
    half = np.array(top + side)
    outer = np.array(s.at(spline(np.concatenate(((half * (-1, 1))[::-1], half))), rim=True))
    right = s.at([(0.96 * w, end), (0.95 * w, -0.15)], rim=True)
    left = s.at([(-0.95 * w, -0.15), (-0.96 * w, end)], rim=True)
    inner = spline(right + s.at(_hairline(p), -0.02) + left)
    inner[:, 1] += rng.normal(0, 0.014, len(inner)) * s.unit
    mask = s.mask(np.concatenate((outer, inner)).ravel().tolist())
    layer = Image.new("RGB", s.image.size, ink(p.hair, 0.82))
    if p.style == "curly":
        _curls(s, layer, mask, outer, strokes)
    else:
        _strands(s, layer, outer, inner, strokes)
    if p.style == "buzz":
        mask = mask.point(lambda value: value * 3 // 4)
    s.image.paste(layer, mask=mask)


def _strands(
    s: Scene, layer: Image.Image, outer: np.ndarray, inner: np.ndarray, strokes: np.ndarray
) -> None:
    pen, p = ImageDraw.Draw(layer), s.person
    whorl = 0.3 if p.style == "part" else 0.0
    roots = np.array(s.at([((whorl + dv) * p.half_width, -1.06) for dv in (-0.35, 0.35)], rim=True))
    for place, reach, gain, wave in strokes:
        rim = outer[int(place * (len(outer) - 1))]
        near = inner[::-1][int(place * (len(inner) - 1))]
        top = roots[0] + (roots[1] - roots[0]) * (place * 0.7 + 0.3 * wave)
        stop = rim + (near - rim) * reach
        middle = (top + rim) / 2 + (stop - rim) * 0.6 + (wave - 0.5) * 0.12 * s.unit
        shine = 0.78 + 0.3 * gain + 0.25 * (place - 0.5) * np.sign(s.shot.light[0])
        curve = spline([top, middle, stop], steps=4)
        pen.line(curve.ravel().tolist(), fill=ink(p.hair + 6, shine), width=max(1, s.side // 110))


def _curls(
    s: Scene, layer: Image.Image, mask: Image.Image, outer: np.ndarray, strokes: np.ndarray
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
        colour = ink(s.person.hair + 5, 0.6 + 0.6 * gain)
        pen.arc((x - r, y - r, x + r, y + r), 160, 400, fill=colour, width=max(1, s.side // 90))
