"""All pictures that qcs draws, with matplotlib."""

from qcs.plots.faces import attention_sheet, class_token_maps, face_sheet, pair_grid, to_pixels
from qcs.plots.figure import Format
from qcs.plots.scores import (
    accuracy_curve,
    confusion,
    curves,
    embedding,
    groups,
    importance,
    reliability,
    search_history,
)

__all__ = [
    "Format",
    "accuracy_curve",
    "attention_sheet",
    "class_token_maps",
    "confusion",
    "curves",
    "embedding",
    "face_sheet",
    "groups",
    "importance",
    "pair_grid",
    "reliability",
    "search_history",
    "to_pixels",
]
