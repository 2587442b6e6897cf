"""Histograms of what was found of each particle, in the style of a run's report."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from cryoformer_dist.figures.style import ACCENT, MUTED, STYLE, Chart

_BINS = 50
_SIZE = (10.8, 2.5)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Some number of every particle.

    Attributes
    ----------
    name
        Written below its histogram.
    values
        ``(particles,)``.
    low, high
        Ends of the axis; ``None``: those of the values but for the outermost thousandth.
    logarithmic
        Whether counts are drawn so that few are seen beside many.
    """

    name: str
    values: Float[np.ndarray, " particles"]
    low: float | None = None
    high: float | None = None
    logarithmic: bool = False


def draw_distributions(distributions: tuple[Distribution, ...]) -> Chart:
    """A histogram of each, side by side; the median is marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        panels = figure.subplots(1, len(distributions), squeeze=False)[0]
        for panel, shown in zip(panels, distributions, strict=True):
            low, high = np.percentile(shown.values, (0.05, 99.95))
            edges = _cut(low if shown.low is None else shown.low, high if shown.high is None else shown.high)
            counts = np.histogram(shown.values.clip(edges[0], edges[-1]), edges)[0]
            panel.stairs(counts, edges, color=ACCENT, fill=True, alpha=0.25)
            panel.stairs(counts, edges, color=ACCENT, linewidth=1.6)
            median = float(np.median(shown.values))
            panel.axvline(median, color=MUTED, linewidth=1.2, linestyle="--", label=f"median {median:.3g}")
            panel.set_xlabel(shown.name)
            panel.set_yscale("symlog" if shown.logarithmic else "linear")
            panel.set_ylim(0, (3 if shown.logarithmic else 1.35) * max(int(counts.max()), 1))
            panel.legend()
        panels[0].set_ylabel("particles")
        return Chart(figure, "Distributions over the particles: " + ", ".join(each.name for each in distributions))


def _cut(low: float, high: float) -> Float[np.ndarray, " edges"]:
    """Edges of bins; about a number that all particles share too."""
    margin = 0.0 if high > low else max(abs(low), 1.0) / 100
    return np.linspace(low - margin, high + margin, _BINS + 1)
