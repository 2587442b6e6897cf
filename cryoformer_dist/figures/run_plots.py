"""Curves of a run's report, as SVG that follows the page's light or dark colours.

Drawn with matplotlib's objects, never through pyplot, so no global state and no display is touched.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from cryoformer_dist.figures.fsc import frame_fsc
from cryoformer_dist.figures.style import ACCENT, FLOOR, MUTED, STYLE, Chart
from cryoformer_dist.figures.surfaces import cluster_colour, colour_at, colour_states
from cryoformer_dist.runs.pose_scores import PoseScores
from cryoformer_dist.runs.training_log import TrainingRecord


def draw_loss(records: Sequence[TrainingRecord]) -> Chart:
    """Loss against step, one panel per stage, in the order of the records."""
    stages = list(dict.fromkeys(record.stage for record in records))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 2.7), layout="constrained")
        panels = figure.subplots(1, len(stages), squeeze=False)[0]
        for panel, stage in zip(panels, stages, strict=True):
            rows = [record for record in records if record.stage == stage]
            loss = np.array([record.loss for record in rows])
            step = np.array([record.step for record in rows])
            panel.plot(step, loss, color=ACCENT, alpha=0.35 if len(loss) > 20 else 1.0, linewidth=1.2)
            if len(loss) > 20:
                window = max(len(loss) // 15, 3)
                smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
                panel.plot(step[window // 2 : window // 2 + len(smooth)], smooth, color=ACCENT, linewidth=2)
            panel.set_title(stage.replace("_", " "))
            panel.set_xlabel("step")
        panels[0].set_ylabel("loss")
        return Chart(figure, "Loss against step, by stage")


def draw_latents(
    pca: Float[np.ndarray, "particles axes"],
    explained_variance: Float[np.ndarray, " axes"],
    centres: Float[np.ndarray, "clusters axes"],
    coordinate: Float[np.ndarray, " particles"] | None = None,
    period: float = 0.0,
) -> Chart:
    """Latents on their first two axes, coloured by the true coordinate or by density; centres numbered."""
    points, marks = _take_plane(pca), _take_plane(centres)
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
            drawn = _scatter(axes, points, coordinate, alpha=0.75, cmap=_make_coordinate_map(period > 0))
            name = "true coordinate"
        bar = figure.colorbar(drawn, ax=axes, shrink=0.75, aspect=28, pad=0.02, label=name)
        bar.outline.set_visible(False)
        _mark_centres(axes, marks, explained_variance)
        return Chart(figure, "Latents on their first two principal axes")


def draw_clusters(
    pca: Float[np.ndarray, "particles axes"],
    explained_variance: Float[np.ndarray, " axes"],
    centres: Float[np.ndarray, "clusters axes"],
    label: Int[np.ndarray, " particles"],
) -> Chart:
    """Latents on their first two axes, coloured by their k-means cluster; centres numbered (paper, fig. E)."""
    points = _take_plane(pca)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.subplots()
        colours = np.array([cluster_colour(number) for number in range(int(label.max()) + 1)])
        _scatter(axes, points, colours[label], alpha=0.7)
        _mark_centres(axes, _take_plane(centres), explained_variance)
        return Chart(figure, "Latents on their first two principal axes by cluster")


def _scatter(axes: Axes, points: np.ndarray, colours: np.ndarray, **style: Any) -> PathCollection:
    """Draw at most 60,000 points in random order, the smaller the more there are."""
    order = np.random.default_rng(0).permutation(len(points))[:60_000]
    size = float(np.clip(30_000 / max(len(points), 1), 2.0, 12.0))
    x, y = points[order].T
    return axes.scatter(x, y, c=colours[order], s=size, linewidths=0, rasterized=True, **style)


def _take_plane(coordinates: np.ndarray) -> np.ndarray:
    """First two coordinates, the second zero where there is one only."""
    missing = max(2 - coordinates.shape[1], 0)
    return np.pad(coordinates, ((0, 0), (0, missing)))[:, :2]


def _mark_centres(axes: Axes, marks: np.ndarray, explained_variance: np.ndarray) -> None:
    """Number the cluster centres and say what share of the variance each axis holds."""
    for number, (x, y) in enumerate(_push_apart(marks, 0.045 * np.ptp(axes.dataLim.get_points(), axis=0))):
        circle = {"boxstyle": "circle,pad=0.22", "facecolor": "white", "edgecolor": "#1d2433", "linewidth": 0.8}
        axes.text(x, y, str(number), ha="center", va="center", fontsize=8, color="#1d2433", bbox=circle)
    share = [*explained_variance, 0.0]
    axes.set_xlabel(f"PC1 · {share[0]:.0%} of the variance")
    axes.set_ylabel(f"PC2 · {share[1]:.0%} of the variance")
    axes.margins(0.06)


def _push_apart(marks: np.ndarray, least: np.ndarray) -> np.ndarray:
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


def _make_coordinate_map(periodic: bool) -> LinearSegmentedColormap:
    stops = [colour_at(position, periodic) for position in np.linspace(0, 1, 32)]
    return LinearSegmentedColormap.from_list("coordinate", stops)


def draw_state_fsc(
    frequency_per_angstrom: Float[np.ndarray, " shells"],
    own: Float[np.ndarray, "states shells"],
    consensus: Float[np.ndarray, "states shells"],
    periodic: bool = False,
) -> Chart:
    """FSC of each state's map with the true state, over the consensus map as the dashed floor."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 3.6), layout="constrained")
        axes = figure.subplots()
        shells = slice(1, None)
        low, high = consensus.min(axis=0)[shells], consensus.max(axis=0)[shells]
        axes.fill_between(frequency_per_angstrom[shells], low, high, color=FLOOR, alpha=0.18, linewidth=0)
        for curve, colour in zip(own, colour_states(len(own), periodic), strict=True):
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
        return Chart(figure, "Fourier shell correlation of each state with the truth")


def draw_pose_errors(pose: PoseScores) -> Chart:
    """Errors of the rotation and the shift before and after the refinement."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 2.5), layout="constrained")
        panels = figure.subplots(1, 2)
        kinds = (
            (pose.angle_deg_histogram, "angle_deg_median", "rotation error (°)"),
            (pose.shift_angstrom_histogram, "shift_angstrom_median", "shift error (Å)"),
        )
        for panel, (histogram, median, label) in zip(panels, kinds, strict=True):
            counted = (("before", histogram.before, pose.before), ("after", histogram.after, pose.after))
            for (name, counts, errors), colour in zip(counted, (FLOOR, ACCENT), strict=True):
                if counts is not None:
                    panel.stairs(counts, histogram.edges, color=colour, fill=True, alpha=0.25)
                    text = f"{name} · median {getattr(errors, median):.3g}"
                    panel.stairs(counts, histogram.edges, color=colour, linewidth=1.6, label=text)
            panel.set_xlabel(label)
            panel.set_ylim(0, 1.4 * panel.get_ylim()[1])
            panel.set_yticks([])
            panel.legend()
        panels[0].set_ylabel("particles")
        return Chart(figure, "Pose errors before and after refinement")


def draw_throughput(records: Sequence[TrainingRecord]) -> Chart:
    """Particles per second and the share of time spent waiting for data, report by report."""
    rate = np.array([record.particles_per_second for record in records])
    wait = 100 * np.array([record.data_wait_share for record in records])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 2.2), layout="constrained")
        panels = figure.subplots(1, 2)
        named = ((rate, "particles per second"), (wait, "waiting for data (%)"))
        for panel, (values, label) in zip(panels, named, strict=True):
            panel.plot(np.arange(1, len(values) + 1), values, color=ACCENT, linewidth=1.6)
            panel.fill_between(np.arange(1, len(values) + 1), 0, values, color=ACCENT, alpha=0.12, linewidth=0)
            panel.set_ylim(0, max(1.15 * float(values.max()), 1.0))
            panel.set_title(label)
            panel.set_xlabel("report")
        return Chart(figure, "Throughput and data wait")
