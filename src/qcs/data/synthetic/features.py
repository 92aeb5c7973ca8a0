"""Eyes, brows, nose and mouth, moved by the facial actions."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from qcs.data.synthetic.people import ACTIONS
from qcs.data.synthetic.scene import Scene
from qcs.data.synthetic.shapes import ink, mix, ribbon, spline


def _between(u: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The outline of what lies between two curves over the same u."""
    return np.concatenate((np.stack((u, top), 1), np.stack((u, bottom), 1)[::-1]))


def _lids(s: Scene, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u of the eye from the inner to the outer corner, v of upper and of lower lid."""
    p, key = s.person, "l" if side < 0 else "r"
    a = {name: min(1.2, s.act[name + key]) for name in ACTIONS}
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


def draw_eyes(s: Scene) -> None:
    """Draws both eyes with their lids and lashes."""
    p, a, shot = s.person, s.act, s.shot
    white = ink(mix((238, 234, 230), p.skin, 0.15), 1 - 0.25 * shot.contrast)
    layer = Image.new("RGB", s.image.size, white)
    pen, openings = ImageDraw.Draw(layer), []
    for side in (-1, 1):
        u, top, bottom = _lids(s, side)
        openings.append(s.at(_between(u, top, bottom)))
        shade = ribbon(np.stack((u, top + 0.012), 1), np.full(len(u), 0.045))
        pen.polygon(s.at(shade), fill=ink(mix((178, 172, 172), p.skin, 0.2)))
        look = (side * p.eye_gap + 0.05 * shot.gaze, -0.027 + 0.045 * min(1.0, a["gaze"]))
        ((x, y),) = s.at([look], 0.02)
        pupil = np.array((12, 10, 10))
        for radius, colour in ((0.077, p.iris * 0.45), (0.068, p.iris), (0.034, pupil)):
            r = radius * p.eye_size**0.5 * s.unit
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink(colour))
        gx, gy, r = x + 0.025 * s.unit * np.sign(shot.light[0]), y - 0.026 * s.unit, 0.015 * s.unit
        pen.ellipse((gx - r, gy - r, gx + r, gy + r), fill=(250, 250, 250))
        _lid_skin(s, u, top)
    s.image.paste(layer, mask=s.mask(*openings))
    for side in (-1, 1):
        _lashes(s, side)


def _lid_skin(s: Scene, u: np.ndarray, top: np.ndarray) -> None:
    """The upper lid between lashes and crease, with or without eye shadow."""
    p = s.person
    bulge = 0.03 * (1 - np.linspace(-1, 1, len(u)) ** 2) ** 0.6 + 0.008
    crease = np.minimum(top - bulge * 0.6, -0.095 - 0.03 * (p.eye_open - 1) + bulge * -0.5)
    crease[[0, -1]] = top[[0, -1]]
    colour = mix(p.skin * (0.90, 0.84, 0.82), (110, 70, 100), 0.5 * p.makeup)
    s.fill(_between(u, top, crease), ink(colour))
    s.stroke(np.stack((u, crease), 1)[1:-1], ink(p.skin * (0.66, 0.56, 0.53)), 0.012)


def _lashes(s: Scene, side: int) -> None:
    p = s.person
    u, top, bottom = _lids(s, side)
    t = np.linspace(-1, 1, len(u))
    dark = ink(mix((38, 26, 24), p.hair, 0.3), 0.8)
    width = 0.014 + 0.01 * (t + 1) / 2 + 0.014 * p.makeup
    s.fill(ribbon(np.stack((u, top), 1), width), dark)
    s.stroke(np.stack((u, bottom), 1)[2:], ink(p.skin * (0.62, 0.48, 0.46)), 0.011)
    if p.makeup > 0.5:
        tip = [(u[-2], top[-2]), (u[-1] + side * 0.035, top[-1] - 0.03), (u[-1], top[-1] + 0.01)]
        s.fill(tip, dark)


def draw_brows(s: Scene, rng: np.random.Generator) -> None:
    """Draws both brows, hair by hair."""
    p = s.person
    sheet = Image.new("L", s.image.size)
    pen = ImageDraw.Draw(sheet)
    t = np.linspace(0, 1, 14)
    for side, key in ((-1, "l"), (1, "r")):
        a = {name: min(1.2, s.act[name + key]) for name in ACTIONS}
        u = 0.125 + (p.eye_gap + 0.055) * t - 0.045 * a["knit"] * (1 - t)
        v = p.brow_height + 0.025 - p.brow_arch * np.sin(np.pi * t**1.25) + 0.02 * t
        v = v - 0.105 * a["brow_in"] * (1 - t) ** 1.3 - 0.10 * a["brow_out"] * np.sin(2.2 * t)
        v = v + 0.085 * a["knit"] * (1 - 0.75 * t) + 0.03 * (a["wrinkle"] + 0.4 * a["tight"])
        line = np.stack((side * u, v), 1)
        width = p.brow_thick * (0.75 + 0.5 * np.sin(np.pi * t**0.7)) * (1.1 - 0.75 * t)
        pen.polygon(s.at(ribbon(line, width * 1.5), 0.03), fill=150)
        root, jitter = rng.uniform(0, 0.95, 34), rng.normal(0, 0.5, (34, 2))
        _hairs(s, pen, (line, width), root, jitter)
    s.image.paste(ink(mix(p.hair, p.skin * 0.4, 0.2), 0.8), mask=sheet)


def _hairs(
    s: Scene, pen: ImageDraw.ImageDraw, brow: tuple, root: np.ndarray, jitter: np.ndarray
) -> None:
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


def draw_nose(s: Scene) -> None:
    """Draws nostrils and the base of the nose; its volume is in the shading of the skin."""
    p, a = s.person, s.act
    for side, key in ((-1, "l"), (1, "r")):
        lift = 0.025 * (a["wrinkle" + key] + 0.5 * a["upper" + key])
        centre = np.array((side * p.nose_width * 0.52, p.nose_end + 0.012 - lift))
        wide = p.nose_width * (0.26 + 0.06 * a["wrinkle" + key])
        shape = [(-wide, 0.012), (-wide * 0.3, -0.022), (wide, -0.01), (wide * 0.5, 0.018)]
        spot = spline(centre + np.array(shape) * (side, 1), closed=True, steps=4)
        s.fill(spot, ink(p.skin * (0.34, 0.24, 0.22)), 0.07)
    base = [(-0.05, p.nose_end + 0.035), (0, p.nose_end + 0.048), (0.05, p.nose_end + 0.035)]
    s.stroke(spline(base), ink(p.skin * (0.62, 0.52, 0.5)), 0.014, 0.07)


def _lips(s: Scene) -> dict[str, np.ndarray]:
    """Curves of the mouth over t from -1 to 1: u and v of four lip edges, from top to bottom."""
    p = s.person
    t = np.linspace(-1, 1, 29)
    r = np.abs(t)
    share = (t + 1) / 2
    a = {k: s.act[k + "l"] * (1 - share) + s.act[k + "r"] * share for k in ACTIONS}
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


def draw_mouth(s: Scene) -> np.ndarray:
    """Draws the mouth and returns the upper edge of its upper lip."""
    p, lips = s.person, _lips(s)
    u, top, bottom = lips["u"], lips["b"], lips["c"]
    rose = mix(p.skin * (0.82, 0.60, 0.58), (186, 40, 62), 0.12 + 0.5 * p.makeup)
    side = 0.06 * s.shot.contrast
    s.fill(_between(u, lips["a"], top), ink(rose, 0.86 - side), 0.03)
    s.fill(_between(u, bottom, lips["d"]), ink(rose, 1.0 - side), 0.03)
    thick = lips["d"] - bottom
    shine = np.stack((u, bottom + 0.45 * thick), 1)[9:20]
    s.fill(ribbon(shine, thick[9:20] * 0.4), ink(rose * 1.08 + 8), 0.03)
    gap = bottom - top
    if gap.max() > 0.02:
        _cavity(s, u, top, bottom)
    else:
        seam = np.stack((u * 1.03, (top + bottom) / 2), 1)
        width = 0.02 + 0.006 * np.cos(np.linspace(-9, 9, len(u)))
        s.fill(ribbon(seam, width), ink(rose, 0.38), 0.03)
    return lips["a"]


def _cavity(s: Scene, u: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> None:
    """The open mouth: dark inside, tongue, upper teeth and, in a wide mouth, lower teeth."""
    gap = bottom - top
    r = np.abs(np.linspace(-1, 1, len(u)))
    dim = 0.97 - 0.35 * s.shot.contrast  # teeth lie in the shade of the lips
    s.fill(_between(u, top, bottom), (52, 16, 18), 0.03)
    inner = r < 0.72
    hump = bottom - np.minimum(gap * 0.45, 0.10) * (1 - (r / 0.72) ** 2).clip(0)
    s.fill(_between(u[inner], hump[inner], bottom[inner]), (150, 62, 66), 0.03)
    bare = 0.062 + 0.02 * min(1.0, s.act["smile"]) - 0.035 * min(1.0, s.act["round"])
    bite = np.minimum(gap * 0.85, bare)
    edge = top + bite * (1 - r**4)
    inner = r < 0.9
    s.fill(_between(u[inner], top[inner], edge[inner]), ink(np.array((226, 220, 206)), dim), 0.03)
    groove = ink(np.array((190, 180, 168)), dim)
    for place in (4, 7, 10, 14, 18, 21, 24):
        s.stroke([(u[place], top[place]), (u[place], edge[place])], groove, 0.006, 0.03)
    if s.act["stretch"] > 0.25 and gap.max() > 0.05:
        inner = r < 0.75
        low = bottom - np.minimum(gap * 0.3, 0.04) * (1 - r**4)
        lower = ink(np.array((208, 200, 186)), dim)
        s.fill(_between(u[inner], low[inner], bottom[inner]), lower, 0.03)
    s.stroke(np.stack((u, top), 1), (70, 26, 28), 0.012, 0.03)
