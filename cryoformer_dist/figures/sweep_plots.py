"""Curves of the sweep report."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cryoformer_dist.config.sweep import DIRECTIONS, Scalar
from cryoformer_dist.config.trials import short_names
from cryoformer_dist.figures.style import ACCENT, FLOOR, GRID, INK, MUTED, STYLE, to_svg
from cryoformer_dist.runs.sweep import Importance, Setting, TrialResult

MEASURES = {
    "difference_map_correlation": ("dCC", "{:.3f}"),
    "resolution_angstrom": ("resolution, Å", "{:.2f}"),
    "rotation_error": ("rotation error", "{:.4f}"),
    "rotation_error_deg": ("median rotation error, °", "{:.2f}"),
    "shift_error": ("translation error", "{:.4f}"),
    "auc_gap": ("FSC gap", "{:.3f}"),
    "fsc_area_own": ("FSC area", "{:.3f}"),
    "latent_rank_correlation": ("latent order", "{:.3f}"),
    "loss": ("loss", "{:.4f}"),
}
"""Scores that tables show, with heading and format."""

# Told apart by most eyes, on white and on near black.
_COLOURS = ("#2f6fde", "#e07b39", "#2a9d6f", "#c2477f", "#8b6fd6", "#b08d2e", "#3aa6b9", "#7c8798")
_STATES = {"finished": ACCENT, "stopped": "#e07b39", "failed": "#d1495b", "unfinished": FLOOR}
_MOST_ROWS = 24
_BEST = "#e07b39"
_WORST_TO_BEST = LinearSegmentedColormap.from_list("rank", ["#b7c0cf", "#8fb0ea", "#2f6fde"])


def are_numbers(values: Sequence[Scalar]) -> bool:
    """Whether values lie on a scale: numbers, and not yes or no."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def draw_learning_curves(settings: Sequence[Setting], metric: str) -> str:
    """Metric and loss against the epoch, a colour per setting, a line per seed; a cross where a trial was stopped."""
    drawn = {key for setting in settings for trial in setting.trials for point in trial.curve for key in point}
    keys = [key for key in dict.fromkeys((metric, "loss")) if key in drawn]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 3.6), layout="constrained")
        panels = figure.subplots(1, len(keys), squeeze=False)[0]
        for panel, key in zip(panels, keys, strict=True):
            for number, setting in enumerate(settings):
                for trial in setting.trials:
                    _draw_curve(panel, trial, key, _pick_colour(number))
            panel.set_title(MEASURES[key][0])
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        named = settings[: len(_COLOURS) - 1]
        for number, setting in enumerate(named):
            label = f"{number + 1}. {_shorten(setting.name, 48)}"
            panels[0].plot([], [], color=_pick_colour(number), linewidth=2, label=label)
        if len(settings) > len(named):
            panels[0].plot([], [], color=_COLOURS[-1], linewidth=2, label="all others")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2 if len(named) > 4 else 3
        )
        return to_svg(figure, "Learning curves of all trials")


def _draw_curve(panel: Axes, trial: TrialResult, key: str, colour: str) -> None:
    points = [(point["epoch"], point[key]) for point in trial.curve if key in point]
    if not points:
        return
    epoch, value = np.array(points).T
    panel.plot(epoch, value, color=colour, linewidth=1.6, alpha=0.85, marker="." if len(points) == 1 else None)
    if trial.state == "stopped":
        panel.plot(epoch[-1:], value[-1:], color=colour, marker="x", markersize=6, linestyle="none")


def _pick_colour(number: int) -> str:
    return _COLOURS[number] if number < len(_COLOURS) - 1 else _COLOURS[-1]


def draw_seeds(settings: Sequence[Setting], metric: str) -> str:
    """Every trial's metric on the line of its setting, best on top, with the mean."""
    shown = settings[:_MOST_ROWS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 0.7 + 0.32 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for row, setting in enumerate(shown):
            scored = [trial for trial in setting.trials if metric in trial.scores]
            for trial in scored:
                colour = _STATES[trial.state]
                axes.plot(trial.scores[metric], row, marker="o", markersize=6, color=colour, alpha=0.75, linewidth=0)
            if metric in setting.mean:
                axes.plot([setting.mean[metric]] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.8)
        axes.set_yticks(range(len(shown)), [_shorten(setting.name, 64) for setting in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(f"{MEASURES[metric][0]} ({_name_better(metric)}); a dot per seed, the bar is the mean")
        return to_svg(figure, "Spread over seeds")


def draw_importance(found: Sequence[Importance]) -> str:
    """Share of the variance that each parameter explains, with its rank correlation."""
    names = short_names([importance.key for importance in found])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 0.9 + 0.42 * len(found)), layout="constrained")
        axes = figure.subplots()
        for row, importance in enumerate(found):
            axes.barh(row, importance.explained, height=0.55, color=ACCENT)
            correlation = importance.rank_correlation
            text = "" if correlation is None else f"· rank correlation {correlation:+.2f}"
            axes.annotate(
                f"{importance.explained:.0%} {text}", (importance.explained, row), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=9, color=MUTED,
            )  # fmt: skip
        axes.set_yticks(range(len(found)), [names[importance.key] for importance in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlim(0, max(1.0, 1.6 * max(importance.explained for importance in found)))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("variance explained")
        return to_svg(figure, "Importance of the parameters")


def draw_parallel_coordinates(trials: Sequence[TrialResult], metric: str) -> str:
    """One line per trial through the values of its parameters to its metric, the best on top."""
    scored = [trial for trial in trials if metric in trial.scores]
    worst_first = sorted(scored, key=lambda trial: trial.scores[metric], reverse=DIRECTIONS[metric] == "min")
    keys = list(worst_first[0].parameters)
    names = short_names(keys)
    scales = [_place_on_scale([trial.parameters[key] for trial in worst_first]) for key in keys]
    scales.append(_place_on_scale([trial.scores[metric] for trial in worst_first]))
    with mpl.rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for number in range(len(worst_first)):
            best = number == len(worst_first) - 1
            colour = _BEST if best else to_hex(_WORST_TO_BEST(number / len(worst_first)))
            heights = [scale[0][number] for scale in scales]
            axes.plot(range(len(scales)), heights, color=colour, linewidth=2.6 if best else 1.3, alpha=0.85)
        for column, (_, ticks) in enumerate(scales):
            axes.axvline(column, color=GRID, linewidth=1.2, zorder=0)
            for height, text in ticks:
                axes.annotate(
                    text, (column, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
                    color=MUTED,
                )  # fmt: skip
        axes.set_xticks(range(len(scales)), [*(names[key] for key in keys), MEASURES[metric][0]])
        axes.set_xlim(-0.12, len(scales) - 0.55)
        axes.set_yticks([])
        return to_svg(figure, "Parameters and metric of every trial")


def _place_on_scale(values: Sequence[Scalar]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights of values between 0 and 1, and what to write at which height."""
    if not are_numbers(values):
        words = sorted({str(value) for value in values})
        heights = {word: (number + 0.5) / len(words) for number, word in enumerate(words)}
        return [heights[str(value)] for value in values], [(height, word) for word, height in heights.items()]
    numbers = np.array(values, dtype=np.float64)
    logarithmic = numbers.min() > 0 and numbers.max() / numbers.min() >= 30
    position = np.log(numbers) if logarithmic else numbers
    span = float(np.ptp(position)) or 1.0
    heights = (position - position.min()) / span
    distinct = np.unique(numbers)
    shown = distinct if len(distinct) <= 5 else np.array([numbers.min(), numbers.max()])
    ticks = [(float(heights[numbers == value][0]), f"{value:.3g}") for value in shown]
    return heights.tolist(), ticks


def draw_epochs(trials: Sequence[TrialResult]) -> str:
    """Epochs each trial was given, of those planned, coloured by how it ended."""
    longest = sorted(trials, key=lambda trial: (-trial.epochs, trial.name))[: 2 * _MOST_ROWS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 0.9 + 0.24 * len(longest)), layout="constrained")
        axes = figure.subplots()
        for row, trial in enumerate(longest):
            axes.barh(row, trial.of, height=0.62, color=GRID, alpha=0.55)
            axes.barh(row, trial.epochs, height=0.62, color=_STATES[trial.state])
        for state in dict.fromkeys(trial.state for trial in longest):
            axes.barh(0, 0, color=_STATES[state], label=state)
        axes.set_yticks(range(len(longest)), [_shorten(trial.name, 64) for trial in longest])
        axes.set_ylim(len(longest) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("epochs")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=4)
        return to_svg(figure, "Epochs used by each trial")


def _shorten(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _name_better(metric: str) -> str:
    return "more is better" if DIRECTIONS[metric] == "max" else "less is better"
