"""The energy landscape of the latents as a picture: over two axes with its wells, and over the first with its error."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryoformer_dist.figures.style import PLAIN

_SHOWN_KT = 6.0


def draw_landscape(
    file: Path,
    profile: tuple[Float[np.ndarray, " edges"], Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]],
    plane: tuple[Sequence[Float[np.ndarray, " edges"]], Float[np.ndarray, "cells cells"]] | None,
    wells: Sequence[tuple[float, ...]],
    blur: tuple[float, ...] | None,
) -> Path:
    """Draw an energy over two axes and its profile over the first.

    Parameters
    ----------
    file
        Picture.
    profile
        Edges, energy and its standard error along the first axis, kT.
    plane
        Edges of the cells along both axes, and the energy in each; cells without a number stay white. ``None`` where
        there is one axis.
    wells
        Coordinates, the lowest first.
    blur
        How wide one particle's posterior is along the axes, where it is known.
    """
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        if plane is not None:
            _draw_plane(figure.add_subplot(1, 2, 1), *plane, wells, blur)
        _draw_profile(figure.add_subplot(1, 1 if plane is None else 2, 1 if plane is None else 2), *profile)
        figure.savefig(file, dpi=160)
    return file


def _draw_plane(
    axes: Axes,
    edges: Sequence[np.ndarray],
    energy: np.ndarray,
    wells: Sequence[tuple[float, ...]],
    blur: tuple[float, ...] | None,
) -> None:
    mesh = axes.pcolormesh(*edges, energy.T, cmap="viridis_r", vmin=0, vmax=_SHOWN_KT, rasterized=True)
    middles = [(cut[:-1] + cut[1:]) / 2 for cut in edges]
    axes.contour(*middles, energy.T, levels=np.arange(1, _SHOWN_KT), colors="white", linewidths=0.6)
    for number, (x, y) in enumerate(wells, start=1):
        axes.plot(x, y, "o", color="white", markeredgecolor="black", markersize=11)
        axes.text(x, y, str(number), ha="center", va="center", fontsize=7.5)
    if blur is not None:
        x, y = (cut[0] + 0.12 * (cut[-1] - cut[0]) for cut in edges)
        axes.errorbar(x, y, blur[1], blur[0], color="black", linewidth=1.2)
        axes.annotate("one particle", (x, y), (6, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="PC 1", ylabel="PC 2", title="How rare each conformation is")
    axes.grid(visible=False)
    axes.figure.colorbar(mesh, ax=axes, label="-ln density (kT), 0 = most crowded", extend="max")


def _draw_profile(axes: Axes, edges: np.ndarray, energy: np.ndarray, error: np.ndarray) -> None:
    middle = (edges[:-1] + edges[1:]) / 2
    axes.fill_between(
        middle, energy - 2 * error, energy + 2 * error, alpha=0.3, linewidth=0, label="± 2 standard errors"
    )
    axes.plot(middle, energy)
    axes.set(xlabel="PC 1", ylabel="-ln density (kT)", title="Along the first axis", ylim=(-0.3, None))
    axes.legend(loc="upper center")
