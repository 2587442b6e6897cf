"""From a projection to what an image shows of it: the microscope's contrast transfer, and what whitens the noise.

Images are stored divided by the root of their noise's spectrum; whatever is compared with them is divided likewise,
here and nowhere else, so all others see white noise of unit variance.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoformer_dist.physics.aberrations import EvenAberration


@dataclass(frozen=True, slots=True)
class NoiseFilter:
    """By what images were multiplied to whiten their noise: one curve per optics group.

    Attributes
    ----------
    group
        ``(particles,)``: whose curve.
    gain
        ``(groups, shells)``: at 0, 1, 2, ... cycles over the images' field of view; straight lines between them.
    length_angstrom
        ``(groups,)``: side of that field of view. Neither cropping nor padding in Fourier space changes it.
    """

    group: Int[Tensor, " particles"]
    gain: Float[Tensor, "groups shells"]
    length_angstrom: Float[Tensor, " groups"]

    def __getitem__(self, rows: Tensor | slice) -> "NoiseFilter":
        return NoiseFilter(self.group[rows], self.gain, self.length_angstrom)

    def each(self, change: Callable[[Tensor], Tensor]) -> "NoiseFilter":
        """The same filter with something done to each tensor."""
        return NoiseFilter(change(self.group), change(self.gain), change(self.length_angstrom))

    def at(self, radius_per_angstrom: Float[Tensor, "grids h w"]) -> Float[Tensor, "particles h w"]:
        """Gain of each particle's images at frequencies in 1/angstrom."""
        shells = self.gain.shape[1]
        position = (radius_per_angstrom * _per_particle(self.length_angstrom[self.group])).clamp_max(shells - 1)
        below = position.long().clamp_max(shells - 2)
        place, curves = below + _per_particle(self.group.long() * shells), self.gain.ravel()
        return torch.lerp(curves[place], curves[place + 1], position - below)


@dataclass(frozen=True, slots=True)
class CTFParams:
    """One value per particle; every field but the last two has shape ``(particles,)``.

    Defocus is positive for underfocus; the astigmatism angle runs from +x towards +y. Without a noise filter, images
    were not whitened: their noise is white. Odd aberrations are none of the CTF's: images are freed of them.
    """

    defocus_u_angstrom: Float[Tensor, " particles"]
    defocus_v_angstrom: Float[Tensor, " particles"]
    defocus_angle_deg: Float[Tensor, " particles"]
    phase_shift_deg: Float[Tensor, " particles"]
    voltage_kv: Float[Tensor, " particles"]
    spherical_aberration_mm: Float[Tensor, " particles"]
    amplitude_contrast: Float[Tensor, " particles"]
    noise_filter: NoiseFilter | None = field(default=None, kw_only=True)
    even_aberration: EvenAberration | None = field(default=None, kw_only=True)

    def __getitem__(self, rows: slice | Tensor) -> "CTFParams":
        noise, even = self.noise_filter, self.even_aberration
        return CTFParams(
            *(getattr(self, name)[rows] for name in CTF_NUMBERS),
            noise_filter=None if noise is None else noise[rows],
            even_aberration=None if even is None else even[rows],
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> "CTFParams":
        """The same parameters with something done to each tensor."""
        noise, even = self.noise_filter, self.even_aberration
        return CTFParams(
            *(change(getattr(self, name)) for name in CTF_NUMBERS),
            noise_filter=None if noise is None else noise.each(change),
            even_aberration=None if even is None else even.each(change),
        )

    def to(self, device: torch.device) -> "CTFParams":
        """The same values on another device."""
        return self.each(lambda values: values.to(device))


CTF_NUMBERS = tuple(each.name for each in fields(CTFParams) if not each.kw_only)
"""What `CTFParams` says about each particle by itself."""


def electron_wavelength_angstrom(voltage_kv: Float[Tensor, " particles"]) -> Float[Tensor, " particles"]:
    """Relativistic wavelength of the electron, in angstrom (0.0197 at 300 kV)."""
    volts = voltage_kv.double() * 1e3
    return (12.2643247 / torch.sqrt(volts * (1 + 0.978466e-6 * volts))).to(voltage_kv.dtype)


def contrast_transfer_function(
    params: CTFParams, frequency_per_angstrom: Float[Tensor, "grids h w 2"]
) -> Float[Tensor, "particles h w"]:
    """How strongly images show each spatial frequency, with sign: the microscope's transfer, whitened as they are.

    Parameters
    ----------
    params
        One value per particle.
    frequency_per_angstrom
        ``(particles, h, w, 2)``, or one grid ``(1, h, w, 2)`` for all: frequency (x, y) in 1/angstrom, zero first.

    Returns
    -------
    ctf
        ``sin(gamma)``, the amplitude contrast at zero frequency, times the noise filter where there is one.

    Raises
    ------
    ValueError
        If an amplitude contrast leaves [0, 1): check the optics table of the particle file. Not on a GPU, which would
        have to be waited for at every step: a store's are looked at when it is read.

    Notes
    -----
    gamma = pi lambda df k^2 - pi/2 Cs lambda^3 k^4 + phase + atan(w / sqrt(1 - w^2)), after Rohou & Grigorieff (2015),
    less even aberrations.
    CryoDRGN's CTF is the negative of ours and multiplies the data by -1: the same thing. No envelope.
    """
    contrast = params.amplitude_contrast
    if contrast.device.type == "cpu":
        refuse_impossible_contrast(contrast)
    kx, ky = frequency_per_angstrom.unbind(-1)
    k2 = kx.square() + ky.square()
    angle = torch.atan2(ky, kx) - _per_particle(torch.deg2rad(params.defocus_angle_deg))
    mean = _per_particle((params.defocus_u_angstrom + params.defocus_v_angstrom) / 2)
    half_difference = _per_particle((params.defocus_u_angstrom - params.defocus_v_angstrom) / 2)
    wavelength = _per_particle(electron_wavelength_angstrom(params.voltage_kv))
    defocus = mean + half_difference * torch.cos(2 * angle)
    aberration = _per_particle(params.spherical_aberration_mm * 1e7)
    constant = torch.deg2rad(params.phase_shift_deg) + torch.asin(contrast)
    gamma = (
        torch.pi * wavelength * defocus * k2
        - (torch.pi / 2) * aberration * wavelength**3 * k2.square()
        + _per_particle(constant)
    )
    if params.even_aberration is not None:
        # RELION's phase is the negative of ours.
        gamma = gamma - params.even_aberration.at(frequency_per_angstrom)
    transfer = torch.sin(gamma)
    return transfer if params.noise_filter is None else transfer * params.noise_filter.at(k2.sqrt())


def refuse_impossible_contrast(contrast: Float[Tensor, " particles"]) -> None:
    """Raise `ValueError` if an amplitude contrast leaves [0, 1)."""
    if bool(((contrast < 0) | (contrast >= 1)).any()):
        raise ValueError("amplitude contrast must lie in [0, 1): check the optics table of the particle file")


def transfer_at(
    params: CTFParams, frequency: Float[Tensor, "*grid 2"], pixel_size_angstrom: Float[Tensor, " particles"]
) -> Float[Tensor, "particles *grid"]:
    """`contrast_transfer_function` at frequencies in cycles per pixel, for images of these pixel sizes."""
    per_angstrom = frequency.reshape(1, -1, 1, 2) / pixel_size_angstrom[:, None, None, None]
    return contrast_transfer_function(params, per_angstrom).reshape(-1, *frequency.shape[:-1])


def _per_particle(values: Tensor) -> Tensor:
    """Stand a column of per-particle values before a grid."""
    return values[:, None, None]
