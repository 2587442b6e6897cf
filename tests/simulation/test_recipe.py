from pathlib import Path

import pytest

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.simulation.recipe import RECIPE, compare_recipe, write_recipe


def _recipe(model: str, **values: object) -> SimulationConfig:
    source = {"kind": "hinge", "model": model, "moving": ["H:1-230"], "hinge": ["H:229-232"], "arc_deg": 90}
    return SimulationConfig.model_validate({"source": source} | values)


def test_the_same_recipe_from_another_folder_is_the_same(tmp_path: Path) -> None:
    write_recipe(_recipe("/here/1hzh.pdb"), tmp_path)
    assert compare_recipe(_recipe("/there/1hzh.pdb"), tmp_path) == []


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    write_recipe(_recipe("1hzh.pdb", particles=100), tmp_path)
    assert compare_recipe(_recipe("1igt.pdb", particles=200), tmp_path) == [
        "particles was 100, is 200",
        "source.model was 1hzh.pdb, is 1igt.pdb",
    ]
    assert "source.kind was hinge, is phantom" in compare_recipe(SimulationConfig(particles=100), tmp_path)


def test_a_set_without_a_recipe_is_compared_with_nothing_and_a_damaged_recipe_is_named(tmp_path: Path) -> None:
    assert compare_recipe(SimulationConfig(), tmp_path) == []
    (tmp_path / RECIPE).write_text("particles: many")
    with pytest.raises(ConfigError, match=RECIPE):
        compare_recipe(SimulationConfig(), tmp_path)
