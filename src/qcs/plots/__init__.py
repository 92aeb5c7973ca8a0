"""Every picture we make."""

from qcs.plots.faces import attention_sheet, face_sheet, gaze_sheet, pair_grid, to_pixels
from qcs.plots.scores import (
    confusion,
    curves,
    embedding,
    groups,
    importance,
    reliability,
    search_history,
)

__all__ = [
    "attention_sheet",
    "confusion",
    "curves",
    "embedding",
    "face_sheet",
    "gaze_sheet",
    "groups",
    "importance",
    "pair_grid",
    "reliability",
    "search_history",
    "to_pixels",
]
