from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.particles import NewPoses
from cryoformer_dist.io.relion import read_blocks, read_star, select_star_rows, update_star_poses
from cryoformer_dist.physics.pose import random_rotations

VERSIONS = ("relion_30", "relion_31")


@pytest.fixture(params=VERSIONS)
def star(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def new_poses(*rows: int) -> NewPoses:
    rotation = random_rotations(len(rows), torch.Generator().manual_seed(5)).numpy()
    shift = np.linspace(-7.5, 3, 2 * len(rows), dtype=np.float32).reshape(-1, 2)
    return NewPoses(np.asarray(rows), rotation, shift)


def select(source: Path, rows: list[int], poses: NewPoses | None = None, name: str = "subset.star") -> Path:
    output = source.with_name(name)
    select_star_rows(source, output, np.asarray(rows), poses)
    return output


def test_all_rows_are_the_file_itself(star: Path) -> None:
    assert select(star, [0, 1, 2]).read_bytes() == star.read_bytes()


def test_only_lines_of_other_particles_and_of_optics_groups_without_any_go(star: Path) -> None:
    before, after = (path.read_text().splitlines() for path in (star, select(star, [0, 2])))
    gone = [line for line in before if line not in after]
    assert [line for line in before if line in after] == after
    assert [line.split()[0] for line in gone] == [
        "000003@Extract/b.mrcs",
        *(["007"] if "data_optics" in before else []),
    ]


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1], [1, 2]])
def test_what_is_read_of_a_subset_is_that_part_of_what_is_read_of_all(star: Path, rows: list[int]) -> None:
    whole, part = read_star(star).select(np.asarray(rows)), read_star(select(star, rows))
    for name in ("stack_index", "rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom", "half_set"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name), err_msg=name)
    # Groups that have no name are numbered anew.
    optics = [[replace(each.optics[group], name="") for group in each.optics_group] for each in (part, whole)]
    assert optics[0] == optics[1]
    assert len(part.optics) == len(set(whole.optics_group.tolist()))
    assert [part.stack_paths[stack] for stack in part.stack] == [whole.stack_paths[stack] for stack in whole.stack]


def test_a_subset_of_a_subset_is_a_subset(star: Path) -> None:
    twice = select(select(star, [0, 2]), [1], name="twice.star")
    assert twice.read_bytes() == select(star, [2]).read_bytes()


def test_new_poses_are_those_of_an_update_and_the_rest_stays(star: Path) -> None:
    poses = new_poses(2, 0)
    posed = star.with_name("posed.star")
    update_star_poses(star, posed, poses.source_row, poses.rotation, poses.shift_angstrom)
    assert select(star, [0, 2], poses).read_bytes() == select(posed, [0, 2], name="other.star").read_bytes()
    part = read_star(select(star, [0, 1, 2], new_poses(1)))
    np.testing.assert_allclose(part.rotation[1], new_poses(1).rotation[0], atol=2e-6)
    np.testing.assert_array_equal(part.rotation[[0, 2]], read_star(star).rotation[[0, 2]])


def test_poses_are_added_to_a_file_without_and_nobody_is_missed_who_was_not_chosen(relion_31: Path) -> None:
    bare = relion_31.with_name("bare.star")
    labels = ("AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst")
    lines = [
        line
        for line in relion_31.read_text().splitlines(True)
        if not line.startswith(tuple(f"_rln{x}" for x in labels))
    ]
    bare.write_text(
        "".join(
            " ".join(c for i, c in enumerate(line.split()) if not 6 <= i <= 10) + "\n" if "@" in line else line
            for line in lines
        )
    )
    part = read_star(select(bare, [0, 2], new_poses(0, 2)))
    np.testing.assert_allclose(part.rotation, new_poses(0, 2).rotation, atol=2e-6)
    with pytest.warns(CryoFormerWarning, match="no pose columns, so its 1 particles without a new pose are left out"):
        assert len(read_star(select(bare, [0, 1, 2], new_poses(0, 2)))) == 2


def test_rows_beyond_the_file_are_refused_and_nothing_is_written(star: Path) -> None:
    with pytest.raises(ParticleFormatError, match="has 3 particles, and row 4 is asked for"):
        select(star, [0, 3])
    assert not star.with_name("subset.star").exists()


def test_cells_stay_as_they_are_spelt(relion_31: Path) -> None:
    blocks = read_blocks(select(relion_31, [1]))
    assert blocks["optics"]["rlnOpticsGroupName"].tolist() == ["007"]
    assert blocks["leftover"]["rlnSomething"].tolist() == [1, 2]
    assert "# version 50001" in relion_31.with_name("subset.star").read_text()
