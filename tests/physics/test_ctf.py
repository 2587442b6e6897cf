import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoformer_dist.physics.ctf import (
    CTFParams,
    NoiseFilter,
    contrast_transfer_function,
    electron_wavelength_angstrom,
    transfer_at,
)
from cryoformer_dist.physics.grids import frequency_grid

# Computed apart from the program, in numpy float64, from h, m, e, c and the formula of Rohou & Grigorieff (2015):
# defocus U, V (angstrom), angle (deg), phase (deg), kV, Cs (mm), amplitude contrast, kx, ky (1/angstrom), CTF.
GOLDEN = [
    (15000.0, 15000.0, 0.0, 0.0, 300.0, 2.7, 0.07, 0.05, 0.0, 0.684692),
    (15000.0, 15000.0, 0.0, 0.0, 300.0, 2.7, 0.07, 0.08, -0.06, 0.109354),
    (21275.0, 20100.0, 32.5, 0.0, 300.0, 2.0, 0.1, 0.11, 0.09, 0.990030),
    (8000.0, 7000.0, -60.0, 90.0, 300.0, 2.7, 0.1, 0.02, 0.2, 0.990358),
    (30000.0, 27000.0, 115.0, 0.0, 200.0, 0.01, 0.1, 0.0, 0.12, 0.856735),
    (0.0, 0.0, 0.0, 90.0, 100.0, 2.0, 0.0, 0.1, 0.1, 0.803725),
    (-9000.0, -9500.0, 10.0, 35.0, 200.0, 2.7, 0.2, 0.07, -0.13, 0.030289),
    (12000.0, 11000.0, 70.0, 0.0, 300.0, 0.0, 0.0, 0.15, 0.05, -0.946846),
]


def parameters(*rows: tuple[float, ...]) -> CTFParams:
    return CTFParams(*torch.tensor(rows).unbind(-1))


def at(params: CTFParams, kx: float, ky: float) -> torch.Tensor:
    return contrast_transfer_function(params, torch.tensor([kx, ky]).reshape(1, 1, 1, 2)).ravel()


@pytest.mark.parametrize("row", GOLDEN)
def test_ctf_equals_numbers_computed_apart_from_the_program(row):
    *microscope, kx, ky, expected = row
    # RELION's constants of the wavelength, which the program shares, are 5e-6 off: that is 2e-4 after 40 radians.
    assert float(at(parameters(tuple(microscope)), kx, ky)) == pytest.approx(expected, abs=3e-4)


def test_particles_are_computed_together_as_one_by_one():
    params = parameters(*(row[:7] for row in GOLDEN))
    pixels = torch.linspace(1.0, 3.0, len(GOLDEN))
    grids = frequency_grid(16)[None] / pixels[:, None, None, None]
    together = transfer_at(params, frequency_grid(16), pixels)
    assert together.shape == (len(GOLDEN), 16, 9)
    assert torch.equal(transfer_at(params, frequency_grid(16)[3], pixels), together[:, 3])
    for row in range(len(GOLDEN)):
        only = torch.tensor([row])
        assert torch.allclose(contrast_transfer_function(params[only], grids[only]), together[only], atol=1e-6)


@pytest.mark.parametrize(("kv", "angstrom"), [(100.0, 0.03701437), (200.0, 0.02507934), (300.0, 0.01968749)])
def test_electron_wavelength_is_that_of_the_textbooks(kv, angstrom):
    assert float(electron_wavelength_angstrom(torch.tensor([kv]))) == pytest.approx(angstrom, rel=1e-5)


@pytest.mark.parametrize("contrast", [0.0, 0.07, 0.1, 0.5, 0.99])
def test_ctf_starts_at_the_amplitude_contrast(contrast):
    params = parameters((21275.0, 20100.0, 32.5, 0.0, 300.0, 2.7, contrast))
    assert float(at(params, 0.0, 0.0)) == pytest.approx(contrast, abs=1e-6)


def test_underfocus_first_makes_the_ctf_rise():
    params = parameters((15000.0, 15000.0, 0.0, 0.0, 300.0, 2.7, 0.07))
    assert float(at(params, 0.02, 0.0)) > float(at(params, 0.0, 0.0)) > 0


@pytest.mark.parametrize("contrast", [1.0, 1.5, -0.1])
def test_impossible_amplitude_contrast_is_refused(contrast):
    params = parameters(
        (15000.0, 15000.0, 0.0, 0.0, 300.0, 2.7, 0.1), (15000.0, 15000.0, 0.0, 0.0, 300.0, 2.7, contrast)
    )
    with pytest.raises(ValueError, match=r"amplitude contrast must lie in \[0, 1\): check the optics table"):
        at(params, 0.1, 0.0)


def test_defocus_u_counts_along_its_angle_and_v_across():
    along, across = (15000.0,) * 2, (12000.0,) * 2
    rest = (0.0, 300.0, 2.7, 0.1)
    k = 0.09
    for degrees in (0.0, 30.0, 90.0, 145.0):
        astigmatic = parameters((15000.0, 12000.0, degrees, *rest))
        kx, ky = k * math.cos(math.radians(degrees)), k * math.sin(math.radians(degrees))
        assert torch.allclose(at(astigmatic, kx, ky), at(parameters((*along, 0.0, *rest)), k, 0.0), atol=3e-5)
        assert torch.allclose(at(astigmatic, -ky, kx), at(parameters((*across, 0.0, *rest)), k, 0.0), atol=3e-5)


def test_swapping_x_and_y_swaps_the_astigmatism_angle():
    rest = (0.0, 300.0, 2.7, 0.1)
    grid = frequency_grid(32)[None, :, :, :] / 1.5
    ctf = contrast_transfer_function(parameters((15000.0, 12000.0, 20.0, *rest)), grid)
    turned = parameters((15000.0, 12000.0, 70.0, *rest))
    assert torch.allclose(contrast_transfer_function(turned, grid.flip(-1)), ctf, atol=1e-4)
    assert not torch.allclose(contrast_transfer_function(turned, grid), ctf, atol=0.1)


def test_ctf_is_the_same_at_minus_k():
    params = parameters(*(row[:7] for row in GOLDEN))
    grid = frequency_grid(16)[None] / 1.5
    assert torch.allclose(
        contrast_transfer_function(params, -grid), contrast_transfer_function(params, grid), atol=1e-4
    )
    assert np.all(np.abs(contrast_transfer_function(params, grid).numpy()) <= 1)


def whitened(group: list[int]) -> CTFParams:
    """Two optics groups of 16 pixels, of 2 and 3 angstrom each."""
    gain = torch.linspace(0.5, 1.5, 13).expand(2, -1) * torch.tensor([[1.0], [2.0]])
    noise = NoiseFilter(torch.tensor(group), gain, torch.tensor([32.0, 48.0]))
    return replace(parameters(*[(15000.0, 12000.0, 20.0, 0.0, 300.0, 2.7, 0.1)] * len(group)), noise_filter=noise)


def test_a_noise_filter_multiplies_the_transfer_of_its_optics_group() -> None:
    params, pixels = whitened([1, 0, 1]), torch.tensor([3.0, 2.0, 3.0])
    plain = transfer_at(replace(params, noise_filter=None), frequency_grid(16), pixels)
    found = transfer_at(params, frequency_grid(16), pixels)
    shell = frequency_grid(16).square().sum(-1).sqrt() * 16
    gain = torch.from_numpy(np.interp(shell.numpy(), np.arange(13), np.linspace(0.5, 1.5, 13))).float()
    for particle, factor in enumerate((2, 1, 2)):
        assert torch.allclose(found[particle], plain[particle] * gain * factor, atol=1e-6)


@pytest.mark.parametrize("box", [8, 32])
def test_a_noise_filter_is_the_same_after_cropping_and_padding(box: int) -> None:
    params, pixels = whitened([0, 1]), torch.tensor([2.0, 3.0])
    whole = transfer_at(params, frequency_grid(16), pixels)
    # Cropping keeps the field of view and makes pixels larger; padding the other way round keeps pixels.
    other = transfer_at(params, frequency_grid(box), pixels * (16 / box if box < 16 else 1))
    step = 1 if box < 16 else 2
    assert torch.allclose(other[:, 0, : 4 * step : step], whole[:, 0, :4], atol=1e-5)
    assert torch.allclose(other[:, : 4 * step : step, 0], whole[:, :4, 0], atol=1e-5)


def test_particles_that_are_picked_keep_the_noise_filter_of_their_group() -> None:
    params, pixels, order = whitened([1, 0, 1]), torch.tensor([3.0, 2.0, 3.0]), torch.tensor([1, 2])
    assert torch.equal(
        transfer_at(params[order], frequency_grid(16), pixels[order]),
        transfer_at(params, frequency_grid(16), pixels)[order],
    )
    copied = params.each(lambda values: values * 1)
    assert torch.equal(transfer_at(copied, frequency_grid(16), pixels), transfer_at(params, frequency_grid(16), pixels))
