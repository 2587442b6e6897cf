"""FSC curves as a picture file, for the commands that compare maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.physics.fourier import FSCCurve

PICTURES = (".png", ".svg", ".pdf")
_COLOURS = {"unmasked": "#98a2b3", "masked": "#2563c9", "randomised": "#d97706", "corrected": "#1d2433"}
_OTHER_COLOURS = ("#0f766e", "#b42366", "#6d5bd0", "#7c6f00")
# matplotlib types its settings as a union of three hundred names.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cryoformer-dist",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ec",
    "legend.frameon": False,
}


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
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        for curve in faint:
            axes.plot(curve.frequency_per_angstrom, curve.correlation, color="#c4cad4", linewidth=0.8)
        colours = iter(_OTHER_COLOURS)
        for name, curve in curves.items():
            resolution = f", {curve.resolution_angstrom(0.143):.2f} Å at 0.143" if name != "randomised" else ""
            colour = _COLOURS.get(name) or next(colours)
            axes.plot(
                curve.frequency_per_angstrom, curve.correlation, color=colour, linewidth=1.8, label=name + resolution
            )
        for threshold in (0.5, 0.143):
            axes.axhline(threshold, color="#667085", linewidth=0.8, linestyle=(0, (2, 3)))
        top = float(next(iter(curves.values())).frequency_per_angstrom[-1])
        ticks = np.arange(1, 6) * top / 5
        axes.set_xticks(ticks, [f"{1 / tick:.1f}" for tick in ticks])
        axes.set_xlim(0, top * 1.02)
        axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.03)
        axes.set_xlabel("resolution (Å)")
        axes.set_ylabel("Fourier shell correlation")
        axes.set_title(title, fontsize=10, loc="left")
        axes.legend(fontsize=9)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
