from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.particles import OpticsColumns, group_optics


def columns(**changes: object) -> OpticsColumns:
    values = {
        "pixel_size_angstrom": np.asarray([1.5, 1.0, 1.5, 1.0]),
        "box_size": np.full(4, 64),
        "voltage_kv": np.full(4, 300.0),
        "spherical_aberration_mm": np.full(4, 2.7),
        "amplitude_contrast": np.full(4, 0.1),
        "group": np.zeros(4, dtype=np.int64),
        "names": {},
        "terms": np.zeros(4, dtype=np.int64),
        "term_names": ("tilt", "trefoil"),
    }
    return OpticsColumns(**(values | changes))


def test_groups_stand_in_order_of_appearance():
    optics, group = group_optics(columns())
    assert [each.pixel_size_angstrom for each in optics] == [1.5, 1.0]
    assert [each.name for each in optics] == ["opticsGroup1", "opticsGroup2"]
    np.testing.assert_array_equal(group, [0, 1, 0, 1])
    assert group.dtype == np.int32


def test_groups_of_the_source_keep_its_order_and_names():
    optics, group = group_optics(
        columns(
            group=np.asarray([5, 2, 5, 2]),
            names={2: "second scope", 5: "first scope"},
            pixel_size_angstrom=np.ones(4),
        )
    )
    assert [each.name for each in optics] == ["second scope", "first scope"]
    np.testing.assert_array_equal(group, [1, 0, 1, 0])


def test_one_source_group_with_two_pixel_sizes_is_split_under_two_names():
    optics, group = group_optics(columns(names={0: "scope"}))
    assert [each.name for each in optics] == ["scope", "scope_2"]
    np.testing.assert_array_equal(group, [0, 1, 0, 1])


def test_terms_are_named_per_group():
    optics, group = group_optics(columns(terms=np.asarray([0, 3, 0, 2]), pixel_size_angstrom=np.ones(4)))
    assert [each.unapplied_aberrations for each in optics] == [(), ("tilt", "trefoil"), ("trefoil",)]
    np.testing.assert_array_equal(group, [0, 1, 0, 2])


def test_selection_keeps_every_column_together(particle_table):
    rows = np.asarray([7, 0, 3])
    chosen = particle_table.select(rows)
    assert len(chosen) == 3
    np.testing.assert_array_equal(chosen.source_row, rows)
    np.testing.assert_array_equal(chosen.stack_index, particle_table.stack_index[rows])
    np.testing.assert_array_equal(chosen.rotation, particle_table.rotation[rows])
    mask = np.zeros(12, dtype=bool)
    mask[[0, 3, 7]] = True
    np.testing.assert_array_equal(particle_table.select(mask).source_row, [0, 3, 7])


def test_selection_of_a_table_without_poses_has_none(particle_table):
    assert replace(particle_table, rotation=None).select(np.arange(2)).rotation is None


def test_ctf_takes_each_particle_from_its_optics_group(particle_table):
    ctf = particle_table.ctf_params()
    assert ctf.voltage_kv.tolist() == [300.0, 200.0] * 6
    assert ctf.spherical_aberration_mm.tolist() == pytest.approx([2.7, 0.0] * 6)
    assert ctf.amplitude_contrast.tolist() == pytest.approx([0.1, 0.07] * 6)
    np.testing.assert_array_equal(ctf.defocus_u_angstrom.numpy(), particle_table.defocus_u_angstrom)
    assert {value.dtype for value in (ctf.voltage_kv, ctf.defocus_angle_deg)} == {torch.float32}


def test_pose_is_that_of_the_table(particle_table):
    pose = particle_table.pose()
    np.testing.assert_array_equal(pose.rotation.numpy(), particle_table.rotation)
    np.testing.assert_array_equal(pose.shift_angstrom.numpy(), particle_table.shift_angstrom)


def test_pose_of_a_table_without_poses_says_what_to_give(particle_table):
    with pytest.raises(ParticleFormatError, match=r"made_here\.star holds no poses.*--poses"):
        replace(particle_table, rotation=None).pose()


def test_columns_of_unequal_length_are_refused(particle_table):
    with pytest.raises(ValueError, match="half_set has 3 rows where stack has 12"):
        replace(particle_table, half_set=np.zeros(3, dtype=np.int8))
