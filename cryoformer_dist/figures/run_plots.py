"""Curves and pictures of the report: SVG that follows the page's light or dark colours, PNG as data URIs.

Drawn with matplotlib's objects, never through pyplot, so no global state and no display is touched.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
from jaxtyping import Float, Int, Real
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from cryoformer_dist.figures.fsc import frame_fsc
from cryoformer_dist.figures.style import ACCENT, FLOOR, MUTED, STYLE, svg
from cryoformer_dist.figures.surfaces import (
    Colour,
    View,
    central_slices,
    cluster_colour,
    colour_at,
    common_level,
    draw_surface,
    state_colours,
    variation_map,
)
from cryoformer_dist.runs.training_log import TrainingRecord


def png_data_uri(image: Real[np.ndarray, "height width *channels"]) -> str:
    """PNG of an image with values in [0, 1] (grey, or red-green-blue with or without opacity)."""
    buffer = io.BytesIO()
    levels = np.round(image * 255).clip(0, 255).astype(np.uint8)
    if levels.ndim == 3 and levels.shape[-1] == 4:
        # Colour under full transparency is never seen, but noise there would triple the file.
        levels[levels[..., 3] == 0] = 0
    if levels.ndim == 2:
        levels = np.repeat(levels[..., None], 3, axis=-1)
    matplotlib.image.imsave(buffer, levels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def surface_pictures(
    volumes: Float[np.ndarray, "states box box box"], view: View, colours: Sequence[Colour], size: int
) -> list[np.ndarray]:
    """Iso-surfaces at one level and from one view; where the maps differ each wears its own colour."""
    level, moving = common_level(volumes), variation_map(volumes)
    highlight = moving if moving.any() else None
    return [
        draw_surface(voxels, level, view, colour, highlight, size)
        for voxels, colour in zip(volumes, colours, strict=True)
    ]


def film_strip(pictures: Sequence[np.ndarray]) -> str:
    """Pictures side by side in one PNG, for the page to play as frames."""
    return png_data_uri(np.concatenate(list(pictures), axis=1))


def slice_columns(
    maps: Sequence[tuple[str, Float[np.ndarray, "box box box"]]], size: int = 150
) -> list[dict[str, Any]]:
    """Central slices of named maps, each map between its own 2nd and 99.9th percentile."""
    columns = []
    for name, voxels in maps:
        low, high = (float(np.percentile(voxels, share)) for share in (2.0, 99.9))
        images = [png_data_uri(cut) for cut in central_slices(voxels, (low, high), size)]
        columns.append({"name": name, "images": images})
    return columns


def loss_curves(records: Sequence[TrainingRecord]) -> str:
    """Loss against step, one panel per stage, in the order of the records."""
    stages = list(dict.fromkeys(str(record.stage) for record in records))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 2.7), layout="constrained")
        panels = figure.subplots(1, len(stages), squeeze=False)[0]
        for panel, stage in zip(panels, stages, strict=True):
            rows = [record for record in records if record.stage == stage]
            loss = np.array([float(record.loss) for record in rows])
            step = np.array([int(record.step) for record in rows])
            panel.plot(step, loss, color=ACCENT, alpha=0.35 if len(loss) > 20 else 1.0, linewidth=1.2)
            if len(loss) > 20:
                window = max(len(loss) // 15, 3)
                smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
                panel.plot(step[window // 2 : window // 2 + len(smooth)], smooth, color=ACCENT, linewidth=2)
            panel.set_title(stage.replace("_", " "))
            panel.set_xlabel("step")
        panels[0].set_ylabel("loss")
        return svg(figure, "Loss against step, by stage")


def latent_scatter(
    pca: Float[np.ndarray, "particles axes"],
    explained_variance: Float[np.ndarray, " axes"],
    centres: Float[np.ndarray, "clusters axes"],
    coordinate: Float[np.ndarray, " particles"] | None = None,
    period: float = 0.0,
) -> str:
    """Latents on their first two axes, coloured by the true coordinate or by density; centres numbered."""
    points, marks = _plane(pca), _plane(centres)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.subplots()
        if coordinate is None:
            density = LinearSegmentedColormap.from_list("density", ["#a8c4ee", "#2b62c4", "#12285e"])
            drawn: ScalarMappable = axes.hexbin(
                points[:, 0], points[:, 1], gridsize=48, mincnt=1, cmap=density, rasterized=True
            )
            name = "particles"
        else:
            order = np.random.default_rng(0).permutation(len(points))[:60_000]
            size = float(np.clip(30_000 / max(len(points), 1), 2.0, 12.0))
            drawn = axes.scatter(
                points[order, 0],
                points[order, 1],
                c=coordinate[order],
                s=size,
                cmap=_coordinate_map(period > 0),
                alpha=0.75,
                linewidths=0,
                rasterized=True,
            )
            name = "true coordinate"
        bar = figure.colorbar(drawn, ax=axes, shrink=0.75, aspect=28, pad=0.02, label=name)
        bar.outline.set_visible(False)
        _mark_centres(axes, marks, explained_variance)
        return svg(figure, "Latents on their first two principal axes")


def cluster_scatter(
    pca: Float[np.ndarray, "particles axes"],
    explained_variance: Float[np.ndarray, " axes"],
    centres: Float[np.ndarray, "clusters axes"],
    label: Int[np.ndarray, " particles"],
) -> str:
    """Latents on their first two axes, coloured by their k-means cluster; centres numbered (paper, fig. E)."""
    points = _plane(pca)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.subplots()
        order = np.random.default_rng(0).permutation(len(points))[:60_000]
        colours = np.array([cluster_colour(number) for number in range(int(label.max()) + 1)])
        size = float(np.clip(30_000 / max(len(points), 1), 2.0, 12.0))
        x, y = points[order].T
        axes.scatter(x, y, c=colours[label[order]], s=size, alpha=0.7, linewidths=0, rasterized=True)
        _mark_centres(axes, _plane(centres), explained_variance)
        return svg(figure, "Latents on their first two principal axes by cluster")


def _plane(coordinates: np.ndarray) -> np.ndarray:
    """First two coordinates, the second zero where there is one only."""
    missing = max(2 - coordinates.shape[1], 0)
    return np.pad(coordinates, ((0, 0), (0, missing)))[:, :2]


def _mark_centres(axes: Axes, marks: np.ndarray, explained_variance: np.ndarray) -> None:
    """Number the cluster centres and say what share of the variance each axis holds."""
    for number, (x, y) in enumerate(_apart(marks, 0.045 * np.ptp(axes.dataLim.get_points(), axis=0))):
        circle = {"boxstyle": "circle,pad=0.22", "facecolor": "white", "edgecolor": "#1d2433", "linewidth": 0.8}
        axes.text(x, y, str(number), ha="center", va="center", fontsize=8, color="#1d2433", bbox=circle)
    share = [*explained_variance, 0.0]
    axes.set_xlabel(f"PC1 · {share[0]:.0%} of the variance")
    axes.set_ylabel(f"PC2 · {share[1]:.0%} of the variance")
    axes.margins(0.06)


def _apart(marks: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Push marks that would hide each other a little apart."""
    scale = np.where(least > 0, least, 1.0)
    placed = marks / scale
    for _ in range(30):
        gap = placed[:, None] - placed[None]
        distance = np.linalg.norm(gap, axis=-1, keepdims=True)
        # Marks on one spot have no direction of their own: their numbers give one.
        turn = np.arange(len(marks), dtype=np.float64)[:, None] - np.arange(len(marks))
        away = np.where(distance > 1e-6, gap / distance.clip(min=1e-6), np.stack([np.sign(turn), 0 * turn], axis=-1))
        placed = placed + 0.5 * (away * (1 - distance).clip(min=0)).sum(axis=1)
    return np.asarray(placed * scale)


def _coordinate_map(periodic: bool) -> LinearSegmentedColormap:
    stops = [colour_at(position, periodic) for position in np.linspace(0, 1, 32)]
    return LinearSegmentedColormap.from_list("coordinate", stops)


def fsc_curves(
    frequency_per_angstrom: Float[np.ndarray, " shells"],
    own: Float[np.ndarray, "states shells"],
    consensus: Float[np.ndarray, "states shells"],
    periodic: bool = False,
) -> str:
    """FSC of each state's map with the true state, over the consensus map as the dashed floor."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.subplots()
        shells = slice(1, None)
        low, high = consensus.min(axis=0)[shells], consensus.max(axis=0)[shells]
        axes.fill_between(frequency_per_angstrom[shells], low, high, color=FLOOR, alpha=0.18, linewidth=0)
        for curve, colour in zip(own, state_colours(len(own), periodic), strict=True):
            axes.plot(frequency_per_angstrom[shells], curve[shells], color=colour, linewidth=1.7)
        floor = consensus.mean(axis=0)[shells]
        axes.plot(
            frequency_per_angstrom[shells],
            floor,
            color=FLOOR,
            linewidth=2,
            linestyle="--",
            label="consensus (floor)",
        )
        axes.plot([], [], color=to_hex(colour_at(0.0, periodic)), linewidth=1.7, label="ours, one line per state")
        frame_fsc(axes, float(frequency_per_angstrom[-1]), MUTED)
        axes.set_ylabel("FSC with the true state")
        axes.legend(loc="lower left")
        return svg(figure, "Fourier shell correlation of each state with the truth")


def pose_histograms(pose: Mapping[str, Any]) -> str:
    """Errors of the rotation and the shift before and after the refinement."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 2.5), layout="constrained")
        panels = figure.subplots(1, 2)
        named = (("angle_deg", "rotation error (°)"), ("shift_angstrom", "shift error (Å)"))
        for panel, (key, label) in zip(panels, named, strict=True):
            histogram = pose[f"{key}_histogram"]
            for name, colour in (("before", FLOOR), ("after", ACCENT)):
                if name in histogram:
                    counts, edges = np.array(histogram[name]), np.array(histogram["edges"])
                    panel.stairs(counts, edges, color=colour, fill=True, alpha=0.25)
                    text = f"{name} · median {pose[name][f'{key}_median']:.3g}"
                    panel.stairs(counts, edges, color=colour, linewidth=1.6, label=text)
            panel.set_xlabel(label)
            panel.set_ylim(0, 1.4 * panel.get_ylim()[1])
            panel.set_yticks([])
            panel.legend()
        panels[0].set_ylabel("particles")
        return svg(figure, "Pose errors before and after refinement")


def throughput_lines(records: Sequence[TrainingRecord]) -> str:
    """Particles per second and the share of time spent waiting for data, report by report."""
    rate = np.array([float(record.particles_per_second) for record in records])
    wait = 100 * np.array([float(record.data_wait_share) for record in records])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 2.2), layout="constrained")
        panels = figure.subplots(1, 2)
        named = ((rate, "particles per second"), (wait, "waiting for data (%)"))
        for panel, (values, label) in zip(panels, named, strict=True):
            panel.plot(np.arange(1, len(values) + 1), values, color=ACCENT, linewidth=1.6)
            panel.fill_between(np.arange(1, len(values) + 1), 0, values, color=ACCENT, alpha=0.12, linewidth=0)
            top = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
            panel.set_ylim(0, max(1.15 * top, 1.0))
            panel.set_title(label)
            panel.set_xlabel("report")
        return svg(figure, "Throughput and data wait")
