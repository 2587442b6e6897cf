from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.relion import read_blocks, read_star, update_star_poses, write_star
from cryoformer_dist.physics.pose import random_rotations

POSE_LABELS = {
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnOriginX",
    "rlnOriginY",
}
PARTICLE_FIELDS = (
    *("stack_index", "rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom"),
    *("defocus_angle_deg", "phase_shift_deg", "half_set", "uid", "source_row"),
)


def test_written_file_reads_back_as_the_same_table(tmp_path, particle_table):
    path = tmp_path / "particles.star"
    names = [f"{index + 1:06d}@stack.mrcs" for index in particle_table.stack_index]
    write_star(path, particle_table, names)
    back = read_star(path)
    for name in PARTICLE_FIELDS:
        np.testing.assert_allclose(
            getattr(back, name), getattr(particle_table, name), rtol=1e-6, atol=1e-4, err_msg=name
        )
    np.testing.assert_allclose(back.rotation, particle_table.rotation, atol=2e-6)
    assert back.optics == particle_table.optics
    assert back.optics_group.tolist() == particle_table.optics_group.tolist()
    assert back.stack_paths == particle_table.stack_paths
    assert [entry.name for entry in tmp_path.iterdir()] == ["particles.star"]


def test_written_file_has_the_labels_that_relion_wants(tmp_path, particle_table):
    path = tmp_path / "particles.star"
    write_star(path, particle_table, ["000001@stack.mrcs"] * 12)
    blocks = read_blocks(path)
    assert list(blocks) == ["optics", "particles"]
    assert {"rlnImageSize", "rlnImagePixelSize", "rlnImageDimensionality", "rlnOpticsGroupName"} <= set(
        blocks["optics"]
    )
    assert {"rlnOriginXAngst", "rlnOpticsGroup", "rlnRandomSubset", "rlnPhaseShift"} <= set(blocks["particles"])
    assert blocks["particles"]["rlnOpticsGroup"].min() == 1


def test_unknown_half_sets_and_poses_are_not_written(tmp_path, particle_table):
    path = tmp_path / "particles.star"
    bare = replace(particle_table, rotation=None, half_set=np.zeros(12, dtype=np.int8))
    write_star(path, bare, ["000001@stack.mrcs"] * 12)
    labels = set(read_blocks(path)["particles"])
    assert not labels & (POSE_LABELS | {"rlnRandomSubset"})


def test_names_must_match_the_particles(tmp_path, particle_table):
    with pytest.raises(ValueError, match="2 image names for 12 particles"):
        write_star(tmp_path / "particles.star", particle_table, ["a", "b"])


@pytest.fixture
def new_poses():
    rotation = random_rotations(2, torch.Generator().manual_seed(11)).numpy()
    return np.asarray([2, 0]), rotation, np.asarray([[1.25, -2.5], [30.0, 0.125]], dtype=np.float32)


@pytest.mark.parametrize("version", ["relion_30", "relion_31"])
def test_updated_poses_are_read_back_and_every_other_cell_stays(request, version, new_poses):
    source = request.getfixturevalue(version)
    rows, rotation, shift = new_poses
    output = source.with_name("refined.star")
    update_star_poses(source, output, rows, rotation, shift)
    before, after = read_star(source), read_star(output)
    np.testing.assert_allclose(after.rotation[rows], rotation, atol=1e-6)
    np.testing.assert_allclose(after.shift_angstrom[rows], shift, atol=1e-5)
    np.testing.assert_array_equal(after.rotation[1], before.rotation[1])
    np.testing.assert_array_equal(after.shift_angstrom[1], before.shift_angstrom[1])
    old, new = read_blocks(source), read_blocks(output)
    assert list(old) == list(new)
    for name, block in old.items():
        assert list(block) == list(new[name])
        for label in set(block) - POSE_LABELS:
            np.testing.assert_array_equal(block[label], new[name][label])
    same_lines = set(source.read_text().splitlines()) - set(output.read_text().splitlines())
    assert len(same_lines) == 2


def test_update_in_place_works(relion_30, new_poses):
    rows, rotation, shift = new_poses
    update_star_poses(relion_30, relion_30, rows, rotation, shift)
    np.testing.assert_allclose(read_star(relion_30).rotation[rows], rotation, atol=1e-6)
    assert [entry.name for entry in relion_30.parent.iterdir()] == ["relion_30.star"]


def test_file_without_poses_gets_columns_and_loses_rows_without_pose(relion_30, new_poses):
    source = relion_30.with_name("bare.star")
    table = read_star(relion_30)
    write_star(source, replace(table, rotation=None), ["1@a.mrcs", "2@a.mrcs", "3@a.mrcs"])
    rows, rotation, shift = new_poses
    output = source.with_name("refined.star")
    with pytest.warns(CryoFormerWarning, match="1 particles without a new pose are left out"):
        update_star_poses(source, output, rows, rotation, shift)
    table = read_star(output)
    assert table.stack_index.tolist() == [0, 2]
    np.testing.assert_allclose(table.rotation, rotation[::-1], atol=1e-6)
    np.testing.assert_allclose(table.shift_angstrom, shift[::-1], atol=1e-5)


def test_poses_for_rows_that_are_not_there_are_refused(relion_30, new_poses):
    _, rotation, shift = new_poses
    with pytest.raises(ParticleFormatError, match="has 3 particles, and row 4 is asked for"):
        update_star_poses(relion_30, relion_30, np.asarray([0, 3]), rotation, shift)
