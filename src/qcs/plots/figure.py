"""What all figures share: their colours, and how they are written to a file."""

from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from qcs.plots.text import families

Format = Literal["png", "pdf", "svg"]

# The date is left out, so that the same picture always gives the same file.
_METADATA = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def colour(number: int, total: int) -> str:
    """Return one of ten distinct colours, or of a larger palette if ten are not enough."""
    return f"C{number}" if total <= 10 else to_hex(colormaps["turbo"](number / (total - 1)))


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file without pyplot, so that no display is needed.

    Text is drawn as it is: `$` does not start a formula, and characters that the usual font does
    not have are taken from another font. The suffix of the file is one of `Format`.
    """
    FigureCanvasAgg(figure)
    texts = figure.findobj(Text)
    written = "".join(text.get_text() for text in texts) + "".join(_tick_labels(figure))
    others = families(written)
    for text in texts:
        text.set_parse_math(False)
        if others:
            text.set_fontfamily([*text.get_fontfamily(), *others])
    # Journals accept fonts of type 42. The salt keeps the names within an SVG the same.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "qcs"}):
        metadata = _METADATA.get(path.suffix)
        figure.savefig(path, dpi=120, bbox_inches="tight", metadata=metadata)


def _tick_labels(figure: Figure) -> list[str]:
    """Return the tick labels, which become texts of the figure only when it is drawn."""
    found: list[str] = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                found += map(str, formatter.seq)
    return found
