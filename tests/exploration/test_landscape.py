import numpy as np
import pytest

from cryoformer_dist.exploration.landscape import Landscape, measure_landscape


def two_wells(count: int, seed: int = 0) -> np.ndarray:
    """Three quarters of the particles about -2, the others about 2."""
    rng = np.random.default_rng(seed)
    middle = np.where(rng.uniform(size=count) < 0.75, -2.0, 2.0)
    return np.stack([middle + 0.7 * rng.normal(size=count), rng.normal(size=count)], axis=1)


def at(landscape: Landscape, values: np.ndarray, place: float) -> float:
    cut = landscape.edges[0]
    return float(np.interp(place, (cut[:-1] + cut[1:]) / 2, values))


def test_energy_is_minus_the_logarithm_of_the_density() -> None:
    normal = np.random.default_rng(0).normal(size=(200_000, 1))
    found = measure_landscape(normal)
    assert abs(found.wells[0].place[0]) < 0.2
    for place in (-2.0, -1.0, 1.0, 2.0):
        # Smoothing widens the cloud by its bandwidth.
        expected = place**2 / 2 / (1 + found.bandwidth[0] ** 2)
        assert at(found, found.energy, place) - at(found, found.energy, 0.0) == pytest.approx(expected, abs=0.05)


def test_wells_are_found_with_their_height_and_its_error() -> None:
    found = measure_landscape(two_wells(20_000))
    first, second = found.wells
    assert first.place[0] == pytest.approx(-2, abs=0.25)
    assert second.place[0] == pytest.approx(2, abs=0.25)
    assert (first.energy, first.error) == (0, 0)
    assert second.energy == pytest.approx(np.log(3), abs=0.1)
    assert 1.0 < second.depth < first.depth


def test_one_cloud_has_one_well_however_few_particles_there_are() -> None:
    for seed in range(5):
        cloud = np.random.default_rng(seed).normal(size=(300, 2))
        assert len(measure_landscape(cloud, seed=seed).wells) == 1


def test_few_particles_that_lie_apart_make_no_wells() -> None:
    rng = np.random.default_rng(0)
    apart = np.stack([0.2 * rng.normal(size=25), rng.uniform(3, 12, 25)], axis=1)
    cloud = np.concatenate([rng.normal(size=(1000, 2)), apart])
    found = measure_landscape(cloud, np.full(cloud.shape, 0.5, dtype=np.float32), np.full(2, 0.5))
    assert len(found.wells) == 1


def test_the_error_is_how_far_other_samples_fall() -> None:
    samples = [measure_landscape(two_wells(2000, seed)[:, :1]) for seed in range(12)]
    heights = [at(each, each.energy, 2.0) - at(each, each.energy, -2.0) for each in samples]
    told = np.mean([at(each, each.error, 2.0) for each in samples])
    assert told == pytest.approx(np.std(heights), rel=0.6)
    few = measure_landscape(two_wells(500)[:, :1])
    assert at(few, few.error, 2.0) > at(samples[0], samples[0].error, 2.0)


def test_places_without_particles_have_no_energy_and_wide_latents_a_larger_error() -> None:
    found = measure_landscape(two_wells(2000))
    assert np.isnan(found.energy).any()
    blurred = measure_landscape(two_wells(2000), np.full((2000, 2), 0.7, dtype=np.float32))
    np.testing.assert_array_equal(found.energy, blurred.energy)
    assert np.nanmedian(blurred.error) > 1.1 * np.nanmedian(found.error)
