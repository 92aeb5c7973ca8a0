"""Who is drawn, how the picture is taken and what the face does: the random choices of a face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcs.data.synthetic.shapes import mix

EXPRESSIONS = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")
# The facial actions. They stand for the action units 1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 24,
# 25 and 26; the last three, of which "round" is the mouth's, stand for none.
ACTIONS = (
    "brow_in", "brow_out", "knit", "lid", "cheek", "tight", "wrinkle", "upper", "smile", "frown",
    "chin", "stretch", "press", "part", "jaw", "droop", "gaze", "round",
)  # fmt: skip
# The strength of the actions in each expression, which has some variants.
_VARIANTS: dict[str, tuple[dict[str, float], ...]] = {
    "Surprise": (
        {"brow_in": 1.0, "brow_out": 1.0, "lid": 0.9, "jaw": 1.1, "round": 0.8},
        {"brow_in": 0.9, "brow_out": 1.0, "lid": 0.7, "jaw": 0.75, "round": 0.7},
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
        {"knit": 1.1, "tight": 0.6, "press": 1.1, "lid": 0.3, "chin": 0.3},
        {"knit": 1.1, "tight": 0.7, "part": 1.0, "stretch": 0.3, "lid": 0.3, "frown": 0.4},
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


@dataclass(frozen=True)
class Person:
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


def make_person(seed: int, identity: int) -> Person:
    """Draws at random everything that belongs to an identity."""
    rng = np.random.default_rng([seed, identity])
    tone = rng.uniform(0, len(_SKINS) - 1)
    low = int(min(tone, len(_SKINS) - 2))
    skin = mix(_SKINS[low], _SKINS[low + 1], tone - low) + rng.normal(0, 4, 3)
    age = float(rng.beta(1.2, 1.8))
    hair = _HAIRS[rng.choice(6, p=(0.28, 0.24, 0.18, 0.08, 0.14, 0.08))] + rng.normal(0, 5, 3)
    hair = hair * (1 - 0.55 * max(0.0, tone - 2.5) / 2.5)  # dark skin, dark hair
    hair = mix(hair, np.array((178, 176, 174)), max(0.0, age - 0.65) * 2.2)
    bearded, female = rng.random(), rng.random() < 0.5
    weights = (1, 1, 1, 2, 3, 0.2, 5, 2, 2) if female else (2, 2, 4, 3, 1.5, 2, 0.7, 1.5, 0.2)
    draw = rng.uniform
    return Person(
        half_width=draw(0.73, 0.84),
        jaw=draw(0.74, 0.86) if female else draw(0.80, 0.94),
        chin=draw(0.24, 0.34) if female else draw(0.28, 0.44),
        eye_gap=draw(0.30, 0.355),
        eye_size=draw(0.98, 1.22),
        eye_tilt=draw(-0.014, 0.03),
        eye_open=draw(0.82, 1.15),
        nose_width=draw(0.10, 0.165),
        nose_end=draw(0.31, 0.41),
        mouth_width=draw(0.255, 0.32),
        mouth_height=draw(0.58, 0.65),
        corner_rest=draw(-0.03, 0.008),
        lip=draw(0.75, 1.4),
        brow_height=draw(-0.30, -0.25),
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
class Shot:
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


def make_shot(entropy: list[int], person: Person) -> Shot:
    """Draws at random everything that changes between images and is not expression."""
    rng = np.random.default_rng([*entropy, 1])
    roll, yaw, pitch = np.clip(rng.normal(0, 1, 3), -2, 2) * np.radians((6.0, 9.0, 5.0))
    light = np.array((rng.normal(0, 0.45), rng.uniform(-0.75, 0.1), 0.85))
    covers, hats = ("", "mask", "scarf", "hand"), ("", "beanie", "cap", "brim", "veil")
    glasses = ("clear" if rng.random() < 0.85 else "dark") if rng.random() < 0.06 else ""
    worn = "clear" if rng.random() < 0.93 else "dark"
    return Shot(
        roll=roll,
        yaw=yaw,
        pitch=pitch,
        zoom=rng.uniform(0.41, 0.475),
        shift=rng.normal(0, 0.018, 2),
        light=light / np.linalg.norm(light),
        contrast=rng.uniform(0.2, 0.7),
        tint=1 + rng.normal(0, 0.05, 3),
        exposure=float(np.clip(np.exp(rng.normal(0.0, 0.14)), 0.75, 1.25)),
        blur=max(0.0, rng.normal(0.0, 0.55)),
        noise=rng.gamma(1.3, 2.6),
        grey=rng.random() < 0.15,
        cover=str(rng.choice(covers, p=(0.925, 0.025, 0.02, 0.03))),
        hat=str(rng.choice(hats, p=(0.89, 0.03, 0.03, 0.02, 0.03))),
        glasses=worn if person.glasses else glasses,
        gaze=float(np.clip(rng.normal(0, 0.35), -0.8, 0.8)),
        cloth=mix(rng.uniform(25, 225, 3), rng.uniform(30, 210), 0.45),
        props=rng.random(8),
    )


def make_actions(entropy: list[int], expression: str) -> dict[str, float]:
    """Draws at random how strong every action is: of the whole face, and of each side.

    The key of a side is the action's name with the suffix l or r.
    """
    rng = np.random.default_rng([*entropy, 2])
    pick, intensity = rng.random(), rng.uniform(0.6, 1.0)
    variants = _VARIANTS[expression]
    weights = variants[int(pick * len(variants))]
    actions: dict[str, float] = {}
    for name in ACTIONS:
        stray = max(0.0, rng.normal(-0.05, 0.09))
        value = weights.get(name, 0.0) * intensity * rng.uniform(0.75, 1.15) + stray
        skew = rng.normal(0, 0.09)
        actions[name] = value
        actions[name + "l"], actions[name + "r"] = value * (1 + skew), value * (1 - skew)
    return actions
