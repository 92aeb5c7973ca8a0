"""Draws synthetic faces with an expression, with Pillow and numpy only.

The faces are illustrations made by code. No photograph and no person stands behind them, and
a number measured on them says nothing about real faces. `qcs.data.sources.synthetic` makes them
into a data set.

Lengths are in head units: the origin is the middle of the face, u points right, v points down,
the chin is near v = 1 and the crown near v = -1.08. Facial actions follow the action units (AU)
of the facial action coding system and run from 0 (absent) to about 1 (full).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from qcs.config.errors import UserError
from qcs.data.synthetic import skin
from qcs.data.synthetic.accessories import draw_cloth, draw_glasses, draw_hand, draw_hat
from qcs.data.synthetic.features import draw_brows, draw_eyes, draw_mouth, draw_nose
from qcs.data.synthetic.hair import draw_beard, draw_hair, draw_hair_behind, draw_moustache
from qcs.data.synthetic.people import EXPRESSIONS, make_actions, make_person, make_shot
from qcs.data.synthetic.scene import Scene

__all__ = ["EXPRESSIONS", "draw_face"]


def _finish(s: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
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


def _compose(s: Scene, entropy: list[int]) -> None:
    """Everything from the background to what lies over the face, from back to front."""
    looks, shot = np.random.default_rng([*entropy[:2], 3]), s.shot
    skin.draw_background(s, np.random.default_rng([*entropy, 4]))
    if shot.hat != "veil":
        draw_hair_behind(s)
    skin.draw_body(s)
    skin.draw_skin(s, s.mask(skin.head_outline(s)))
    skin.draw_creases(s)
    if s.person.beard:
        draw_beard(s, looks)
    draw_eyes(s)
    draw_brows(s, looks)
    draw_nose(s)
    lip = draw_mouth(s)
    if s.person.moustache:
        draw_moustache(s, lip, looks)
    if shot.hat != "veil":
        draw_hair(s, looks)
    if shot.glasses:
        draw_glasses(s)
    if shot.hat:
        draw_hat(s)
    if shot.cover == "hand":
        draw_hand(s)
    elif shot.cover:
        draw_cloth(s)


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
        UserError: the expression is not one of EXPRESSIONS.
    """
    if expression not in EXPRESSIONS:
        raise UserError(f"unknown expression {expression!r}; choose from {', '.join(EXPRESSIONS)}")
    entropy = [seed, identity, sample]
    person = make_person(seed, identity)
    side = size * (3 if size <= 128 else 2)
    scene = Scene(side, person, make_shot(entropy, person), make_actions(entropy, expression))
    _compose(scene, entropy)
    return _finish(scene, size, np.random.default_rng([*entropy, 5]))
