"""A sweep in numbers: settings ranked over their seeds, and which parameter mattered."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from cryoformer_dist.analysis.latent import rank_correlation
from cryoformer_dist.config.sweep import DIRECTIONS, Scalar, SweepConfig
from cryoformer_dist.config.trials import short_names
from cryoformer_dist.figures.sweep_plots import MEASURES, are_numbers
from cryoformer_dist.runs.sweep import Importance, Setting, TrialResult

_FEWEST_FOR_IMPORTANCE = 4
_MOST_GROUPS = 4


def group_trials(trials: Sequence[TrialResult], sweep: SweepConfig) -> list[Setting]:
    """Settings of a sweep, best first; those without a finished trial last, by the scores they had when they ended."""
    groups: dict[tuple[str | None, tuple[tuple[str, Scalar], ...]], list[TrialResult]] = {}
    for trial in trials:
        groups.setdefault((trial.variant, tuple(trial.parameters.items())), []).append(trial)
    settings = [_average(group) for group in groups.values()]
    sign = -1 if sweep.direction == "max" else 1

    def rank(setting: Setting) -> tuple[bool, float]:
        score = setting.mean.get(sweep.metric, _average_unfinished(setting, sweep.metric))
        return not setting.finished, np.inf if score is None else sign * score

    return sorted(settings, key=rank)


def find_best_trial(settings: Sequence[Setting], metric: str) -> TrialResult | None:
    """The best trial of the best setting; None when none has finished."""
    finished = [trial for trial in settings[0].finished if metric in trial.scores] if settings else []
    if not finished:
        return None
    choose = max if DIRECTIONS[metric] == "max" else min
    return choose(finished, key=lambda trial: trial.scores[metric])


def format_mean(setting: Setting, key: str) -> str:
    """Mean and spread of a score, as text."""
    if key not in setting.mean:
        return "–"
    form = MEASURES[key][1]
    text, spread = form.format(setting.mean[key]), setting.spread[key]
    return text if spread is None else f"{text}\u00a0±\u00a0{form.format(spread)}"


def format_score(trial: TrialResult, key: str) -> str:
    """A score of a trial, as text."""
    return MEASURES[key][1].format(trial.scores[key]) if key in trial.scores else "–"


def rank_parameters(trials: Sequence[TrialResult], metric: str) -> list[Importance]:
    """Parameters that took several values, the one that mattered most first."""
    judged = [trial for trial in trials if metric in trial.scores and trial.state in ("finished", "stopped")]
    scores = np.array([trial.scores[metric] for trial in judged])
    if len(judged) < _FEWEST_FOR_IMPORTANCE or not np.ptp(scores):
        return []
    found = []
    for key in judged[0].parameters:
        values = [trial.parameters[key] for trial in judged]
        if len(set(values)) > 1:
            found.append(_measure_importance(key, values, scores))
    return sorted(found, key=lambda importance: -importance.explained)


def epsilon_squared(groups: np.ndarray, scores: np.ndarray) -> float:
    """Share of the variance of scores that lies between groups, corrected for their number; at least 0."""
    names = np.unique(groups)
    freedom = len(scores) - len(names)
    if freedom <= 0:
        return 0.0
    within = sum(float(np.square(part - part.mean()).sum()) for part in (scores[groups == name] for name in names))
    total = float(np.square(scores - scores.mean()).sum())
    return max(0.0, 1 - (within / freedom) / (total / (len(scores) - 1)))


def _measure_importance(key: str, values: Sequence[Scalar], scores: np.ndarray) -> Importance:
    if not are_numbers(values):
        return Importance(key, epsilon_squared(np.array([str(value) for value in values]), scores), None)
    numbers = np.array(values, dtype=np.float64)
    groups = numbers
    if len(np.unique(numbers)) > min(_MOST_GROUPS, len(scores) // 2):
        parts = max(2, min(_MOST_GROUPS, len(scores) // 3))
        groups = np.floor((rankdata(numbers) - 0.5) / len(scores) * parts)
    return Importance(key, epsilon_squared(groups, scores), rank_correlation(numbers, scores))


def _average(trials: list[TrialResult]) -> Setting:
    first = trials[0]
    finished = [trial for trial in trials if trial.state == "finished"]
    scores = {
        key: np.array([trial.scores[key] for trial in finished])
        for key in MEASURES
        if finished and all(key in trial.scores for trial in finished)
    }
    short = short_names(first.parameters)
    parts = [first.variant.replace("_", " ")] if first.variant else []
    parts += [f"{short[key]} {_format_value(value)}" for key, value in first.parameters.items()]
    return Setting(
        name=", ".join(parts) or "the run file",
        variant=first.variant,
        parameters=first.parameters,
        trials=tuple(sorted(trials, key=lambda trial: trial.seed)),
        mean={key: float(values.mean()) for key, values in scores.items()},
        spread={key: float(values.std(ddof=1)) if len(values) > 1 else None for key, values in scores.items()},
    )


def _average_unfinished(setting: Setting, metric: str) -> float | None:
    scores = [trial.scores[metric] for trial in setting.trials if metric in trial.scores]
    return float(np.mean(scores)) if scores else None


def _format_value(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
