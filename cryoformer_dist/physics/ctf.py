"""The contrast transfer function of the microscope."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CTFParams:
    """One value per particle; every field has shape ``(particles,)``.

    Defocus is positive for underfocus; the astigmatism angle runs from +x towards +y.
    """

    defocus_u_angstrom: Float[Tensor, " particles"]
    defocus_v_angstrom: Float[Tensor, " particles"]
    defocus_angle_deg: Float[Tensor, " particles"]
    phase_shift_deg: Float[Tensor, " particles"]
    voltage_kv: Float[Tensor, " particles"]
    spherical_aberration_mm: Float[Tensor, " particles"]
    amplitude_contrast: Float[Tensor, " particles"]

    def __getitem__(self, rows: slice | Tensor) -> "CTFParams":
        return CTFParams(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> "CTFParams":
        """The same values on another device."""
        return CTFParams(*(getattr(self, field.name).to(device) for field in fields(self)))


def electron_wavelength_angstrom(voltage_kv: Float[Tensor, " particles"]) -> Float[Tensor, " particles"]:
    """Relativistic wavelength of the electron, in angstrom (0.0197 at 300 kV)."""
    volts = voltage_kv.double() * 1e3
    return (12.2643247 / torch.sqrt(volts * (1 + 0.978466e-6 * volts))).to(voltage_kv.dtype)


def contrast_transfer_function(
    params: CTFParams, frequency_per_angstrom: Float[Tensor, "grids h w 2"]
) -> Float[Tensor, "particles h w"]:
    """How strongly the microscope passes each spatial frequency, with sign.

    Parameters
    ----------
    params
        One value per particle.
    frequency_per_angstrom
        ``(particles, h, w, 2)``, or one grid ``(1, h, w, 2)`` for all: frequency (x, y) in 1/angstrom, zero first.

    Returns
    -------
    ctf
        ``sin(gamma)`` in [-1, 1]; equal to the amplitude contrast at zero frequency.

    Raises
    ------
    ValueError
        If an amplitude contrast leaves [0, 1): check the optics table of the particle file. Not on a GPU, which would
        have to be waited for at every step: a store's are looked at when it is read.

    Notes
    -----
    gamma = pi lambda df k^2 - pi/2 Cs lambda^3 k^4 + phase + atan(w / sqrt(1 - w^2)), after Rohou & Grigorieff (2015).
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
    return torch.sin(gamma)


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
