from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.half_sets import settle_half_sets
from cryoformer_dist.io.particles import ParticleTable


def listed(table: ParticleTable, images: list[int], halves: list[int]) -> ParticleTable:
    """The first rows of a table, listing these images in these half-sets."""
    return replace(
        table.select(np.arange(len(images))), stack_index=np.asarray(images), half_set=np.asarray(halves, np.int8)
    )


def test_half_sets_that_share_no_image_pass_as_they_are(particle_table):
    table = listed(particle_table, [3, 1, 2, 0], [1, 2, 1, 2])
    assert settle_half_sets(table, False, 0) is table


@pytest.mark.parametrize("allowed", [False, True])
def test_an_image_in_both_half_sets_is_refused_whatever_is_allowed(particle_table, allowed):
    table = listed(particle_table, [0, 0, 1, 1], [1, 2, 2, 1])
    with pytest.raises(ParticleFormatError, match=r"4 rows .* half-set: particle rows 1 and 2 \(image 1 of"):
        settle_half_sets(table, allowed, 0)


def test_an_image_with_and_without_half_set_is_in_more_than_one(particle_table):
    with pytest.raises(ParticleFormatError, match="more than one half-set"):
        settle_half_sets(listed(particle_table, [0, 0, 1], [1, 0, 2]), True, 0)


def test_a_copy_in_one_half_is_refused_unless_allowed(particle_table):
    table = listed(particle_table, [0, 1, 0, 2], [1, 2, 1, 2])
    with pytest.raises(ParticleFormatError, match=r"1 rows .*particle rows 1 and 3 \(image 1 of .*--allow-duplicates"):
        settle_half_sets(table, False, 0)
    assert settle_half_sets(table, True, 0) is table


def test_rows_are_named_as_the_source_counts_them(particle_table):
    table = listed(particle_table, [0, 1, 0], [0, 0, 0])
    selected = replace(table, source_row=np.asarray([7, 8, 20]))
    with pytest.raises(ParticleFormatError, match="particle rows 8 and 21"):
        settle_half_sets(selected, False, 0)


def test_two_spellings_of_one_stack_are_one(particle_table, tmp_path):
    (tmp_path / "a.mrcs").touch()
    (tmp_path / "b.mrcs").symlink_to(tmp_path / "a.mrcs")
    table = listed(particle_table, [0, 0], [1, 2])
    paths = (tmp_path / "a.mrcs", tmp_path / "b.mrcs")
    with pytest.raises(ParticleFormatError, match="more than one half-set"):
        settle_half_sets(replace(table, stack_paths=paths, stack=np.asarray([0, 1], np.int32)), False, 0)
    apart = replace(table, stack_paths=(paths[0], Path("c.mrcs")), stack=np.asarray([0, 1], np.int32))
    assert settle_half_sets(apart, False, 0) is apart


def test_copies_without_half_sets_are_drawn_into_one_half_together(particle_table):
    images = [0, 1, 2, 3, 4, 5] * 2
    table = settle_half_sets(listed(particle_table, images, [0] * 12), True, seed=4)
    assert sorted(set(table.half_set.tolist())) == [1, 2]
    np.testing.assert_array_equal(table.half_set[:6], table.half_set[6:])
    assert (table.half_set[:6] == 1).sum() == 3


def test_all_particles_in_one_half_is_said(particle_table):
    with pytest.warns(CryoFormerWarning, match="all 3 particles are in half-set 2"):
        settle_half_sets(listed(particle_table, [0, 1, 2], [2, 2, 2]), False, 0)
