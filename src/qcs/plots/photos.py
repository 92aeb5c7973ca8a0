"""Predictions drawn into the photos themselves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from qcs.predictor import Prediction


def annotated(image: Image.Image, predictions: Sequence["Prediction"]) -> Image.Image:
    """Draw boxes and labels into a copy of an RGB image."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for prediction in predictions:
        left, top, right, bottom = prediction.box or (0, 0, *image.size)
        height = max(11, round((bottom - top) / 9))
        font = ImageFont.load_default(height)
        draw.rectangle((left, top, right, bottom), outline="#ffcc00", width=max(height // 8, 2))
        text = f"{prediction.label} {100 * prediction.probability:.0f} %"
        width = draw.textlength(text, font=font)
        x = min(max(left, 0), max(image.width - width - 4, 0))
        y = top - height - 6 if top >= height + 6 else min(bottom, image.height - height - 6)
        draw.rectangle((x, y, x + width + 4, y + height + 6), fill="#ffcc00")
        draw.text((x + 2, y + 1), text, fill="black", font=font)
    return image
