"""Writing a figure."""

from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from qcs.plots.text import families

Format = Literal["png", "pdf", "svg"]

# Without the date, so that the same picture is the same file.
_METADATA = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def save(figure: Figure, path: Path) -> None:
    """Write a figure without pyplot, so that no display is needed.

    All text is taken as it is: `$` starts no formula, and characters that the usual font lacks
    come from another one.

    Args:
        figure: drawn.
        path: its suffix is the format, one of `Format`.
    """
    FigureCanvasAgg(figure)
    texts = figure.findobj(Text)
    written = "".join(text.get_text() for text in texts) + "".join(_tick_labels(figure))
    others = families(written)
    for text in texts:
        text.set_parse_math(False)
        if others:
            text.set_fontfamily([*text.get_fontfamily(), *others])
    # Fonts that journals take (42), and names within an SVG that do not change.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "qcs"}):
        metadata = _METADATA.get(path.suffix)
        figure.savefig(path, dpi=120, bbox_inches="tight", metadata=metadata)


def _tick_labels(figure: Figure) -> list[str]:
    """The labels that ticks get when they are drawn."""
    found: list[str] = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                found += map(str, formatter.seq)
    return found
