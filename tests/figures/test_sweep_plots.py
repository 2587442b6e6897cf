from pathlib import Path
from typing import Any

import pytest

from cryoformer_dist.figures.sweep_plots import (
    are_numbers,
    draw_epochs,
    draw_importance,
    draw_learning_curves,
    draw_parallel_coordinates,
    draw_seeds,
)
from cryoformer_dist.runs.sweep import Importance, Setting, TrialResult

METRIC, KEY = "difference_map_correlation", "training.learning_rates.network"


def trial(number: int, state: Any = "finished") -> TrialResult:
    score = 0.5 + number / 100
    curve = tuple({"epoch": float(epoch), "loss": 1 / epoch, METRIC: score * epoch / 4} for epoch in (1, 2, 3))
    scores = {METRIC: score, "loss": 0.3}
    return TrialResult(
        Path(f"t{number}"), f"trial {number}", None, number, {KEY: 10.0**-number}, state, None, scores, curve, 3, 4,
        1.0, 0.5, 0.0,
    )  # fmt: skip


def setting(number: int, state: Any = "finished") -> Setting:
    one = trial(number, state)
    return Setting(f"setting {number}", None, one.parameters, (one,), one.scores, dict.fromkeys(one.scores))


def test_the_first_settings_are_named_and_the_others_share_a_colour() -> None:
    few = draw_learning_curves([setting(number) for number in range(3)], METRIC)
    assert "3. setting 2" in few
    assert "all others" not in few
    many = draw_learning_curves([setting(number) for number in range(9)], METRIC)
    assert "7. setting 6" in many
    assert "8. setting 7" not in many
    assert "all others" in many


def test_a_trial_that_was_stopped_is_marked() -> None:
    finished, stopped = (draw_learning_curves([setting(1, state)], METRIC) for state in ("finished", "stopped"))
    assert stopped.count("<use") > finished.count("<use")


def test_pictures_say_what_they_show_in_the_colours_of_the_page() -> None:
    drawn = {
        "Spread over seeds": draw_seeds([setting(1), setting(2)], METRIC),
        "Importance of the parameters": draw_importance([Importance(KEY, 0.42, -0.7)]),
        "Parameters and metric of every trial": draw_parallel_coordinates([trial(1), trial(2)], METRIC),
        "Epochs used by each trial": draw_epochs([trial(1), trial(2, "stopped")]),
    }
    for title, picture in drawn.items():
        assert f'aria-label="{title}"' in picture
        assert "var(--muted" in picture, title
    assert "more is better" in drawn["Spread over seeds"]
    assert "42%" in drawn["Importance of the parameters"]
    assert "-0.70" in drawn["Importance of the parameters"].replace("−", "-")
    assert "stopped" in drawn["Epochs used by each trial"]


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2.5], True), ([True, False], False), (["a", 1], False), ([None, 1], False)]
)
def test_numbers_lie_on_a_scale_and_words_and_answers_do_not(values: list[Any], expected: bool) -> None:
    assert are_numbers(values) == expected
