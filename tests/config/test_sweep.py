from typing import Any

import pytest

from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.errors import ConfigError

RATE = "training.learning_rates.network"


def _sweep(**values: Any) -> SweepConfig:
    return parse_config({"run": "run.yaml", **values}, SweepConfig, "sweep.yaml")


def test_a_scheduler_may_be_named_alone() -> None:
    assert _sweep(scheduler="asha") == _sweep(scheduler={"kind": "asha"})


@pytest.mark.parametrize(("metric", "direction"), [("loss", "min"), ("resolution_angstrom", "min"), ("auc_gap", "max")])
def test_the_metric_knows_which_end_is_best(metric: str, direction: str) -> None:
    assert _sweep(metric=metric).direction == direction


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        _sweep(
            schedular="asha",
            seeds=[1, 1],
            parameters={RATE: {"loguniform": [0, 1]}, "training.epochs": {"grid": [1], "choice": [2]}},
            workers={"count": "1..2"},
        )
    told = str(raised.value)
    assert "5 mistakes" in told
    for word in ("schedular: no such key", "seeds: a seed stands there twice", "begins above 0", "write one of grid"):
        assert word in told
    assert "workers: count: 1..2" in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"parameters": {"training.seed": {"grid": [1]}}}, "training.seed: write `seeds"),
        ({"variants": {"full": {"dataset.store": "other.zarr"}}}, "dataset.store: all trials read one store"),
        ({"parameters": {"dataset.simulate.snr": {"grid": [1]}}}, "dataset.simulate.snr: all trials read one store"),
        ({"samples": 3}, "no parameter is drawn"),
        ({"variants": {"a": {RATE: 1}}, "parameters": {RATE: {"grid": [1, 2]}}}, "stands in variants and in param"),
        ({"search": "optuna", "parameters": {RATE: {"grid": [1, 2]}}}, "not grid"),
        ({"search": "optuna", "seeds": [0, 1], "parameters": {RATE: {"uniform": [1, 2]}}}, "one seed"),
        ({"scheduler": "pbt"}, "there is none"),
        ({"scheduler": "pbt", "parameters": {"training.epochs": {"choice": [1]}}}, "training.epochs cannot change"),
        ({"parameters": {RATE: {"uniform": [2, 1]}}}, "write the smaller end first"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.yaml: 1 mistake") as raised:
        _sweep(**values)
    assert told in str(raised.value)
