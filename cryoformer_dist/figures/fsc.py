"""FSC curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.figures.style import PLAIN
from cryoformer_dist.physics.fourier import FSC_HALF_MAPS, FSC_THRESHOLDS, FSCCurve
from cryoformer_dist.storage.places import replaced

PICTURES = (".png", ".svg", ".pdf")
_COLOURS = {"unmasked": "#98a2b3", "masked": "#2563c9", "randomised": "#d97706", "corrected": "#1d2433"}
_OTHER_COLOURS = ("#0f766e", "#b42366", "#6d5bd0", "#7c6f00")


def draw_fsc(
    path: Path,
    curves: Mapping[str, FSCCurve],
    title: str,
    faint: Sequence[FSCCurve] = (),
) -> Path:
    """Draw FSC curves against frequency, with the resolution of each at 0.143 in the legend.

    Parameters
    ----------
    path
        Picture; the suffix says which kind.
    curves
        By name.
    title
        Above the picture.
    faint
        Drawn thinly behind: the single curves of an average.

    Raises
    ------
    ConfigError
        If the suffix is none of `PICTURES`.
    """
    if path.suffix not in PICTURES:
        raise ConfigError(f"{path}: cannot draw a {path.suffix or 'nameless'} picture; end it in .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(PLAIN):
        figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        for curve in faint:
            axes.plot(curve.frequency_per_angstrom, curve.correlation, color="#c4cad4", linewidth=0.8)
        plot_curves(axes, curves)
        axes.set_title(title)
        kind = path.suffix.removeprefix(".")
        with replaced(path) as beside:
            figure.savefig(beside, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return path


def plot_curves(axes: Axes, curves: Mapping[str, FSCCurve]) -> None:
    """Plot named curves, with the resolution of each at 0.143 in the legend."""
    colours = iter(_OTHER_COLOURS)
    for name, curve in curves.items():
        label = name
        if name != "randomised":
            label += f", {curve.resolution_angstrom(FSC_HALF_MAPS):.2f} Å at {FSC_HALF_MAPS:g}"
        colour = _COLOURS.get(name) or next(colours)
        axes.plot(curve.frequency_per_angstrom, curve.correlation, color=colour, linewidth=1.8, label=label)
    frame_fsc(axes, float(next(iter(curves.values())).frequency_per_angstrom[-1]), "#667085")
    axes.set_ylabel("Fourier shell correlation")
    axes.legend()


def frame_fsc(axes: Axes, top_per_angstrom: float, colour: str) -> None:
    """Draw the thresholds, and label the frequencies of what is plotted as resolution."""
    for threshold in FSC_THRESHOLDS:
        axes.axhline(threshold, color=colour, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.annotate(
            f"{threshold:g}", (1, threshold), xycoords=("axes fraction", "data"), xytext=(-2, 3),
            textcoords="offset points", ha="right", fontsize=8, color=colour,
        )  # fmt: skip
    ticks = np.arange(1, 6) * top_per_angstrom / 5
    axes.set_xticks(ticks, [f"{1 / tick:.{0 if 1 / tick >= 20 else 1}f}" for tick in ticks])
    axes.set_xlim(0, top_per_angstrom * 1.02)
    axes.set_ylim(min(-0.05, axes.dataLim.y0), 1.04)
    axes.set_xlabel("resolution (Å)")
