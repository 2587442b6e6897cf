import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.rotating_blobs import BOX, VOXEL_SIZE_ANGSTROM, blobs

from cryoformer_dist.analysis.masks import (
    MaskChoice,
    choose_threshold,
    find_moving_voxels,
    make_mask,
    make_soft_mask,
    make_solvent_mask,
    read_mask,
    soften,
)
from cryoformer_dist.errors import ConfigError, StoreError
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.grids import lattice_points, radius_grid
from cryoformer_dist.physics.volume import Volume

MAPS = blobs(np.arange(8) * 45.0)
LENGTH = BOX * VOXEL_SIZE_ANGSTROM
BALL_BOX, BALL_VOXEL, RADIUS = 48, 3.0, 36.0


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


def _distance() -> torch.Tensor:
    """Of each voxel from the centre of the ball, angstrom."""
    away = lattice_points(BALL_BOX) * BALL_VOXEL - torch.tensor([6.0, 0.0, 0.0])
    return away.norm(dim=1).reshape(BALL_BOX, BALL_BOX, BALL_BOX)


def _ball(noise: float = 0.0, solvent: float = 0.0, level: float = 1.0) -> Volume:
    """A ball of protein of 36 angstrom, off the centre by 6."""
    density = level * (_distance() <= RADIUS).float() + solvent
    generator = torch.Generator().manual_seed(0)
    return Volume(density + noise * torch.randn(density.shape, generator=generator), BALL_VOXEL)


@pytest.mark.parametrize(("noise", "solvent", "level"), [(0, 0, 1), (0.5, 0, 1), (0.3, -0.2, 1), (0, 5, 40)])
def test_the_region_is_the_molecule_and_a_rim_whatever_noise_scale_and_solvent_level(
    noise: float, solvent: float, level: float
) -> None:
    made = make_mask(_ball(noise * level, solvent, level), MaskChoice())
    size = 4 / 3 * math.pi * RADIUS**3
    # A quarter of the molecule's density is reached some angstrom outside its surface.
    assert size < made.region_cubic_angstrom < 1.35 * size
    assert made.mass_kilodalton == pytest.approx(made.region_cubic_angstrom / 1210)
    mask, inside = made.mask.voxels, _ball().voxels > 0
    assert (mask[inside] == 1).all()
    assert (mask.min(), mask.max()) == (0, 1)
    # Nothing beyond region, dilation and edge.
    reach = RADIUS + 5 + made.dilation_angstrom + made.edge_angstrom
    assert (mask[_distance() > reach] == 0).all()
    assert made.mask_cubic_angstrom > made.region_cubic_angstrom


def test_what_is_asked_for_is_done() -> None:
    made = make_mask(_ball(), MaskChoice(0.5, 0.0, 0.0, 0.0))
    assert torch.equal(made.mask.voxels, _ball().voxels)
    assert made.region_cubic_angstrom == int(_ball().voxels.sum()) * BALL_VOXEL**3
    wider = make_mask(_ball(), MaskChoice(0.5, 0.0, 6.0, 12.0)).mask.voxels
    row = wider[BALL_BOX // 2, BALL_BOX // 2, BALL_BOX // 2 :].tolist()
    # The surface is 14 voxels from the centre: two more are inside, and the edge ends four farther.
    assert row[:17] == [1.0] * 17
    assert row[18] == pytest.approx(0.5, abs=1e-6)
    assert row[20:] == [0.0] * 4
    fine, coarse = (make_mask(_ball(0.5), MaskChoice(lowpass_angstrom=lowpass)) for lowpass in (9.0, 30.0))
    assert (fine.lowpass_angstrom, fine.dilation_angstrom, coarse.dilation_angstrom) == (9, 4.5, 15)
    assert make_mask(Volume(_ball().voxels, 8.0), MaskChoice()).lowpass_angstrom == 24


def test_dust_is_left_out_and_counted() -> None:
    volume = _ball()
    volume.voxels[4:6, 4:6, 4:6] = 1
    made = make_mask(volume, MaskChoice(0.5, 0.0))
    assert made.pieces == 1
    assert (made.mask.voxels[:8, :8, :8] == 0).all()
    assert any("1 pieces of dust left out" in line for line in made.describe())


def test_noise_alone_is_below_the_threshold_that_its_background_sets() -> None:
    noise = np.random.default_rng(0).normal(size=(32, 32, 32))
    inside = radius_grid(32, 3).numpy() <= 15
    assert (noise[inside] > choose_threshold(noise)).mean() < 1e-4


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (MaskChoice(threshold=3.0), r"no density above 3: the smoothed map reaches .*--threshold"),
        (MaskChoice(edge_angstrom=-1.0), r"--soft-edge -1: give a length"),
        (MaskChoice(dilation_angstrom=-2.0), r"--dilate -2"),
    ],
)
def test_masks_that_cannot_be_are_refused(choice: MaskChoice, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_mask(_ball(), choice)
