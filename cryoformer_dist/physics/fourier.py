"""Fourier transforms with the phase origin at the centre pixel, cropping, and Fourier shell correlation."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.grids import centred_axis, frequency_grid, half_plane_weight


def image_to_fourier(images: Float[Tensor, "*batch box box"]) -> Complex[Tensor, "*batch box half"]:
    """Unnormalised transform on the half plane, zero frequency first, phase origin at the centre pixel."""
    return torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))


def fourier_to_image(coefficients: Complex[Tensor, "*batch box half"], box: int) -> Float[Tensor, "*batch box box"]:
    """Inverse of `image_to_fourier`; of the two columns kx = 0 and Nyquist only the Hermitian part is used.

    They hold both of each pair +-k. CPU libraries take that part implicitly; GPU libraries promise nothing for input
    that is not Hermitian, as a shift by half a pixel leaves it.
    """
    edges = slice(None, None, box // 2)
    own = coefficients[..., edges]
    mirrored = own.flip(-2).roll(1, dims=-2).conj()
    coefficients = coefficients.clone()
    coefficients[..., edges] = (own + mirrored) / 2
    return torch.fft.fftshift(torch.fft.irfft2(coefficients, s=(box, box)), dim=(-2, -1))


def volume_to_fourier(voxels: Float[Tensor, "*batch box box box"]) -> Complex[Tensor, "*batch box box box"]:
    """Unnormalised full transform, zero frequency first, phase origin at the centre voxel."""
    return torch.fft.fftn(torch.fft.ifftshift(voxels, dim=(-3, -2, -1)), dim=(-3, -2, -1))


def fourier_to_volume(
    coefficients: Complex[Tensor, "*batch box box box"],
) -> Float[Tensor, "*batch box box box"]:
    """Inverse of `volume_to_fourier`; the imaginary part is rounding."""
    return torch.fft.fftshift(torch.fft.ifftn(coefficients, dim=(-3, -2, -1)).real, dim=(-3, -2, -1))


def shifted(
    coefficients: Complex[Tensor, "batch box half"], shift_pixels: Float[Tensor, "batch 2"]
) -> Complex[Tensor, "batch box half"]:
    """Half planes of images whose content is moved by ``(x, y)`` pixels."""
    frequency = frequency_grid(coefficients.shape[-2], shift_pixels.device)
    return coefficients * phase_ramp(frequency, shift_pixels)


def phase_ramp(
    frequency: Float[Tensor, "*grid 2"], shift_pixels: Float[Tensor, "batch 2"]
) -> Complex[Tensor, "batch *grid"]:
    """``exp(-2 pi i k t)``, which moves the content of an image by t; frequencies in cycles per pixel."""
    turns = torch.einsum("...i,bi->b...", frequency, shift_pixels)
    return torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)


def crop_images(images: Float[Tensor, "*batch old old"], box: int) -> Float[Tensor, "*batch box box"]:
    """Band-limit images to a smaller box over the same field of view, keeping pixel values (the mean, not the sum).

    Raises
    ------
    ValueError
        If ``box`` is odd or larger than the images: ask for an even, smaller box.
    """
    old = images.shape[-1]
    _refuse_cropping(f"images of {old} pixels", old, box)
    if box == old:
        return images
    coefficients = crop_half_plane(image_to_fourier(images), box)
    # The new Nyquist lines hold one of each pair +-k: keeping them would alias direction-dependent power.
    coefficients[..., box // 2, :] = 0
    coefficients[..., :, box // 2] = 0
    return fourier_to_image(coefficients, box) * (box / old) ** 2


def crop_half_plane(coefficients: Complex[Tensor, "*batch old half"], box: int) -> Complex[Tensor, "*batch box cut"]:
    """The low frequencies of a half plane, up to the Nyquist frequency of a smaller box."""
    half = box // 2
    return torch.cat([coefficients[..., :half, : half + 1], coefficients[..., -half:, : half + 1]], dim=-2)


def crop_volume(voxels: Float[Tensor, "old old old"], box: int) -> Float[Tensor, "box box box"]:
    """Band-limit a map to a smaller box over the same field of view, keeping voxel values.

    Raises
    ------
    ValueError
        If ``box`` is odd or larger than the map.
    """
    old = voxels.shape[-1]
    _refuse_cropping(f"a map of {old} voxels", old, box)
    if box == old:
        return voxels
    return _resample(voxels, box)


def _refuse_cropping(what: str, old: int, box: int) -> None:
    if box % 2 or box > old:
        raise ValueError(f"cannot crop {what} to {box}: ask for an even box of at most {old}")


def upsample_volume(voxels: Float[Tensor, "old old old"], box: int) -> Float[Tensor, "box box box"]:
    """Interpolate a map onto the finer lattice of a larger box over the same field of view, keeping voxel values.

    Raises
    ------
    ValueError
        If ``box`` is odd or smaller than the map.
    """
    old = voxels.shape[-1]
    if box % 2 or box < old:
        raise ValueError(f"cannot upsample a map of {old} voxels to {box}: ask for an even box of at least {old}")
    if box == old:
        return voxels
    return _resample(voxels, box)


def _resample(voxels: Float[Tensor, "old old old"], box: int) -> Float[Tensor, "box box box"]:
    """A map on another lattice over the same field of view, of the frequencies that both lattices hold.

    One product of matrices along each axis: for the boxes of maps several times as fast as transforms of the whole.
    """
    matrix = _resampling_matrix(voxels.shape[-1], box, voxels.device).to(voxels.dtype)
    for _ in range(3):
        voxels = torch.tensordot(voxels, matrix, dims=([0], [1]))
    return voxels


def _resampling_matrix(old: int, box: int, device: torch.device) -> Float[Tensor, "box old"]:
    """What each old sample of an axis gives to each new one: a sum of cosines about the centre."""
    # Without the Nyquist planes, which hold one of each pair +-k.
    half = min(old, box) // 2
    frequencies = torch.arange(1 - half, half, device=device, dtype=torch.float64)
    new, given = (torch.arange(side, device=device, dtype=torch.float64) / side - 0.5 for side in (box, old))
    distances = new[:, None] - given
    return torch.cos(2 * torch.pi * distances[..., None] * frequencies).sum(-1) / old


def comparable_frequencies(box: int) -> Float[Tensor, "box half"]:
    """One where two images can be compared, zero elsewhere, on the half plane.

    No image says anything about its mean, and the Nyquist lines hold one of each pair of frequencies.
    """
    weight = torch.ones(box, box // 2 + 1)
    weight[0, 0] = 0
    weight[box // 2], weight[:, box // 2] = 0, 0
    return weight


def mean_squared_error_half_plane(
    difference: Complex[Tensor, "batch box half"], weight: Float[Tensor, "box half"] | None = None
) -> Float[Tensor, " batch"]:
    """Mean square over pixels of the real image whose transform is ``difference`` (Parseval on the half plane).

    Parameters
    ----------
    difference
        Unnormalised `rfft2` coefficients.
    weight
        Factor per frequency; columns between the edges are counted twice by this function.
    """
    box = difference.shape[-2]
    power = difference.real.square() + difference.imag.square()
    power = power * half_plane_weight(box, power.device)
    if weight is not None:
        power = power * weight
    return power.sum((-2, -1)) / box**4


FSC_REFERENCE, FSC_HALF_MAPS = 0.5, 0.143
"""Where the resolution of a map is read: against a reference, and between half maps (Rosenthal & Henderson, 2003)."""
FSC_THRESHOLDS = (FSC_REFERENCE, FSC_HALF_MAPS)


@dataclass(frozen=True, slots=True)
class FSCCurve:
    """Correlation of two maps on Fourier shells ``0 .. box // 2 - 1``; shell ``s`` is at ``s / (box * pixel size)``."""

    correlation: Float[Tensor, " shells"]
    box_size: int
    pixel_size_angstrom: float

    @property
    def frequency_per_angstrom(self) -> Float[Tensor, " shells"]:
        """Spatial frequency of each shell in 1/angstrom."""
        return torch.arange(len(self.correlation)) / (self.box_size * self.pixel_size_angstrom)

    @property
    def area(self) -> float:
        """Mean correlation over shells 1 .. box / 2 - 1: 1 for identical maps."""
        return float(self.correlation[1:].mean())

    def resolution_angstrom(self, threshold: float) -> float:
        """Resolution of the last shell before the first one below the threshold (RELION's rule).

        The Nyquist limit when no shell falls below; the box when the first shell already does.
        """
        below = torch.nonzero(self.correlation[1:] < threshold)
        if len(below) == 0:
            return 2 * self.pixel_size_angstrom
        last_good = max(int(below[0, 0]), 1)
        return self.box_size * self.pixel_size_angstrom / last_good


def fourier_shell_correlation(
    first: Float[Tensor, "box box box"],
    second: Float[Tensor, "box box box"],
    pixel_size_angstrom: float,
    mask: Float[Tensor, "box box box"] | None = None,
) -> FSCCurve:
    """Correlation of two maps per Fourier shell; ignores scale, and offset beyond shell 0.

    A shell where either map has no power counts as 0, not 1: an empty map agrees with nothing.

    Parameters
    ----------
    first, second
        Maps of one box.
    pixel_size_angstrom
        Voxel size of both.
    mask
        Multiplied into both maps first.

    Returns
    -------
    On the CPU.
    """
    if mask is not None:
        first, second = first * mask, second * mask
    box = first.shape[-1]
    a, b = volume_to_fourier(first.double()), volume_to_fourier(second.double())
    shell = _shells(box, a.device)
    cross = _shell_sum((a * b.conj()).real, shell, box)
    power = (_shell_sum(a.abs().square(), shell, box) * _shell_sum(b.abs().square(), shell, box)).sqrt()
    # Rounding leaves about 1e-32 of the strongest shell's power in shells that are empty.
    floor = power.max() * 1e-20
    correlation = torch.where(power > floor, cross / power.clamp_min(1e-300), torch.zeros_like(cross))
    return FSCCurve(correlation.float().cpu(), box, pixel_size_angstrom)


def to_real_vectors(coefficients: Complex[Tensor, "*batch k"]) -> Float[Tensor, "*batch twice"]:
    """Coefficients as real numbers, real and imaginary part of each: products of these add up to real parts."""
    return torch.view_as_real(coefficients).flatten(start_dim=-2)


def spectrum(voxels: Float[Tensor, "box box box"]) -> Float[Tensor, " shells"]:
    """Root-mean-square amplitude of a map on Fourier shells ``0 .. box // 2 - 1``."""
    box = voxels.shape[-1]
    shell = _shells(box, voxels.device)
    power = _shell_sum(volume_to_fourier(voxels.double()).abs().square(), shell, box)
    return (power / _shell_sum(torch.ones_like(shell, dtype=torch.float64), shell, box)).sqrt().float()


def weighted_shells(
    voxels: Float[Tensor, "box box box"], weight: Float[Tensor, " shells"]
) -> Float[Tensor, "box box box"]:
    """A map with Fourier shells ``0 .. box // 2 - 1`` multiplied by their weights; what lies beyond them is dropped."""
    box = voxels.shape[-1]
    weight = torch.nn.functional.pad(weight.to(voxels.device), (0, box))
    per_coefficient = weight[_shells(box, voxels.device)].reshape(box, box, box)
    return fourier_to_volume(volume_to_fourier(voxels) * per_coefficient)


def _shells(box: int, device: torch.device) -> Tensor:
    """Shell of every coefficient, zero frequency first, flattened."""
    axis = torch.fft.ifftshift(centred_axis(box, device))
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (z.square() + y.square() + x.square()).sqrt().round().long().ravel()


def _shell_sum(values: Tensor, shell: Tensor, box: int) -> Tensor:
    """Total of a quantity over each Fourier shell."""
    # The corners lie at less than the box.
    return values.new_zeros(box).scatter_add_(0, shell, values.ravel())[: box // 2]
