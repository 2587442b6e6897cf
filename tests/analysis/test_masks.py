from pathlib import Path

import numpy as np
import pytest
import torch
from support.rotating_blobs import BOX, VOXEL_SIZE_ANGSTROM, blobs

from cryoformer_dist.analysis.masks import find_moving_voxels, make_soft_mask, make_solvent_mask, read_mask, soften
from cryoformer_dist.errors import ConfigError, StoreError
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.volume import Volume

MAPS = blobs(np.arange(8) * 45.0)
LENGTH = BOX * VOXEL_SIZE_ANGSTROM


def written(path: Path, voxels: np.ndarray, voxel_size_angstrom: float) -> Path:
    write_volume(path, Volume(torch.from_numpy(voxels.astype(np.float32)), voxel_size_angstrom))
    return path


def test_a_soft_edge_falls_as_a_cosine_over_its_width():
    region = np.zeros((32, 32, 32), dtype=bool)
    region[16, 16, 16] = True
    mask = make_soft_mask(region, 2.0, 4.0)
    expected = [1, 1, 1, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5, 0.5 + 0.5 * np.cos(3 * np.pi / 4), 0, 0]
    np.testing.assert_allclose(mask[16, 16, 16:24], expected, atol=1e-6)


def test_an_empty_mask_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        make_soft_mask(np.zeros((8, 8, 8), dtype=bool), 1.0, 3.0)
    with pytest.raises(ConfigError, match="no positive density"):
        make_solvent_mask(-MAPS)


def test_the_solvent_mask_covers_what_any_map_shows_and_leaves_the_solvent():
    mask = make_solvent_mask(MAPS)
    assert (mask[(0.05 * MAPS.max() < MAPS).any(axis=0)] == 1).all()
    assert mask[0, 0, 0] == 0
    assert 0.1 < mask.mean() < 0.9
    assert make_solvent_mask(MAPS[:1]).sum() < 0.8 * mask.sum()


def test_what_moves_is_inside_and_what_stands_still_is_not():
    inside = find_moving_voxels(MAPS)
    centre = BOX // 2
    for angle in np.deg2rad(np.arange(8) * 45):
        x, y = centre + 4 * np.cos(angle), centre + 4 * np.sin(angle)
        assert inside[centre + 2, round(y), round(x)]
    assert not inside[centre - 3, centre, centre - 1]
    assert not inside[0].any()
    assert not find_moving_voxels(np.repeat(MAPS[:1], 4, axis=0)).any()


def test_a_state_of_one_in_ten_counts_as_motion():
    rare = np.zeros((10, 8, 8, 8), dtype=np.float32)
    rare[0, 4, 4, 4] = 1
    rare[:5, 2, 2, 2] = 1
    inside = find_moving_voxels(rare)
    assert inside[4, 4, 4]
    assert inside[2, 2, 2]
    assert not inside[6, 6, 6]


def test_softening_keeps_the_region_whole():
    inside = find_moving_voxels(MAPS)
    mask = soften(inside)
    assert (mask[inside] == 1).all()
    assert ((mask > 0) & (mask < 1)).any()


def test_a_mask_file_is_brought_to_the_box_of_the_maps(tmp_path):
    ball = make_soft_mask(np.linalg.norm(np.indices((32, 32, 32)) - 16, axis=0) < 8, 1.0, 4.0)
    found = read_mask(written(tmp_path / "ball.mrc", ball, LENGTH / 32), BOX, LENGTH)
    assert found.shape == (BOX,) * 3
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_allclose(found[8, 8], ball[16, 16, ::2], atol=0.05)


def test_a_mask_that_does_not_fit_is_refused_with_its_name(tmp_path):
    ball = np.ones((BOX, BOX, BOX))
    with pytest.raises(ConfigError, match=r"wide\.mrc: the mask spans 128\.00"):
        read_mask(written(tmp_path / "wide.mrc", ball, 8.0), BOX, LENGTH)
    with pytest.raises(ConfigError, match=r"none\.mrc: the mask is empty"):
        read_mask(written(tmp_path / "none.mrc", 0 * ball, 4.0), BOX, LENGTH)
    with pytest.raises(StoreError, match="larger"):
        read_mask(written(tmp_path / "small.mrc", ball[:8, :8, :8], 8.0), BOX, LENGTH)
