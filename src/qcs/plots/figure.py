"""Writing a figure."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without pyplot, so that no display is needed."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, bbox_inches="tight")
