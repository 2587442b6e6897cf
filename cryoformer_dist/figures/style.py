"""The look of all figures: in files of their own, and in reports as SVG that follows the page's colours."""

import io
from typing import Any

from matplotlib.figure import Figure

# Colours that no figure uses otherwise; in the finished SVG they become the page's own variables.
INK, MUTED, GRID, ACCENT, FLOOR = "#010101", "#020202", "#030303", "#040404", "#050505"
_PAGE_COLOURS = {
    INK: "var(--ink, #1d2433)",
    MUTED: "var(--muted, #667085)",
    GRID: "var(--grid, #e4e7ec)",
    ACCENT: "var(--accent, #2563c9)",
    FLOOR: "var(--floor, #98a2b3)",
}
# matplotlib types its settings as a union of three hundred names.
PLAIN: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cryoformer-dist",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#e4e7ec",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
"""Of pictures in files of their own."""
STYLE: Any = PLAIN | {
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "legend.labelcolor": MUTED,
    "figure.facecolor": "none",
}


def to_svg(figure: Figure, title: str) -> str:
    """Inline SVG with the page's colours and fonts, named for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, variable in _PAGE_COLOURS.items():
        text = text.replace(placeholder, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}" class="figure"', 1)
