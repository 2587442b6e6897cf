"""The trials of a sweep: which run each of them is."""

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from cryoformer_dist.config.loading import mistakes_in, parse_config, set_value
from cryoformer_dist.config.plain_values import PlainValues
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.sweep import Scalar, SweepConfig, Values
from cryoformer_dist.errors import ConfigError

_SHOWN_MISTAKES = 20


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep.

    Attributes
    ----------
    name
        Folder name, readable: variant or parameters, and seed.
    variant
        Of `SweepConfig.variants`; None when the sweep has none.
    parameters
        Dotted key to value.
    """

    name: str
    variant: str | None
    seed: int
    parameters: Mapping[str, Scalar]
    config: RunConfig


def plan_trials(sweep: SweepConfig, base: RunConfig, where: str) -> list[Trial]:
    """Every trial of a sweep that knows them all before it starts, those of one setting beside each other.

    Parameters
    ----------
    sweep
        The sweep; with ``search: optuna`` its trials are not known before, and only checked for.
    base
        Run that all trials start from.
    where
        The sweep's file, for errors.

    Raises
    ------
    ConfigError
        With every value that the run schema refuses.
    """
    _check_values(sweep, base, where)
    if sweep.search == "optuna":
        return []
    found, refused = [], []
    for variant, parameters, seed in itertools.product(sweep.variants or [None], _list_settings(sweep), sweep.seeds):
        name = trial_name(variant, parameters, seed)
        changes = (sweep.variants[variant] if variant else {}) | parameters
        if mistakes := mistakes_in(_apply_changes(base, changes, seed, name), RunConfig):
            refused += [f"trial {name}: {mistake}" for mistake in mistakes]
        else:
            found.append(_build_trial(base, variant, parameters, seed, changes))
    _refuse(refused, where)
    names = [trial.name for trial in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where}: trials of the same name and values: {', '.join(twice)}; write each value once")
    return found


def make_trial(base: RunConfig, parameters: Mapping[str, Scalar], seed: int) -> Trial:
    """The trial of proposed values, which the ranges of a checked sweep hold."""
    return _build_trial(base, None, parameters, seed, parameters)


def value_at(config: RunConfig, key: str) -> Any:
    """The value of a dotted key."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def trial_name(variant: str | None, parameters: Mapping[str, Scalar], seed: int) -> str:
    """Name of a trial's folder.

    Examples
    --------
    ``full-seed0``, ``network_0.0007-queries_16-seed1``
    """
    parts = [] if variant is None else [variant]
    short = short_names(parameters)
    parts += [f"{short[key]}_{_format(value)}" for key, value in parameters.items()]
    return "-".join(_strip(part) for part in [*parts, f"seed{seed}"])


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """As many last parts of each dotted key as tell it from the others."""
    names = {key: key.split(".") for key in keys}
    found = {}
    for key, parts in names.items():
        length = 1
        while sum(other[-length:] == parts[-length:] for other in names.values()) > 1:
            length += 1
        found[key] = ".".join(parts[-length:])
    return found


def _build_trial(
    base: RunConfig, variant: str | None, parameters: Mapping[str, Scalar], seed: int, changes: Mapping[str, JsonValue]
) -> Trial:
    name = trial_name(variant, parameters, seed)
    config = parse_config(_apply_changes(base, changes, seed, name), RunConfig, name)
    # As the schema read them: YAML takes 1e-4 for a word.
    return Trial(name, variant, seed, {key: value_at(config, key) for key in parameters}, config)


def _apply_changes(base: RunConfig, changes: Mapping[str, JsonValue], seed: int, name: str) -> PlainValues:
    values = base.model_dump(mode="json")
    for key, value in {**changes, "training.seed": seed, "name": name}.items():
        set_value(values, key, value)
    return values


def _check_values(sweep: SweepConfig, base: RunConfig, where: str) -> None:
    """Each variant and each value of each parameter on its own, so that all mistakes are told at once."""
    changes = {f"variants.{name}": dict(values) for name, values in sweep.variants.items()}
    for key, values in sweep.parameters.items():
        changes |= {f"parameters.{key}: {value}": {key: value} for value in values.examples}
    refused = []
    for place, change in changes.items():
        try:
            mistakes = mistakes_in(_apply_changes(base, change, sweep.seeds[0], "trial"), RunConfig)
        except ConfigError as error:
            mistakes = [str(error)]
        refused += [f"{place}: {mistake}" for mistake in mistakes]
    _refuse(refused, where)


def _refuse(mistakes: list[str], where: str) -> None:
    if mistakes:
        shown = [f"  {mistake}" for mistake in mistakes[:_SHOWN_MISTAKES]]
        more = [f"  and {len(mistakes) - len(shown)} more"] if len(mistakes) > len(shown) else []
        count = f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)}"
        raise ConfigError("\n".join([f"{where}: {count}", *shown, *more]))


def _list_settings(sweep: SweepConfig) -> list[dict[str, Scalar]]:
    """Values of the parameters: all grids crossed, and at each point of them the same draws."""
    grids = {key: values.examples for key, values in sweep.parameters.items() if not values.random}
    # The same every time: a sweep that goes on must find its trials again.
    generator = random.Random(0)
    draws = [
        {key: _draw(values, generator) for key, values in sweep.parameters.items() if values.random}
        for _ in range(sweep.samples)
    ]
    points = [dict(zip(grids, point, strict=True)) for point in itertools.product(*grids.values())]
    return [{key: (point | draw)[key] for key in sweep.parameters} for point in points for draw in draws]


def _draw(values: Values, generator: random.Random) -> Scalar:
    if values.choice is not None:
        return generator.choice(values.choice)
    if values.uniform is not None:
        return _round(generator.uniform(*values.uniform))
    assert values.loguniform is not None
    low, high = map(math.log, values.loguniform)
    return _round(math.exp(generator.uniform(low, high)))


def _round(value: float) -> float:
    """Four digits: what the folder's name says is what was trained."""
    return float(f"{value:.4g}")


def _format(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _strip(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "", text.replace(" ", "_"))
