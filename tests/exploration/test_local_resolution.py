from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.local_resolution import (
    filter_locally,
    measure_local_resolution,
    read_resolution,
    summarise_resolution,
)
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.volume import Volume

BOX, VOXEL = 64, 2.0
FINE, COARSE = 8.0, 20.0


def radius(box: int = BOX) -> torch.Tensor:
    z, y, x = torch.meshgrid(*[torch.fft.fftfreq(box) * box] * 3, indexing="ij")
    return (z.square() + y.square() + x.square()).sqrt()


def up_to(resolution_angstrom: float, values: torch.Tensor) -> torch.Tensor:
    """Nothing finer than this."""
    keep = radius() <= BOX * VOXEL / resolution_angstrom
    return torch.fft.ifftn(torch.fft.fftn(values) * keep).real


def structure(seed: int = 0) -> torch.Tensor:
    return torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def two_regions() -> torch.Tensor:
    """One half of the box resolved to 8 angstrom, the other to 20."""
    right = (torch.arange(BOX) >= BOX // 2).float()
    return up_to(FINE, structure()) * (1 - right) + up_to(COARSE, structure()) * right


@pytest.fixture(scope="module")
def measured(two_regions: torch.Tensor) -> torch.Tensor:
    halves = [two_regions + 0.4 * structure(seed) for seed in (1, 2)]
    return measure_local_resolution(*halves, VOXEL)


def test_two_regions_are_told_at_their_resolutions(measured: torch.Tensor) -> None:
    """A window's width away from where they meet, in the box and, since it wraps, at its edge."""
    for known, columns in ((FINE, slice(12, 20)), (COARSE, slice(44, 52))):
        told = measured[:, :, columns]
        assert float(told.median()) == pytest.approx(known, rel=0.15)
        assert float((told / known).log().abs().quantile(0.9)) < 0.25


def test_noise_is_resolved_nowhere() -> None:
    measured = measure_local_resolution(structure(1), structure(2), VOXEL)
    assert float(measured.median()) > BOX * VOXEL / 6


def test_equal_halves_are_resolved_to_nyquist_everywhere() -> None:
    measured = measure_local_resolution(structure(1), structure(1), VOXEL)
    np.testing.assert_allclose(measured, 2 * VOXEL, rtol=1e-5)


def test_scale_of_the_halves_does_not_matter(two_regions: torch.Tensor, measured: torch.Tensor) -> None:
    first, second = (two_regions + 0.4 * structure(seed) for seed in (1, 2))
    np.testing.assert_allclose(measure_local_resolution(3e-4 * first, 50 * second, VOXEL), measured, rtol=1e-3)


def test_each_region_is_filtered_to_its_own_resolution() -> None:
    voxels, right = structure(), torch.arange(BOX) >= BOX // 2
    resolution = torch.where(right, COARSE, FINE).expand(BOX, BOX, BOX)
    filtered = filter_locally(voxels, resolution, VOXEL)
    for known, columns in ((FINE, slice(4, 28)), (COARSE, slice(36, 60))):
        expected, found = (each[:, :, columns] for each in (up_to(known, voxels), filtered))
        assert float(torch.corrcoef(torch.stack([expected.ravel(), found.ravel()]))[0, 1]) > 0.95
        # Nothing finer is left.
        assert float((found - expected).std() / voxels.std()) < 0.3 * float(expected.std() / voxels.std())


def test_one_resolution_is_one_filter_and_nyquist_changes_little() -> None:
    voxels = up_to(10.0, structure())
    same = filter_locally(voxels, torch.full_like(voxels, 2 * VOXEL), VOXEL)
    np.testing.assert_allclose(same, voxels, atol=1e-5)
    once, again = (torch.full_like(voxels, resolution) for resolution in (16.0, 8.0))
    filtered = filter_locally(voxels, once, VOXEL)
    np.testing.assert_allclose(filter_locally(filtered, again, VOXEL), filtered, atol=1e-5)


def test_the_range_is_that_of_the_region(measured: torch.Tensor) -> None:
    region = torch.zeros_like(measured)
    region[:, :, 12:20] = 1
    told = summarise_resolution(measured, region)
    assert told.finest <= told.median <= told.coarsest < 12
    assert "A in the middle" in str(told)


def test_a_map_of_resolutions_is_read_on_another_box(tmp_path: Path) -> None:
    values = torch.full((32, 32, 32), 7.0)
    values[:, :, 16:] = 14.0
    values[0, 0, 0] = 0
    write_volume(tmp_path / "r.mrc", Volume(values, 4.0))
    read = read_resolution(tmp_path / "r.mrc", 64, 128.0)
    assert read.shape == (64, 64, 64)
    assert read[32, 32, 10] == 7
    assert read[32, 32, 40] == 14
    assert float(read[0, 0, 0]) == pytest.approx(14)
    assert float(read.min()) == pytest.approx(7)
    assert float(read[:, :, 34:].min()) == pytest.approx(14)


def test_a_map_that_is_of_no_resolutions_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "density.mrc", Volume(structure(), VOXEL))
    with pytest.raises(ExplorationError, match="no resolutions"):
        read_resolution(tmp_path / "density.mrc", BOX, BOX * VOXEL)
    with pytest.raises(ExplorationError, match=r"spans 128\.00"):
        read_resolution(tmp_path / "density.mrc", BOX, 100.0)
