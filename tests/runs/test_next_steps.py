from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.runs.next_steps import find_suspicions, suggest_handing_on, suggest_looking
from cryoformer_dist.runs.training_log import SearchFindings

LABELS = {"kmeans_label": np.array([0, 1, 1, 1, 2])}


def test_a_run_that_looks_well_is_not_suspected() -> None:
    assert find_suspicions([], SearchFindings(1.5, 0.0, 0.0, 0.1, 0.05)) == []
    assert find_suspicions([], None) == []


def test_contrast_junk_and_images_that_say_nothing_are_told_with_what_to_do() -> None:
    found = find_suspicions(["amplitude explains 30%"], SearchFindings(0.01, 0.0, 0.0, 0.1, 0.3))
    assert ["amplitude explains 30%" in found[0].text, "30% of the images" in found[1].text] == [True, True]
    assert found[1].command == "cryoformer-dist select . --where 'junk < .5' --name without_junk"
    assert "hardly tell conformations apart" in found[2].text


@pytest.mark.parametrize(
    ("source", "program", "suffix"),
    [(".star", "RELION", ".star"), (".cs", "cryoSPARC", ".cs"), (".mrcs", "cryoDRGN", ".pkl")],
)
def test_the_largest_group_is_handed_on_as_the_particles_came(source: str, program: str, suffix: str) -> None:
    (step,) = suggest_handing_on(LABELS, source)
    assert f"on to {program}, here the largest, 1 with 3 particles" in step.text
    assert step.command == f"cryoformer-dist select . --cluster 1 -o group_1{suffix}"


def test_where_junk_was_looked_for_it_is_left_out_and_all_else_may_go_on_too() -> None:
    group, good = suggest_handing_on(LABELS | {"weight": np.ones(5)}, ".star")
    assert group.command == "cryoformer-dist select . --cluster 1 --where 'junk < .5' -o group_1.star"
    assert good.command == "cryoformer-dist select . --where 'junk < .5' -o good.star"
    assert suggest_handing_on({}, ".star") == []


def test_only_what_is_there_is_opened(tmp_path: Path) -> None:
    assert suggest_looking(tmp_path, {}) == []
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "kmeans_000.mrc").touch()
    (tmp_path / "poses.star").touch()
    commands = [step.command for step in suggest_looking(tmp_path, {"pc1": 0.25})]
    assert "level 0.25" in commands[0]
    assert commands[1:] == ["chimerax volumes/kmeans_*.mrc", "relion_reconstruct --i poses.star --o refined.mrc --ctf"]
