from typing import Any

import pytest

from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.config.trials import Trial, make_trial, plan_trials, short_names, trial_name
from cryoformer_dist.errors import ConfigError

BASE = parse_config({"dataset": {"store": "/data/particles.zarr"}}, RunConfig, "run.yaml")
RATE, QUERIES = "training.learning_rates.network", "model.decoder.queries"


def _plan(**values: Any) -> list[Trial]:
    return plan_trials(parse_config({"run": "run.yaml", **values}, SweepConfig, "sweep.yaml"), BASE, "sweep.yaml")


def test_a_sweep_of_nothing_is_the_run_file_at_its_seed() -> None:
    (trial,) = _plan(seeds=[7])
    assert trial.name == trial.config.name == "seed7"
    assert trial.config.training.seed == 7
    assert trial.config.model == BASE.model


def test_variants_grids_draws_and_seeds_are_crossed_and_every_trial_has_its_own_name() -> None:
    parameters = {QUERIES: {"grid": [8, 16]}, RATE: {"loguniform": [1e-4, 1e-2]}}
    plan = _plan(
        variants={"full": {}, "none": {"model.latent.form": "none"}}, parameters=parameters, samples=3, seeds=[0, 1]
    )
    assert len(plan) == len({trial.name for trial in plan}) == 2 * 2 * 3 * 2
    for trial in plan:
        assert trial.config.model.decoder.queries == trial.parameters[QUERIES]
        assert trial.config.training.learning_rates.network == trial.parameters[RATE]
        assert 1e-4 <= float(trial.parameters[RATE] or 0) <= 1e-2
        assert trial.config.model.latent.form == ("none" if trial.variant == "none" else "table")


def test_trials_of_one_setting_stand_beside_each_other_and_share_their_draws() -> None:
    plan = _plan(parameters={QUERIES: {"grid": [8, 16]}, RATE: {"uniform": [0.1, 1]}}, samples=2, seeds=[0, 1])
    assert [trial.seed for trial in plan] == [0, 1] * 4
    drawn = [[trial.parameters[RATE] for trial in plan if trial.parameters[QUERIES] == queries] for queries in (8, 16)]
    assert drawn[0] == drawn[1]


def test_the_same_file_gives_the_same_trials_again() -> None:
    values: dict[str, Any] = {"parameters": {RATE: {"loguniform": [1e-4, 1e-2]}}, "samples": 5}
    assert _plan(**values) == _plan(**values)


def test_values_are_kept_as_the_schema_reads_them() -> None:
    # YAML takes 1e-4 for a word.
    (trial,) = _plan(parameters={RATE: {"grid": ["1e-4"]}})
    assert trial.parameters[RATE] == 1e-4


def test_a_key_that_the_run_schema_does_not_know_is_told_with_its_place_before_anything_starts() -> None:
    with pytest.raises(ConfigError) as raised:
        _plan(
            variants={"full": {"model.decodr.form": "attention"}, "deep": {"training.epochs.first": 3}},
            parameters={QUERIES: {"grid": [8, -1]}, "training.speed": {"grid": [1]}},
        )
    told = str(raised.value)
    assert told.startswith("sweep.yaml: 4 mistakes")
    assert "variants.full: model.decodr: no such key" in told
    assert "variants.deep: training.epochs.first: 'epochs' holds a value" in told
    assert "parameters.model.decoder.queries: -1: model.decoder.queries" in told
    assert "training.speed: no such key" in told


def test_values_that_contradict_each_other_in_one_trial_only_are_told_by_its_name() -> None:
    parameters = {
        "model.domain": {"grid": ["real", "fourier"]},
        "model.decoder.form": {"grid": ["attention", "concatenation"]},
    }
    with pytest.raises(
        ConfigError, match=r"trial domain_fourier-form_concatenation-seed0: .*needs model\.decoder\.form"
    ):
        _plan(parameters=parameters)


def test_a_value_written_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="same name and values: queries_8-seed0"):
        _plan(parameters={QUERIES: {"grid": [8, 8]}})


def test_names_are_as_short_as_they_can_be() -> None:
    keys = ["model.latent.encoder.width", "model.pose.encoder.width", QUERIES]
    assert list(short_names(keys).values()) == ["latent.encoder.width", "pose.encoder.width", "queries"]
    assert trial_name("no attention!", {QUERIES: 8, RATE: 7e-4}, 1) == "no_attention-queries_8-network_0.0007-seed1"


def test_optuna_s_trials_are_not_planned_but_their_ranges_are_checked() -> None:
    assert _plan(search="optuna", parameters={RATE: {"loguniform": [1e-4, 1e-2]}}, samples=4) == []
    with pytest.raises(ConfigError, match=r"training\.learning_rates\.network"):
        _plan(search="optuna", parameters={RATE: {"uniform": [-1, 1]}})
    assert make_trial(BASE, {RATE: 0.25}, 3).config.training.learning_rates.network == 0.25
