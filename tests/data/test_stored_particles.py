from dataclasses import fields

import numpy as np
import pytest
import torch

from cryoformer_dist.data.stored_particles import (
    COLUMNS,
    PACKED_ROW,
    StoredParticles,
    StoreLayout,
    pack_columns,
    unpack_columns,
)
from cryoformer_dist.errors import StoreError
from cryoformer_dist.physics.pose import Pose, random_rotations

ROWS = 6
OPTICS = ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast", "pixel_size_angstrom")


def _particles(has_poses: bool = True) -> StoredParticles:
    random = np.random.default_rng(0)
    columns = {name: (9 * random.random((ROWS, *shape))).astype(dtype) for name, (dtype, shape) in COLUMNS.items()}
    optics = {name: random.random(ROWS).astype(np.float32) for name in OPTICS}
    return StoredParticles(**columns, **optics, has_poses=has_poses)


def test_other_poses_are_those_of_their_rows_in_the_order_given() -> None:
    particles, rows = _particles(), np.array([4, 0])
    pose = Pose(random_rotations(2, torch.Generator().manual_seed(0)), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    moved = particles.with_pose(rows, pose)
    found = moved.pose(rows)
    assert torch.equal(found.rotation, pose.rotation)
    assert torch.equal(found.shift_angstrom, pose.shift_angstrom)
    kept = np.array([1, 2, 3, 5])
    assert torch.equal(moved.pose(kept).rotation, particles.pose(kept).rotation)
    assert torch.equal(moved.pose(kept).shift_angstrom, particles.pose(kept).shift_angstrom)
    for field in fields(StoredParticles):
        if field.name not in ("rotation", "shift_angstrom"):
            assert getattr(moved, field.name) is getattr(particles, field.name), field.name


def test_the_particles_themselves_stay_where_they_are() -> None:
    particles, untouched = _particles(), _particles()
    rows = np.arange(ROWS)
    particles.with_pose(rows, Pose(torch.zeros(ROWS, 3, 3), torch.zeros(ROWS, 2)))
    np.testing.assert_array_equal(particles.rotation, untouched.rotation)
    np.testing.assert_array_equal(particles.shift_angstrom, untouched.shift_angstrom)


def test_particles_without_poses_do_not_get_them_by_moving_some() -> None:
    moved = _particles(has_poses=False).with_pose(np.array([0]), Pose(torch.eye(3)[None], torch.zeros(1, 2)))
    with pytest.raises(StoreError, match="no poses"):
        moved.pose(np.array([0]))


def test_every_row_lies_in_one_shard() -> None:
    layout = StoreLayout(particles=21, box_size=6, shard_rows=8, chunk_rows=4)
    assert layout.shards == 3
    assert [layout.shard_range(shard) for shard in range(3)] == [(0, 8), (8, 16), (16, 21)]


def test_packed_columns_come_back_bit_for_bit_each_by_itself_in_memory() -> None:
    random = np.random.default_rng(0)
    columns = {
        name: np.frombuffer(random.bytes(ROWS * int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize), dtype)
        for name, (dtype, shape) in COLUMNS.items()
    }
    columns = {name: values.reshape(ROWS, *COLUMNS[name][1]) for name, values in columns.items()}
    packed = pack_columns(columns)
    assert packed.shape == (ROWS, PACKED_ROW.itemsize) == (ROWS, 81)
    found = unpack_columns(packed)
    assert list(found) == list(COLUMNS)
    for name, values in columns.items():
        assert found[name].dtype == values.dtype
        assert found[name].flags.c_contiguous
        assert found[name].tobytes() == values.tobytes()
