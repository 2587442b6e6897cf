"""How strong the noise of images is at each frequency, as their background tells it.

What noise of a given spectrum would show in a background is known exactly (`noise_background`), so the spectrum that
explains what is seen is found by maximum likelihood (as MASTER does for maps of the sky), with one assumption: that it
is smooth. At the lowest frequencies, where a background says little, that smoothness is what decides.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.data.noise_background import FIELD, Background

# Four knots a shell, then two; up to here one, then each so much farther out than the last.
_FIRST_KNOTS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
_DENSE_KNOTS, _KNOT_RATIO = 12, 1.09
# Twice a log likelihood.
_CLEARLY_BETTER = 20.0
# How stiff a spectrum is: at the lowest frequencies, of which a background says little and sharply bent spectra are
# unlikely; beyond three cycles, where 2 would round a kink as EMPIAR-10076 has by a fifth of the power, and less
# scatters no more, even of 20 images.
_STIFFNESS_LOW, _STIFFNESS, _STIFF_CYCLES = 2.0, 0.25, 3.0
_FIT_STEPS, _LONGEST_STEP = 15, 1.0
_SETTLING_STEPS = 4
# Power that departs by less from white noise weighs a likelihood by as much: nothing that anybody would see.
_NEGLIGIBLE = 0.03


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Noise power by frequency.

    Attributes
    ----------
    power
        ``(shells,)``: at 0, 1, 2, ... cycles over the box, to the corners of the plane; of mean 1 over the plane.
    error
        Relative standard error of each.
    mean
        By what the power was divided to make its mean 1.
    field
        Power of the noise that the images are cut from, as `Background.seen` takes it, likewise divided.
    wraps
        Whether the noise goes round the box, as only simulated noise does.
    evidence
        Twice the logarithm of how much better it explains what is seen than white noise.
    """

    power: NDArray[np.float64]
    error: NDArray[np.float64]
    mean: float
    field: Float[NDArray[np.float64], "field field"]
    wraps: bool
    evidence: float

    @property
    def is_white(self) -> bool:
        """Whether it departs from white noise no more than it would by chance, or nowhere by what would matter."""
        return self.evidence < _CLEARLY_BETTER or bool((np.abs(self.power - 1) <= _NEGLIGIBLE).all())


def plane_radius(box: int) -> Float[NDArray[np.float64], "box box"]:
    """Frequency of each place of the full plane of a transform, in cycles over the box."""
    axis = np.fft.fftfreq(box) * box
    radius: NDArray[np.float64] = np.hypot(axis[:, None], axis)
    return radius


def without_nyquist_lines(box: int) -> Float[NDArray[np.float64], "box box"]:
    """Zero where a plane holds one of each pair +-k, which cropping empties; else one."""
    mask = np.ones((box, box))
    mask[box // 2], mask[:, box // 2] = 0, 0
    return mask


def on_plane(power: Float[NDArray[np.float64], " shells"], box: int) -> Float[NDArray[np.float64], "box box"]:
    """A spectrum at every frequency of the plane, zero on the Nyquist lines."""
    spread = np.interp(plane_radius(box), np.arange(len(power)), power)
    plane: NDArray[np.float64] = spread * without_nyquist_lines(box)
    return plane


def per_shell(plane: Float[NDArray[np.float64], "box box"]) -> Float[NDArray[np.float64], " shells"]:
    """Mean over each shell of the plane without its Nyquist lines, shells by rounded radius."""
    shell, counted = _shells(plane.shape[-1])
    total = np.bincount(shell.ravel(), (plane * counted).ravel())
    return total / np.maximum(np.bincount(shell.ravel(), counted.ravel()), 1)


def _shells(box: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return np.rint(plane_radius(box)).astype(np.int64), without_nyquist_lines(box)


def windowed_power(
    images: Float[Tensor, "images box box"], window: Float[NDArray[np.float64], "box box"], field: int
) -> Float[NDArray[np.float64], "field field"]:
    """Mean power of images in a window, at every frequency of a field: 1 for white unit noise, unwindowed."""
    transform = torch.fft.rfft2(images * torch.from_numpy(window).to(images.dtype), s=(field, field))
    half = (transform.real.square() + transform.imag.square()).double().mean(0) / window.size
    power = np.empty((field, field))
    power[:, : field // 2 + 1] = half.numpy()
    # The other half are the same frequencies with the other sign.
    power[:, field // 2 + 1 :] = np.roll(power[::-1, field // 2 - 1 : 0 : -1], 1, axis=0)
    return power


def fit_spectrum(
    power: Float[NDArray[np.float64], "field field"], images: int, background: Background, *, band_limited: bool
) -> Spectrum:
    """Noise spectrum that explains the power seen in a background.

    Boxes are taken to be cut from micrographs, unless noise at opposite edges agrees, as only simulated noise does.

    Parameters
    ----------
    power
        Mean of images without offset and gradient, in the background's window, on a field of `FIELD` boxes.
    images
        How many it is the mean of.
    background
        Of those images.
    band_limited
        Whether the Nyquist lines of the images are empty.
    """
    box = len(background.weight)
    kinds = (_FieldKind(box, wraps, band_limited) for wraps in (False, True))
    cut, wrapped = (_fit_field(power, images, background, kind) for kind in kinds)
    fit = wrapped if wrapped.misfit < cut.misfit - _CLEARLY_BETTER else cut
    found = np.exp(fit.log_power) @ fit.tents
    # What is wanted is the power of the coefficients of whole images: to cut them out has mixed the field's.
    power_by_shell = settle_power(found, background.boxed_power(fit.field, 0.0))
    mean = mean_over_plane(power_by_shell, box)
    return Spectrum(power_by_shell / mean, fit.error, mean, fit.field / mean, fit is wrapped, fit.evidence)


def settle_power(
    power: Float[NDArray[np.float64], " shells"], plane: Float[NDArray[np.float64], "box box"]
) -> Float[NDArray[np.float64], " shells"]:
    """The curve that whitens noise of a plane's power: by it, each shell is left with a power of 1 on average.

    Parameters
    ----------
    power
        A curve that comes near.
    plane
        Of whole images; need not be radial.
    """
    settled, radius = power.copy(), plane_radius(len(plane))
    for _ in range(_SETTLING_STEPS):
        gain = np.interp(radius, np.arange(len(settled)), settled**-0.5)
        left = per_shell(plane * gain**2)[: len(settled)]
        settled[: len(left)] *= np.where(left > 0, left, 1)
        # An offset is all that is gone at zero, which nothing is compared at.
        settled[0] = settled[1]
    return settled


@dataclass(frozen=True, slots=True)
class _FieldKind:
    """How images come from a field of noise.

    Attributes
    ----------
    box
        Of the images.
    wraps
        Whether the noise of each goes round its box; else they are cut from something larger.
    band_limited
        Whether their Nyquist lines are empty.
    """

    box: int
    wraps: bool
    band_limited: bool

    def tents(self) -> Float[NDArray[np.float64], "knots field field"]:
        """How much of each knot's value each frequency of the field has."""
        field = FIELD * self.box
        tents = _tents(plane_radius(field) / FIELD, _knots(self.box))
        axis = np.ones(field)
        if self.band_limited:
            # Cropping has taken away what is on the Nyquist lines, and half of what lies between them and the next.
            axis = (self.box / 2 - np.abs(np.fft.fftfreq(field) * self.box)).clip(0, 1)
        if self.wraps:
            # Periodic noise has whole frequencies only.
            axis *= FIELD * (np.arange(field) % FIELD == 0)
        return tents * axis[:, None] * axis


@dataclass(frozen=True, slots=True)
class _Fit:
    """Spectrum of a field that explains what is seen in boxes of it, and how badly (twice a log likelihood)."""

    log_power: NDArray[np.float64]
    error: NDArray[np.float64]
    tents: NDArray[np.float64]
    field: NDArray[np.float64]
    misfit: float
    evidence: float


def _fit_field(power: NDArray[np.float64], images: int, background: Background, kind: _FieldKind) -> _Fit:
    """Fit the spectrum of a field of some kind."""
    weight, knots, (shell, counted) = background.weight, _knots(kind.box), _shells(len(power))
    # The offset of a background has been removed: at zero nothing is left, by rounding.
    seen, response = per_shell(power)[1:], _response(background, kind)[1:]
    independent = np.square(np.square(weight).sum()) / (weight**4).sum() / power.size
    count = np.bincount(shell.ravel(), counted.ravel())[1:] * images * independent / 2
    used = count > 0
    log_power, covariance = _fit_log_power(seen[used], response[used], count[used], _bending(knots))
    flat = np.full_like(log_power, np.log(seen.sum() / response.sum()))
    misfit, misfit_of_white = (
        _measure_misfit(seen[used], response[used] @ np.exp(each), count[used]) for each in (log_power, flat)
    )
    tents = _tents(np.arange(int(np.ceil(kind.box / 2**0.5)) + 1.0), knots)
    error = np.sqrt(np.einsum("ks,kl,ls->s", tents, covariance, tents))
    return _Fit(
        log_power,
        error,
        tents,
        np.einsum("k,kyx->yx", np.exp(log_power), kind.tents()),
        misfit,
        misfit_of_white - misfit,
    )


def mean_over_plane(power: Float[NDArray[np.float64], " shells"], box: int) -> float:
    """Mean of a spectrum over the frequencies that images are compared at."""
    compared = without_nyquist_lines(box)
    compared[0, 0] = 0
    return float((on_plane(power, box) * compared).sum() / compared.sum())


def _fit_log_power(
    seen: NDArray[np.float64], response: NDArray[np.float64], count: NDArray[np.float64], bending: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the power at the knots, by Gauss and Newton, and their covariance."""
    log_power = np.full(response.shape[1], np.log(seen.sum() / response.sum()))
    stiffness = bending.T @ bending
    for _ in range(_FIT_STEPS):
        expected = response @ np.exp(log_power)
        slope = response * np.exp(log_power) / expected[:, None]
        curvature = slope.T @ (slope * count[:, None]) + stiffness
        pull = slope.T @ (count * (seen - expected) / expected) - stiffness @ log_power
        log_power = log_power + np.linalg.solve(curvature, pull).clip(-_LONGEST_STEP, _LONGEST_STEP)
    return log_power, np.linalg.inv(curvature)


def _measure_misfit(seen: NDArray[np.float64], expected: NDArray[np.float64], count: NDArray[np.float64]) -> float:
    """Twice a log likelihood that is missed."""
    ratio = seen / expected
    return 2 * float(count @ (ratio - 1 - np.log(ratio)))


def _knots(box: int) -> NDArray[np.float64]:
    """Frequencies between which a spectrum is a straight line: dense at low ones, where it is steep."""
    last = box / 2
    dense = range(int(_FIRST_KNOTS[-1]) + 1, _DENSE_KNOTS + 1)
    knots = [knot for knot in (*_FIRST_KNOTS, *map(float, dense)) if knot < last]
    while knots[-1] * _KNOT_RATIO < last - 0.5:
        knots.append(knots[-1] * _KNOT_RATIO)
    return np.array([*knots, last, box / 2**0.5])


def _tents(frequency: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(knots, ...)``: how much of each knot's value a frequency has; below the first knot, all of that."""
    return np.stack([np.interp(frequency, knots, unit) for unit in np.eye(len(knots))])


def _bending(knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Changes of slope at the inner knots, of values over the logarithm of the frequency, in units of likely ones."""
    step, low = np.diff(np.log(knots)), 1 / (1 + (knots[1:-1] / _STIFF_CYCLES) ** 4)
    stiffness = _STIFFNESS + (_STIFFNESS_LOW - _STIFFNESS) * low
    rows = np.zeros((len(knots) - 2, len(knots)))
    for row, (before, after) in enumerate(pairwise(step.tolist())):
        rows[row, row : row + 3] = 1 / before, -1 / before - 1 / after, 1 / after
        rows[row] *= 0.5 * stiffness[row] / np.sqrt((before + after) / 2)
    return rows


@lru_cache(8)
def _response(background: Background, kind: _FieldKind) -> Float[NDArray[np.float64], "shells knots"]:
    """Power that unit power at each knot shows in the background, by shells of the field."""
    return np.stack([per_shell(background.seen(tent, background.weight)) for tent in kind.tents()], axis=1)
