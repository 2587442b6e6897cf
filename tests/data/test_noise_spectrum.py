import numpy as np
import pytest
import torch
from support.noise import Curve, coloured, cut_noise, make_noise, plane, white

from cryoformer_dist.data.noise_background import FIELD, Background
from cryoformer_dist.data.noise_spectrum import (
    Spectrum,
    fit_spectrum,
    on_plane,
    per_shell,
    windowed_power,
    without_nyquist_lines,
)
from cryoformer_dist.physics.fourier import crop_images

BOX = 32


def test_power_is_the_same_at_opposite_frequencies_and_counts_every_image() -> None:
    images, window = make_noise(coloured, 3, 12), np.random.default_rng(1).uniform(size=(12, 12))
    found = windowed_power(torch.from_numpy(images).double(), window, 24)
    transform = np.fft.fft2(images.astype(float) * window, s=(24, 24))
    np.testing.assert_allclose(found, (np.abs(transform) ** 2).mean(0) / 144, rtol=1e-9)


@pytest.mark.parametrize("box", [20, 24, 64])
def test_a_spectrum_is_found_at_any_box(box: int) -> None:
    background = Background.outside(box, box / 2 - 1)
    flat, _ = background.flatten(torch.from_numpy(make_noise(coloured, 1500, box)))
    found = fit_spectrum(windowed_power(flat, background.weight, FIELD * box), 1500, background, band_limited=False)
    assert found.wraps
    gain = np.interp(plane(box), np.arange(len(found.power)), (found.power * found.mean) ** -0.5)
    left = per_shell(coloured(plane(box)) / coloured(plane(box)).mean() * gain**2)
    np.testing.assert_allclose(left[1 : box // 2], 1, rtol=0.12)
    np.testing.assert_allclose(left[5 : box // 2], 1, rtol=0.05)
    assert not found.is_white
    compared = on_plane(found.power, box)[without_nyquist_lines(box) > 0][1:]
    assert compared.mean() == pytest.approx(1, rel=1e-6)


def test_images_whose_nyquist_lines_are_empty_are_white_all_the_same() -> None:
    background = Background.outside(BOX, 13.0)
    images = crop_images(torch.from_numpy(make_noise(white, 2000, 2 * BOX)), BOX) * 2
    flat, _ = background.flatten(images)
    power = windowed_power(flat, background.weight, FIELD * BOX)
    found = fit_spectrum(power, 2000, background, band_limited=True)
    assert found.is_white
    assert found.mean == pytest.approx(1, rel=0.01)
    # Taken for noise that fills the plane, it would seem weaker than it is.
    assert fit_spectrum(power, 2000, background, band_limited=False).mean < 0.985


@pytest.mark.parametrize("wider", [2, 4])
def test_noise_that_goes_on_outside_the_box_is_told_from_noise_that_wraps_round_it(wider: int) -> None:
    background = Background.outside(BOX, 15.0)
    for images, wraps in ((make_noise(coloured, 1000, BOX), True), (cut_noise(coloured, 1000, BOX, wider), False)):
        flat, _ = background.flatten(torch.from_numpy(images))
        power = windowed_power(flat, background.weight, FIELD * BOX)
        assert fit_spectrum(power, 1000, background, band_limited=False).wraps is wraps
    # White noise is both, and taken for what real noise is.
    flat, _ = background.flatten(torch.from_numpy(make_noise(white, 1000, BOX)))
    power = windowed_power(flat, background.weight, FIELD * BOX)
    assert not fit_spectrum(power, 1000, background, band_limited=False).wraps


def test_faint_colour_is_told_from_white_noise_by_all_shells_together() -> None:
    background = Background.outside(BOX, 15.0)

    def spectrum_of(curve: Curve, seed: int) -> Spectrum:
        flat, _ = background.flatten(torch.from_numpy(make_noise(curve, 3000, BOX, seed)))
        power = windowed_power(flat, background.weight, FIELD * BOX)
        return fit_spectrum(power, 3000, background, band_limited=False)

    faint = spectrum_of(lambda shell: 1 + 0.15 * np.exp(-((shell / 4) ** 2)), 0)
    assert not faint.is_white
    # Though no shell of it departs by two standard errors.
    assert (np.abs(faint.power - 1) < 2 * faint.error)[1:16].all()
    assert all(spectrum_of(white, seed).is_white for seed in range(3))
