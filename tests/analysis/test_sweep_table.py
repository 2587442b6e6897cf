from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoformer_dist.analysis.sweep_table import (
    epsilon_squared,
    find_best_trial,
    format_mean,
    group_trials,
    rank_parameters,
)
from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.runs.sweep import TrialResult

METRIC = "difference_map_correlation"


def _sweep(metric: str = METRIC) -> SweepConfig:
    return parse_config({"run": "run.yaml", "metric": metric}, SweepConfig, "sweep.yaml")


def _trial(
    seed: int, score: float | None, state: Any = "finished", variant: str | None = None, **values: Any
) -> TrialResult:
    scores = {} if score is None else {METRIC: score, "loss": 1 - score}
    name = f"{variant}{values}{seed}"
    return TrialResult(Path(name), name, variant, seed, values, state, None, scores, (), 2, 4, 1.0, 0.5, 0.0)


def test_settings_are_ranked_by_the_mean_over_their_seeds_and_unfinished_ones_stand_last() -> None:
    trials = [
        _trial(0, 0.9, variant="lucky"), _trial(1, 0.5, variant="lucky"),
        _trial(0, 0.8, variant="steady"), _trial(1, 0.82, variant="steady"),
        _trial(0, 0.99, "stopped", variant="stopped"), _trial(0, None, "failed", variant="failed"),
    ]  # fmt: skip
    settings = group_trials(trials, _sweep())
    assert [setting.variant for setting in settings] == ["steady", "lucky", "stopped", "failed"]
    assert settings[0].mean[METRIC] == pytest.approx(0.81)
    assert settings[0].spread[METRIC] == pytest.approx(np.std([0.8, 0.82], ddof=1))
    assert format_mean(settings[0], METRIC) == "0.810\u00a0±\u00a00.014"
    assert format_mean(settings[2], METRIC) == "–"
    best = find_best_trial(settings, METRIC)
    assert best is not None
    assert (best.variant, best.seed) == ("steady", 1)


def test_where_less_is_better_the_least_is_first() -> None:
    settings = group_trials([_trial(0, 0.2, variant="a"), _trial(0, 0.7, variant="b")], _sweep("loss"))
    assert [setting.variant for setting in settings] == ["b", "a"]


def test_one_seed_has_no_spread() -> None:
    (setting,) = group_trials([_trial(0, 0.5)], _sweep())
    assert setting.spread[METRIC] is None
    assert format_mean(setting, METRIC) == "0.500"


def test_there_is_no_best_trial_before_one_has_finished() -> None:
    assert find_best_trial(group_trials([_trial(0, 0.5, "stopped")], _sweep()), METRIC) is None
    assert find_best_trial([], METRIC) is None


def test_a_parameter_that_decides_explains_all_and_one_that_does_not_explains_little() -> None:
    rng = np.random.default_rng(0)
    rates, words = rng.uniform(0, 1, 60), rng.choice(["a", "b", "c"], 60)
    trials = [
        _trial(n, float(r), rate=float(r), word=str(w)) for n, (r, w) in enumerate(zip(rates, words, strict=True))
    ]
    first, second = rank_parameters(trials, METRIC)
    assert (first.key, second.key) == ("rate", "word")
    assert first.explained > 0.85
    assert first.rank_correlation == pytest.approx(1.0)
    assert second.explained < 0.15
    assert second.rank_correlation is None


def test_an_optimum_in_the_middle_has_no_rank_correlation_but_is_seen() -> None:
    trials = [_trial(n, 1 - (n - 20) ** 2 / 400, rate=n) for n in range(41)]
    (found,) = rank_parameters(trials, METRIC)
    assert found.rank_correlation == pytest.approx(0, abs=1e-9)
    assert found.explained > 0.5


def test_chance_alone_explains_nothing_on_average() -> None:
    rng = np.random.default_rng(1)
    shares = [epsilon_squared(rng.integers(0, 4, 24), rng.normal(size=24)) for _ in range(200)]
    assert np.mean(shares) < 0.06
    assert epsilon_squared(np.arange(5), rng.normal(size=5)) == 0.0


def test_too_few_trials_say_nothing_about_parameters() -> None:
    assert rank_parameters([_trial(n, 0.1 * n, rate=n) for n in range(3)], METRIC) == []
    assert rank_parameters([_trial(n, 0.5, rate=n) for n in range(9)], METRIC) == []
