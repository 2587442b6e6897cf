import numpy as np
import pytest
import torch
from support.noise import coloured, cut_noise, kinked, make_noise, power_per_shell, white

from cryoformer_dist.data.noise_background import Background
from cryoformer_dist.data.noise_measurement import GroupNoise, log_deviations, measure_noise, whiten_images
from cryoformer_dist.physics.fourier import crop_images

BOX, IMAGES = 32, 3000


def _measured(images: np.ndarray, radius: float = 15.0) -> tuple[GroupNoise, torch.Tensor]:
    """Noise as measured, and the images as they would be stored."""
    background = Background.outside(images.shape[-1], radius)
    flat, fitted = background.flatten(torch.from_numpy(images))
    noise = measure_noise(flat, fitted.double().numpy(), background)
    stored, _ = background.flatten(torch.from_numpy(images), noise.gradient_share)
    whitened = whiten_images(stored, noise.gain)
    return noise, whitened / noise.image_deviation(whitened, background)[:, None, None]


@pytest.mark.parametrize("radius", [12.0, 15.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_white_noise_is_found_flat_and_left_as_it_is(radius: float, seed: int) -> None:
    images = make_noise(white, IMAGES, BOX, seed)
    noise, stored = _measured(7 * images + 3, radius)
    assert noise.white
    assert (noise.deviation_share, noise.gradient_share) == (0, 0)
    assert noise.deviation == pytest.approx(7, rel=0.01)
    np.testing.assert_allclose(power_per_shell(stored.numpy()), 1, atol=0.03)


@pytest.mark.parametrize("seed", [0, 1])
def test_coloured_noise_is_stored_white_in_every_shell(seed: int) -> None:
    noise, stored = _measured(0.2 * make_noise(coloured, IMAGES, BOX, seed))
    assert not noise.white
    power = power_per_shell(stored.numpy())
    np.testing.assert_allclose(power[3:], 1, atol=0.03)
    # As far as corners of so many images tell.
    np.testing.assert_allclose(power[:3], 1, atol=0.1)
    np.testing.assert_allclose(power[0], 1, atol=0.06)


@pytest.mark.parametrize("wider", [2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_noise_cut_from_a_micrograph_is_stored_white_in_every_shell(wider: int, seed: int) -> None:
    images = 0.2 * cut_noise(coloured, IMAGES, BOX, wider, seed)
    # A ring of background, and corners alone.
    for radius, within in ((11.0, 0.05), (15.0, 0.1)):
        _, stored = _measured(images, radius)
        power = power_per_shell(stored.numpy())
        np.testing.assert_allclose(power[:3], 1, atol=within)
        np.testing.assert_allclose(power[3:], 1, atol=0.03)


@pytest.mark.parametrize("make", [make_noise, lambda *which: cut_noise(*which, 2)])
def test_a_spectrum_with_a_kink_is_not_rounded(make) -> None:  # type: ignore[no-untyped-def]
    images = make(kinked, IMAGES, BOX)
    for radius, within in ((11.0, 0.05), (15.0, 0.1)):
        _, stored = _measured(images, radius)
        np.testing.assert_allclose(power_per_shell(stored.numpy()), 1, atol=within)


def test_noise_cut_from_a_micrograph_is_white_after_cropping_too() -> None:
    source = cut_noise(coloured, 2000, 2 * BOX, 2)
    background = Background.outside(2 * BOX, 24.0)
    flat, fitted = background.flatten(torch.from_numpy(source))
    small = background.cropped(BOX)
    noise = measure_noise(crop_images(flat, BOX), fitted.double().numpy(), small)
    kept, _ = background.flatten(torch.from_numpy(source), noise.gradient_share)
    whitened = whiten_images(crop_images(kept, BOX), noise.gain)
    stored = whitened / noise.image_deviation(whitened, small)[:, None, None]
    np.testing.assert_allclose(power_per_shell(stored.numpy()), 1, atol=0.08)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_ring_of_background_tells_the_lowest_shells_better(seed: int) -> None:
    _, stored = _measured(make_noise(coloured, IMAGES, BOX, seed), radius=11.0)
    np.testing.assert_allclose(power_per_shell(stored.numpy()), 1, atol=0.05)


def test_what_lies_in_the_particle_says_nothing() -> None:
    images = make_noise(coloured, 500, BOX)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    filled = images + np.float32(100) * (np.hypot(x, y) < 12)
    (alone, _), (beside, _) = _measured(images), _measured(filled.astype(np.float32))
    np.testing.assert_allclose(beside.power, alone.power, rtol=1e-3)


def test_gradients_are_taken_off_as_far_as_they_are_more_than_noise() -> None:
    images = make_noise(coloured, IMAGES, BOX)
    slope = np.random.default_rng(1).normal(size=(IMAGES, 2, 1, 1)).astype(np.float32)
    ramp = (np.arange(BOX, dtype=np.float32) - BOX // 2) / BOX
    tilted = images + 8 * (slope[:, 0] * ramp + slope[:, 1] * ramp[:, None])
    noise, stored = _measured(tilted)
    assert noise.gradient_share > 0.8
    np.testing.assert_allclose(power_per_shell(stored.numpy()), 1, atol=0.12)
    left, _ = _measured(images)
    assert left.gradient_share == 0


def test_images_of_unlike_strength_are_made_alike_and_like_ones_are_left() -> None:
    images = make_noise(coloured, IMAGES, BOX)
    strength = np.exp(0.4 * np.random.default_rng(1).normal(size=(IMAGES, 1, 1))).astype(np.float32)
    noise, stored = _measured(images * strength)
    assert noise.deviation_share > 0.9
    found = np.exp(log_deviations(stored, Background.outside(BOX, 15.0)))
    assert np.log(found).std() < 0.1
    assert _measured(images)[0].deviation_share == 0


def test_a_few_images_of_another_kind_neither_count_nor_keep_their_strength() -> None:
    images = make_noise(coloured, 1000, BOX)
    alone, _ = _measured(images)
    images[::100] *= 50
    noise, stored = _measured(images)
    assert noise.deviation_share == 0
    np.testing.assert_allclose(noise.power, alone.power, rtol=0.1)
    assert stored[::100].var() == pytest.approx(1, abs=0.2)
