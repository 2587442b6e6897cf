"""The recipe that a particle set was made by, kept beside it: nobody shall take it for another set."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryoformer_dist.config.loading import dump_config, load_config
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.storage.places import write_whole

RECIPE = "recipe.yaml"


def write_recipe(config: SimulationConfig, folder: Path) -> None:
    """Write what the set in a folder is made by."""
    write_whole(folder / RECIPE, dump_config(config))


def compare_recipe(config: SimulationConfig, folder: Path) -> list[str]:
    """In what the set of a folder was made otherwise than by a recipe, in words; sets of old have none to compare with.

    Files that the recipe names are told apart by their names alone: they may lie elsewhere today.

    Raises
    ------
    ConfigError
        If the recipe that lies there cannot be read.
    """
    if not (folder / RECIPE).is_file():
        return []
    asked = dict(_list_values(config.model_dump()))
    made = dict(_list_values(load_config(folder / RECIPE, SimulationConfig).model_dump()))
    keys = [key for key in {**made, **asked} if made.get(key) != asked.get(key)]
    return [f"{key} was {made.get(key, 'not given')}, is {asked.get(key, 'not given')}" for key in keys]


def _list_values(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _list_values(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", [_forget_folder(each) for each in value]
        else:
            yield f"{prefix}{key}", _forget_folder(value)


def _forget_folder(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value
