import math

import numpy as np
import pytest
import torch
from support.blobs import blobs

from cryoformer_dist.io.relion import read_blocks
from cryoformer_dist.physics.fourier import (
    FSCCurve,
    crop_images,
    crop_volume,
    fourier_shell_correlation,
    fourier_to_image,
    fourier_to_volume,
    image_to_fourier,
    mean_squared_error_half_plane,
    shifted,
    spectrum,
    to_real_vectors,
    volume_to_fourier,
)
from cryoformer_dist.physics.grids import centred_axis, frequency_grid, radius_grid


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(box: int, spacing: float, dimensions: int) -> torch.Tensor:
    """A function with content below 3 cycles per 16 pixels, sampled every `spacing` pixels about the centre."""
    axes = torch.meshgrid(*[centred_axis(box) * spacing] * dimensions, indexing="ij")
    x, y = 2 * math.pi * axes[-1] / 16, 2 * math.pi * axes[-2] / 16
    total = 0.7 + torch.cos(2 * x + 0.3) + 0.5 * torch.sin(3 * y - x) + 0.4 * torch.cos(x + 2 * y)
    return total + (0.6 * torch.sin(2 * math.pi * 2 * axes[-3] / 16 + x) if dimensions == 3 else 0)


def test_transforms_invert():
    images, voxels = noise(3, 12, 12), noise(10, 10, 10)
    assert torch.allclose(fourier_to_image(image_to_fourier(images), 12), images, atol=1e-5)
    assert torch.allclose(fourier_to_volume(volume_to_fourier(voxels)), voxels, atol=1e-5)


def test_what_the_library_inverts_is_always_a_real_image_s(monkeypatch):
    coefficients = shifted(image_to_fourier(noise(3, 8, 8)), torch.full((3, 2), 0.5))
    expected = torch.fft.fftshift(torch.fft.irfft2(coefficients, s=(8, 8)), dim=(-2, -1))
    seen, invert = [], torch.fft.irfft2
    monkeypatch.setattr(torch.fft, "irfft2", lambda given, s: seen.append(given) or invert(given, s=s))
    assert torch.allclose(fourier_to_image(coefficients, 8), expected, atol=1e-6)
    edges, negative = seen[0][..., [0, 4]], -torch.arange(8)
    assert torch.equal(edges, edges[:, negative].conj())
    assert not torch.allclose(coefficients[..., 4], coefficients[:, negative, 4].conj(), atol=0.1)


def test_a_point_at_the_centre_has_a_flat_real_transform():
    image, voxels = torch.zeros(8, 8), torch.zeros(8, 8, 8)
    image[4, 4], voxels[4, 4, 4] = 1, 1
    assert torch.allclose(image_to_fourier(image), torch.ones(8, 5, dtype=torch.complex64), atol=1e-6)
    assert torch.allclose(volume_to_fourier(voxels), torch.ones(8, 8, 8, dtype=torch.complex64), atol=1e-6)


def test_a_phase_ramp_moves_the_image_by_one_pixel():
    image = noise(16, 16)
    ramp = torch.exp(-2j * math.pi * frequency_grid(16)[..., 0])
    ramp[:, -1] = 0
    moved = fourier_to_image(image_to_fourier(image) * ramp, 16)
    kept = image_to_fourier(image)
    kept[:, -1] = 0
    assert torch.allclose(moved, torch.roll(fourier_to_image(kept, 16), 1, dims=-1), atol=1e-5)


def test_central_slice_of_a_map_is_the_transform_of_its_projection():
    voxels = noise(12, 12, 12)
    assert torch.allclose(volume_to_fourier(voxels)[0, :, :7], image_to_fourier(voxels.sum(0)), atol=1e-4)


def test_shifted_content_moves_by_x_and_y_pixels_each_image_its_own():
    images = noise(2, 16, 16)
    whole = fourier_to_image(shifted(image_to_fourier(images), torch.tensor([[3.0, -2.0], [0.0, 5.0]])), 16)
    assert torch.allclose(whole[0], torch.roll(images[0], (-2, 3), dims=(0, 1)), atol=1e-5)
    assert torch.allclose(whole[1], torch.roll(images[1], (5, 0), dims=(0, 1)), atol=1e-5)


def test_shifts_by_parts_of_a_pixel_are_exact_and_add_up():
    phantom, still = blobs(), torch.eye(3)[None]
    shift = torch.tensor([[1.3, -0.6]])
    centred = phantom.projection(still, torch.zeros(1, 2), 32).to(torch.complex64)
    assert torch.allclose(shifted(centred, shift), phantom.projection(still, shift, 32).to(torch.complex64), atol=2e-4)
    assert torch.allclose(shifted(shifted(centred, shift), -shift), centred, atol=2e-4)


def test_spectrum_of_a_point_is_flat_and_grows_with_the_map():
    point = torch.zeros(16, 16, 16)
    point[5, 9, 2] = 3
    assert torch.allclose(spectrum(point), torch.full((8,), 3.0), atol=1e-4)
    voxels = noise(16, 16, 16)
    assert torch.allclose(spectrum(4 * voxels), 4 * spectrum(voxels), rtol=1e-5)


def test_spectrum_is_the_root_mean_square_amplitude_of_each_shell():
    voxels = noise(16, 16, 16)
    radius = torch.fft.ifftshift(radius_grid(16, 3))
    power = volume_to_fourier(voxels.double()).abs().square()
    for shell, amplitude in enumerate(spectrum(voxels)):
        ring = (radius.double() - shell).abs() < 0.5
        assert float(amplitude) == pytest.approx(float(power[ring].mean().sqrt()), rel=1e-4)


def test_cropping_keeps_the_mean():
    images, voxels = noise(4, 32, 32) + 3, noise(16, 16, 16) - 2
    assert torch.allclose(crop_images(images, 20).mean((-2, -1)), images.mean((-2, -1)), atol=1e-5)
    assert torch.allclose(crop_volume(voxels, 10).mean(), voxels.mean(), atol=1e-5)


@pytest.mark.parametrize(("old", "box"), [(32, 16), (32, 8), (48, 16), (16, 12)])
def test_cropping_samples_a_band_limited_function_on_the_coarser_grid(old, box):
    image = wave(old, 16 / old, 2)
    assert torch.allclose(crop_images(image[None], box)[0], wave(box, 16 / box, 2), atol=2e-5)


def test_cropping_a_map_samples_it_on_the_coarser_grid():
    assert torch.allclose(crop_volume(wave(32, 0.5, 3), 16), wave(16, 1.0, 3), atol=2e-5)


def test_cropping_to_the_same_box_changes_nothing():
    images, voxels = noise(2, 8, 8), noise(8, 8, 8)
    assert torch.equal(crop_images(images, 8), images)
    assert torch.equal(crop_volume(voxels, 8), voxels)


@pytest.mark.parametrize("box", [7, 18, 64])
def test_cropping_to_an_odd_or_larger_box_is_refused(box):
    with pytest.raises(
        ValueError, match=f"cannot crop images of 16 pixels to {box}: ask for an even box of at most 16"
    ):
        crop_images(noise(1, 16, 16), box)
    with pytest.raises(ValueError, match=f"cannot crop a map of 16 voxels to {box}"):
        crop_volume(noise(16, 16, 16), box)


@pytest.mark.parametrize("box", [8, 18])
def test_mean_square_is_the_same_in_fourier_space(box):
    images = noise(3, box, box)
    expected = images.square().mean((-2, -1))
    assert torch.allclose(mean_squared_error_half_plane(image_to_fourier(images)), expected, rtol=1e-5)


def test_weighted_mean_square_is_that_of_the_filtered_image():
    images = noise(3, 16, 16)
    gain = torch.exp(-frequency_grid(16).square().sum(-1) * 5)
    filtered = fourier_to_image(image_to_fourier(images) * gain, 16)
    found = mean_squared_error_half_plane(image_to_fourier(images), gain.square())
    assert torch.allclose(found, filtered.square().mean((-2, -1)), rtol=1e-5)


def test_fsc_of_a_map_with_itself_is_one_whatever_its_scale_and_offset():
    voxels = noise(16, 16, 16)
    same = fourier_shell_correlation(voxels, 5 * voxels + 2, 1.5)
    assert len(same.correlation) == 8
    assert torch.allclose(same.correlation[1:], torch.ones(7), atol=1e-6)
    assert same.area == pytest.approx(1, abs=1e-6)
    assert same.resolution_angstrom(0.143) == 3.0
    assert torch.allclose(fourier_shell_correlation(voxels, -voxels, 1.5).correlation, -torch.ones(8), atol=1e-6)


def test_fsc_of_an_empty_map_is_zero_and_resolves_nothing():
    curve = fourier_shell_correlation(noise(16, 16, 16), torch.zeros(16, 16, 16), 2.0)
    assert torch.equal(curve.correlation, torch.zeros(8))
    assert curve.resolution_angstrom(0.143) == 32.0


def test_fsc_of_a_constant_map_counts_empty_shells_as_zero():
    constant = torch.full((16, 16, 16), 3.0)
    assert torch.equal(fourier_shell_correlation(constant, constant, 2.0).correlation[1:], torch.zeros(7))


def test_fsc_of_independent_noise_is_near_zero():
    curve = fourier_shell_correlation(noise(32, 32, 32), noise(32, 32, 32, seed=1), 1.0)
    assert float(curve.correlation[4:].abs().max()) < 0.2
    assert curve.area == pytest.approx(0, abs=0.1)


def test_fsc_sees_which_shells_two_maps_share():
    first, second = noise(32, 32, 32), noise(32, 32, 32, seed=1)
    radius = torch.fft.ifftshift(radius_grid(32, 3))
    shared = volume_to_fourier(first) * (radius < 7.5)
    own = volume_to_fourier(second) * (radius >= 7.5)
    correlation = fourier_shell_correlation(first, fourier_to_volume(shared + own), 1.0).correlation
    assert torch.allclose(correlation[1:8], torch.ones(7), atol=1e-4)
    assert float(correlation[8:].abs().max()) < 0.25


def test_masked_fsc_ignores_what_lies_outside_the_mask():
    voxels = blobs().voxels(32)
    mask = (radius_grid(32, 3) < 11).float()
    disturbed = voxels + noise(32, 32, 32) * (1 - mask)
    assert fourier_shell_correlation(voxels, disturbed, 1.0, mask).area == pytest.approx(1, abs=1e-5)
    assert fourier_shell_correlation(voxels, disturbed, 1.0).area < 0.5


def test_resolution_is_the_last_shell_before_the_first_below_the_threshold():
    curve = FSCCurve(torch.tensor([1.0, 0.99, 0.6, 0.4, 0.1, 0.9, 0.2, 0.0]), box_size=16, pixel_size_angstrom=2.0)
    assert curve.resolution_angstrom(0.5) == pytest.approx(32 / 2)
    assert curve.resolution_angstrom(0.143) == pytest.approx(32 / 3)
    assert curve.resolution_angstrom(0.995) == pytest.approx(32)
    assert curve.resolution_angstrom(-1.0) == 4.0
    assert curve.frequency_per_angstrom.tolist() == pytest.approx([shell / 32 for shell in range(8)])
    assert curve.area == pytest.approx((0.99 + 0.6 + 0.4 + 0.1 + 0.9 + 0.2) / 7)


def test_resolution_agrees_with_relion_postprocess(shared_data):
    blocks = read_blocks(shared_data / "edge" / "star" / "postprocess.star")
    columns = {name.removeprefix("_"): values for block in blocks.values() for name, values in block.items()}
    correlation = np.asarray(columns["rlnFourierShellCorrelationCorrected"], dtype=np.float64)
    field_of_view = float(columns["rlnAngstromResolution"][1])
    shells = len(correlation)
    assert shells == 49
    box = 2 * (shells - 1)
    curve = FSCCurve(torch.tensor(correlation), box, field_of_view / box)
    final = float(columns["rlnFinalResolution"][0])
    assert final == pytest.approx(16.363636, abs=1e-6)
    assert curve.resolution_angstrom(0.143) == pytest.approx(final, rel=1e-5)


def test_products_of_real_vectors_are_the_real_parts_of_those_of_the_coefficients():
    first, second = (torch.randn(2, 5, dtype=torch.complex128) for _ in range(2))
    products = (to_real_vectors(first) * to_real_vectors(second)).sum(-1)
    torch.testing.assert_close(products, (first * second.conj()).real.sum(-1))
