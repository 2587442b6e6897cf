"""Phase errors of the microscope beyond defocus, astigmatism and spherical aberration, as Zernike polynomials.

RELION's conventions (Zivanov, Nakane & Scheres, 2020): polynomials of the frequency in 1/angstrom, which is not scaled
to a unit disc. Those odd in the frequency (beam tilt, trefoil) turn the phases of the projection; those even in it add
to the phase whose sine is the CTF.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Of odd polynomials of the third order, those that a beam tilt makes: places of y and x, and those of the shift that
# comes with them.
_COMA_Y, _COMA_X, _SHIFT_Y, _SHIFT_X = 3, 4, 0, 1


@dataclass(frozen=True, slots=True)
class EvenAberration:
    """Even aberrations of some particles: one list of coefficients per optics group.

    Attributes
    ----------
    group
        ``(particles,)``: whose coefficients.
    coefficients
        ``(groups, terms)``: in RELION's order, see `zernike_terms`.
    """

    group: Int[Tensor, " particles"]
    coefficients: Float[Tensor, "groups terms"]

    @staticmethod
    def of(group: Int[Tensor, " particles"], coefficients: Sequence[Sequence[float]]) -> "EvenAberration | None":
        """Those of particles of these groups; ``None`` where no group has any."""
        most = max(map(len, coefficients), default=0)
        if not most:
            return None
        padded = [[*some, *[0.0] * (most - len(some))] for some in coefficients]
        return EvenAberration(group, torch.tensor(padded))

    def __getitem__(self, rows: Tensor | slice) -> "EvenAberration":
        return EvenAberration(self.group[rows], self.coefficients)

    def each(self, change: Callable[[Tensor], Tensor]) -> "EvenAberration":
        """The same with something done to each tensor."""
        return EvenAberration(change(self.group), change(self.coefficients))

    def at(self, frequency_per_angstrom: Float[Tensor, "grids h w 2"]) -> Float[Tensor, "particles h w"]:
        """Phase of each particle's images at frequencies, in radians, as RELION adds it to its own."""
        own = self.coefficients[self.group]
        return zernike_sum(own.T[:, :, None, None], frequency_per_angstrom, first_order=0)


def zernike_terms(count: int, first_order: int) -> list[tuple[int, int]]:
    """Angular and radial order ``(m, n)`` of the first polynomials, odd (``first_order`` 1) or even (0).

    Orders go up by two; of one order, m goes from -n to n by two: (-1, 1), (1, 1), (-3, 3), (-1, 3), ...
    """
    terms: list[tuple[int, int]] = []
    order = first_order
    while len(terms) < count:
        terms += [(m, order) for m in range(-order, order + 1, 2)]
        order += 2
    return terms[:count]


def zernike_sum(
    coefficients: Sequence[float] | Tensor, frequency: Float[Tensor, "*grid 2"], first_order: int
) -> Tensor:
    """Sum of Zernike polynomials at frequencies (x, y) in 1/angstrom; coefficients may be one per particle each."""
    radius, angle = frequency.norm(dim=-1), torch.atan2(frequency[..., 1], frequency[..., 0])
    total = torch.zeros_like(radius)
    for coefficient, (m, n) in zip(coefficients, zernike_terms(len(coefficients), first_order), strict=True):
        total = total + coefficient * _polynomial(m, n, radius, angle)
    return total


def odd_phase(
    coefficients: Sequence[float], frequency_per_angstrom: Float[Tensor, "*grid 2"]
) -> Float[Tensor, "*grid"]:
    """By how many radians odd aberrations turn the phases of an image's transform."""
    return zernike_sum(coefficients, frequency_per_angstrom.double(), first_order=1)


def with_beam_tilt(
    odd: Sequence[float],
    tilt_mrad: tuple[float, float],
    spherical_aberration_mm: float,
    wavelength_angstrom: float,
) -> tuple[float, ...]:
    """Odd coefficients that hold a beam tilt (x, y) too, in place of what they say of coma themselves.

    Its phase is ``-2 pi Cs lambda^2 |k|^2 (k tilt)``; as RELION reads files that have both.
    """
    coefficients = [*odd, *[0.0] * (_COMA_X + 1 - len(odd))]
    scale = -2 * math.pi * spherical_aberration_mm * 1e7 * wavelength_angstrom**2 * 1e-3 / 3
    for tilt, coma, shift in ((tilt_mrad[0], _COMA_X, _SHIFT_X), (tilt_mrad[1], _COMA_Y, _SHIFT_Y)):
        # |k|^2 x is a third of the polynomial (3 |k|^2 - 2) x, and two thirds of x.
        coefficients[coma] = scale * tilt
        coefficients[shift] += 2 * scale * tilt
    return tuple(coefficients)


def _polynomial(m: int, n: int, radius: Tensor, angle: Tensor) -> Tensor:
    """Zernike polynomial, of amplitude one at radius one: a cosine of the angle for m >= 0, else a sine."""
    absolute = abs(m)
    radial = torch.zeros_like(radius)
    for k in range((n - absolute) // 2 + 1):
        below = math.factorial(k) * math.factorial((n + absolute) // 2 - k) * math.factorial((n - absolute) // 2 - k)
        radial = radial + (-1) ** k * math.factorial(n - k) // below * radius ** (n - 2 * k)
    return radial * (torch.cos(m * angle) if m >= 0 else torch.sin(-m * angle))
