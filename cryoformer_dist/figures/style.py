"""The look of all figures: in files of their own, and in reports as SVG that follows the page's colours."""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# The light page's colours, each one off in blue, so that nothing else has them: in the finished SVG they become the
# page's own variables, and a slide shows them as they are.
INK, MUTED, GRID, ACCENT, FLOOR = "#1d2432", "#667084", "#e4e7ed", "#2563c8", "#98a2b2"
# Inches and dots per inch: 1920 x 1080.
_SLIDE_INCHES, _SLIDE_DPI = (9.6, 5.4), 200
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


@dataclass(frozen=True)
class Chart:
    """A figure for the page of a report and for a slide.

    Attributes
    ----------
    figure
        Drawn in `STYLE`.
    title
        For screen readers.
    """

    figure: Figure
    title: str

    @cached_property
    def svg(self) -> str:
        """Inline SVG with the page's colours and fonts."""
        return to_svg(self.figure, self.title)

    def draw_slide(self) -> bytes:
        """PNG of a slide's size; the page's SVG is drawn first, since the figure is enlarged."""
        assert self.svg
        self.figure.set_size_inches(*_SLIDE_INCHES)
        return to_slide(self.figure)


def to_slide(figure: Figure) -> bytes:
    """PNG of 1920 x 1080 pixels on white, of a figure of a slide's size."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=_SLIDE_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def start_slide() -> Figure:
    """An empty figure of a slide's size."""
    return Figure(figsize=_SLIDE_INCHES, layout="constrained")


def to_svg(figure: Figure, title: str) -> str:
    """Inline SVG with the page's colours and fonts, named for screen readers."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, variable in _PAGE_COLOURS.items():
        text = text.replace(placeholder, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}" class="figure"', 1)
