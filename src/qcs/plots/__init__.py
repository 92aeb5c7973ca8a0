"""All pictures that qcs draws, with matplotlib."""

from qcs.plots.attention import attention_sheet, class_token_maps, pair_grid
from qcs.plots.confusion import confusion
from qcs.plots.faces import face_sheet, to_pixels
from qcs.plots.figure import Format
from qcs.plots.scores import (
    accuracy_curve,
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
