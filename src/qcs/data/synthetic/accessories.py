"""What lies over a face: glasses, hats, masks, scarves and hands."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from qcs.data.synthetic.scene import Scene
from qcs.data.synthetic.shapes import ink, mirror, mix, ribbon, spline


def draw_glasses(s: Scene) -> None:
    """Draws glasses with clear or dark lenses."""
    p, props = s.person, s.shot.props
    dark = s.shot.glasses == "dark"
    rx, ry = 0.205 + 0.03 * props[0] + 0.02 * dark, 0.14 + 0.06 * props[1] + 0.02 * dark
    power = 0.55 + 0.45 * props[2]
    angle = np.linspace(0, 2 * np.pi, 28)
    cos, sin = np.cos(angle), np.sin(angle)
    oval = np.stack((np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power), 1)
    frame = ink(mix((28, 24, 26), s.shot.cloth, 0.35 * props[3]))
    width = 0.016 + 0.022 * props[4]
    for side in (-1, 1):
        ring = oval * (rx, ry) + (side * (p.eye_gap + 0.015), 0.015)
        if dark:
            s.fill(ring, (26, 24, 28), 0.08)
        s.stroke(ring, frame, width, 0.08)
        hinge = s.at([(side * (p.eye_gap + 0.015 + rx), -0.02)], 0.08)
        ear = s.at([(side * p.half_width * 1.02, -0.03)], -0.1, rim=True)
        s.pen.line(hinge + ear, fill=frame, width=max(1, round(width * s.unit)))
    gap = p.eye_gap + 0.015 - rx
    s.stroke(spline([(-gap, 0.0), (0, -0.03), (gap, 0.0)]), frame, width, 0.1)


def draw_hat(s: Scene) -> None:
    """Draws a beanie, a cap, a hat with a brim or a veil."""
    w, colour, hat = s.person.half_width, s.shot.cloth, s.shot.hat
    if hat == "veil":
        outer = [(0.3, -1.28), (w + 0.14, -0.85), (w + 0.2, -0.1), (w + 0.15, 0.7), (1.1, 1.5)]
        hole = [(0.25, -0.74), (0.72 * w, -0.58), (0.93 * w, -0.1), (0.86 * w, 0.45)]
        rim = s.at(spline(mirror([*outer, (1.2, 2.5)]), closed=True), rim=True)
        mask = s.mask(rim)
        opening = s.at(spline(mirror([*hole, (0.3, 1.02 + s.drop)]), closed=True), 0.04, rim=True)
        ImageDraw.Draw(mask).polygon(opening, fill=0)
        s.image.paste(ink(colour), mask=mask)
        s.pen.line([*opening, opening[0]], fill=ink(colour, 0.6), width=max(1, s.side // 60))
        return
    half = np.array([(0.25 * w, -1.3), (0.75 * w, -1.16), (w + 0.06, -0.78), (w + 0.07, -0.5)])
    dome = spline(np.concatenate(((half * (-1, 1))[::-1], half)))
    edge = spline([(w * 0.98, -0.5), (0.5 * w, -0.47), (-0.5 * w, -0.47), (-w * 0.98, -0.5)])
    s.pen.polygon(s.at(dome, rim=True) + s.at(edge, -0.2), fill=ink(colour))
    if hat == "beanie":
        band = np.concatenate((edge, edge[::-1] * (1.02, 1) - (0, 0.2)))
        s.fill(band, ink(colour, 0.78), -0.2)
        for u in np.linspace(-0.85, 0.85, 13) * w:
            s.stroke([(u, -0.5), (u * 1.02, -0.68)], ink(colour, 0.6), 0.014, -0.2)
        return
    reach = (0.9, 0.06) if hat == "cap" else (1.6, 0.14)
    brim = [(reach[0] * w * u, -0.55 + dv) for u, dv in _BRIM]
    s.fill(spline(brim, closed=True), ink(colour, 0.62), reach[1] - 0.2, rim=True)


_BRIM = (
    (-1.0, 0.02), (-0.6, -0.08), (0.0, -0.11), (0.6, -0.08), (1.0, 0.02), (0.5, 0.1), (-0.5, 0.1),
)  # fmt: skip


def draw_cloth(s: Scene) -> None:
    """A medical mask or a scarf."""
    p, props = s.person, s.shot.props
    w = p.half_width
    if s.shot.cover == "scarf":
        colour = s.shot.cloth
        edge = [(-w - 0.15, 0.35), (-0.4, 0.45), (0, 0.38 + 0.1 * props[5]), (0.4, 0.47)]
        sheet = spline([*edge, (w + 0.15, 0.32), (w + 0.3, 1.4), (0, 1.8), (-w - 0.3, 1.4)], True)
        s.fill(sheet, ink(colour), 0.05, rim=True)
        for row in range(5):
            fold = [(-w - 0.1, 0.5 + 0.2 * row), (0.1, 0.62 + 0.2 * row), (w, 0.45 + 0.2 * row)]
            s.pen.line(s.at(spline(fold), rim=True), fill=ink(colour, 0.75), width=s.side // 50)
        return
    colours = ((150, 190, 214), (232, 236, 238), (44, 44, 50))
    colour = np.array(colours[int(props[5] * 3)])
    half = [(0.12, 0.13), (0.5 * w, 0.2), (0.86 * w, 0.3), (0.84 * w, 0.66), (0.5 * w, 0.95)]
    for side in (-1, 1):
        for v, ear in ((0.3, -0.08), (0.62, 0.2)):
            strap = s.at([(side * 0.86 * w, v)]) + s.at([(side * 1.02 * w, ear)], rim=True)
            s.pen.line(strap, fill=ink(colour, 0.85), width=max(1, round(0.02 * s.unit)))
    s.fill(spline(mirror([*half, (0.18, 1.04 + s.drop)]), closed=True), ink(colour), 0.04)
    for v in (0.38, 0.52, 0.66):
        pleat = spline([(-0.8 * w, v), (0, v + 0.05), (0.8 * w, v)])
        s.stroke(pleat, ink(colour, 0.84), 0.018, 0.06)


def draw_hand(s: Scene) -> None:
    """A hand laid on the cheek, its fingers over part of the face."""
    props, side = s.shot.props, -1 if s.shot.props[5] < 0.5 else 1
    skin = s.person.skin
    base = np.array((side * (0.62 + 0.15 * props[6]), 0.75 + 0.2 * props[7]))
    palm = [(-0.22, -0.05), (0.2, -0.12), (0.3, 0.4), (0.25, 1.4), (-0.2, 1.4), (-0.25, 0.3)]
    parts = [(spline(base + np.array(palm) * (side, 1), closed=True), 0.97)]
    for finger in range(4):
        root = base + np.array((side * (-0.16 + 0.115 * finger), 0.05 - 0.03 * finger))
        lean = -0.22 + 0.14 * finger
        tip = root + np.array((side * lean, -0.55 - 0.08 * (finger in (1, 2)))) * 0.95
        t = np.linspace(0, 1, 9)[:, None]
        width = 0.125 * np.append(1 - 0.2 * t[:-1, 0] ** 2, 0.45)
        parts.append((ribbon(root + (tip - root) * t, width), 1.0))
    for outline, gain in parts:
        pixels = s.at(outline, 0.1, rim=True)
        s.pen.polygon(pixels, fill=ink(skin, gain))
        dark = ink(skin * (0.6, 0.48, 0.45))
        s.pen.line(pixels, fill=dark, width=max(1, round(0.012 * s.unit)))
