import math
from dataclasses import replace

import pytest
import torch
from support.blobs import microscope

from cryoformer_dist.physics.aberrations import EvenAberration, odd_phase, with_beam_tilt, zernike_sum, zernike_terms
from cryoformer_dist.physics.ctf import contrast_transfer_function, electron_wavelength_angstrom, transfer_at
from cryoformer_dist.physics.grids import frequency_grid

FREQUENCY = frequency_grid(16).double() / 1.5
X, Y = FREQUENCY.unbind(-1)
R2 = X**2 + Y**2
# In RELION's order, written out.
ODD = (
    *(Y, X, 3 * X**2 * Y - Y**3, (3 * R2 - 2) * Y, (3 * R2 - 2) * X, X**3 - 3 * X * Y**2),
    *(5 * X**4 * Y - 10 * X**2 * Y**3 + Y**5, (5 * R2 - 4) * (3 * X**2 * Y - Y**3)),
)
EVEN = (
    *(torch.ones_like(X), 2 * X * Y, 2 * R2 - 1, X**2 - Y**2, 4 * X**3 * Y - 4 * X * Y**3, 2 * (4 * R2 - 3) * X * Y),
    *(6 * R2**2 - 6 * R2 + 1, (4 * R2 - 3) * (X**2 - Y**2), X**4 - 6 * X**2 * Y**2 + Y**4),
)


def test_terms_stand_in_relion_s_order() -> None:
    assert zernike_terms(7, 1) == [(-1, 1), (1, 1), (-3, 3), (-1, 3), (1, 3), (3, 3), (-5, 5)]
    assert zernike_terms(5, 0) == [(0, 0), (-2, 2), (0, 2), (2, 2), (-4, 4)]


@pytest.mark.parametrize(("polynomials", "first_order"), [(ODD, 1), (EVEN, 0)])
def test_each_polynomial_is_that_of_its_place(polynomials: tuple[torch.Tensor, ...], first_order: int) -> None:
    for place, expected in enumerate(polynomials):
        found = zernike_sum([0.0] * place + [3.0], FREQUENCY, first_order)
        torch.testing.assert_close(found, 3 * expected, rtol=1e-9, atol=1e-12)


def test_odd_phases_change_their_sign_with_the_frequency_and_even_ones_do_not() -> None:
    coefficients = torch.randn(9, generator=torch.Generator().manual_seed(0)).tolist()
    torch.testing.assert_close(odd_phase(coefficients, -FREQUENCY), -odd_phase(coefficients, FREQUENCY))
    even = zernike_sum(coefficients, FREQUENCY, 0)
    torch.testing.assert_close(zernike_sum(coefficients, -FREQUENCY, 0), even)


def test_a_beam_tilt_turns_phases_by_the_cube_of_the_frequency_along_it() -> None:
    wavelength = float(electron_wavelength_angstrom(torch.tensor([300.0], dtype=torch.float64)))
    tilted = with_beam_tilt((0.5,), (0.2, -0.3), 2.7, wavelength)
    expected = -2 * math.pi * 2.7e7 * wavelength**2 * R2 * (0.2e-3 * X - 0.3e-3 * Y)
    torch.testing.assert_close(odd_phase(tilted, FREQUENCY), expected + 0.5 * Y)
    # A file that gives a tilt gives it in place of coma.
    assert with_beam_tilt((0.0, 0.0, 7.0, 5.0, 5.0), (0.0, 0.0), 2.7, wavelength) == (0, 0, 7, 0, 0)
    assert with_beam_tilt((), (0.2, 0.2), 0.0, wavelength) == (0, 0, 0, 0, 0)


def test_even_terms_do_what_defocus_and_phase_shift_do() -> None:
    ctf = microscope(
        2, defocus_u_angstrom=15_000.0, defocus_v_angstrom=15_000.0, phase_shift_deg=20.0, amplitude_contrast=0.1
    )
    # Of the second particle alone; its group comes first.
    own = 40.0
    even = EvenAberration.of(torch.tensor([1, 0]), [(0.0, 0.0, own), ()])
    assert even is not None
    wavelength = electron_wavelength_angstrom(ctf.voltage_kv)
    moved = torch.tensor([0.0, 1.0]) * own
    # RELION's phase is the negative of ours: own (2 k^2 - 1) takes from defocus and adds to the shift.
    expected = replace(
        ctf,
        defocus_u_angstrom=ctf.defocus_u_angstrom - 2 * moved / (math.pi * wavelength),
        defocus_v_angstrom=ctf.defocus_v_angstrom - 2 * moved / (math.pi * wavelength),
        phase_shift_deg=ctf.phase_shift_deg + torch.rad2deg(moved),
    )
    frequency, pixel = frequency_grid(16), torch.tensor([3.0, 3.5])
    found, wanted = (transfer_at(one, frequency, pixel) for one in (replace(ctf, even_aberration=even), expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert (found[1] - transfer_at(ctf, frequency, pixel)[1]).abs().max() > 0.5


def test_even_aberrations_travel_with_their_particles() -> None:
    ctf = microscope(
        3, defocus_u_angstrom=9_000.0, defocus_v_angstrom=8_000.0, phase_shift_deg=0.0, amplitude_contrast=0.1
    )
    even = EvenAberration.of(torch.tensor([0, 1, 0]), [(0.3,), (0.0, 2.0, 9.0)])
    whole, grid = replace(ctf, even_aberration=even), frequency_grid(8)[None] / 3
    for rows in (slice(1, 3), torch.tensor([2, 0])):
        torch.testing.assert_close(
            contrast_transfer_function(whole[rows], grid), contrast_transfer_function(whole, grid)[rows]
        )
    torch.testing.assert_close(
        contrast_transfer_function(whole.to(torch.device("cpu")), grid), contrast_transfer_function(whole, grid)
    )
    assert EvenAberration.of(torch.tensor([0]), [()]) is None
