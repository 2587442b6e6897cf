"""Where the centre is and which way the axes run: the one convention of the whole program.

Volumes are ``[z, y, x]``, images ``[y, x]``; the centre is the voxel with index ``n // 2``; points are ``(x, y, z)``
in pixels about that centre. Boxes are even.

Grids that every step needs are made once for each device and box, and are nobody's to write to: made on the way, they
would have to be copied to a GPU, which waits for it.
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CPU = torch.device("cpu")
KEPT_GRIDS = 16


def centred_axis(box: int, device: torch.device = CPU) -> Float[Tensor, " box"]:
    """Pixel coordinates along one axis: zero at index ``box // 2``."""
    return torch.arange(box, dtype=torch.float32, device=device) - box // 2


def radius_grid(box: int, dimensions: int, device: torch.device = CPU) -> Tensor:
    """Distance of every pixel from the centre, in pixels, shape ``(box,) * dimensions``."""
    axes = torch.meshgrid(*[centred_axis(box, device)] * dimensions, indexing="ij")
    return torch.stack(axes).square().sum(0).sqrt()


def lattice_points(box: int) -> Float[Tensor, "points 3"]:
    """Every lattice point as ``(x, y, z)`` pixels, in the order of ``volume.ravel()``."""
    z, y, x = torch.meshgrid(*[centred_axis(box)] * 3, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


@lru_cache(KEPT_GRIDS)
def frequency_grid(box: int, device: torch.device = CPU) -> Float[Tensor, "box half 2"]:
    """Spatial frequency ``(x, y)`` in cycles per pixel on the half plane of ``rfft2``, zero first."""
    fy, fx = torch.meshgrid(torch.fft.fftfreq(box), torch.fft.rfftfreq(box), indexing="ij")
    return torch.stack([fx, fy], dim=-1).to(device)


def told_by_conjugate(frequency: Float[Tensor, "*grid 2"]) -> Bool[Tensor, "*grid"]:
    """Where a half plane repeats itself: of each pair +-k on its column ``kx = 0``, the one of negative ``ky``."""
    repeated: Tensor = (frequency[..., 0] == 0) & (frequency[..., 1] < 0)
    return repeated


def half_disc(box: int, radius: float) -> tuple[Int[Tensor, " k"], Float[Tensor, "k 2"]]:
    """Frequencies of a half plane within a radius, in units of ``1 / box``, below Nyquist: one of each pair +-k.

    Returns
    -------
    flat_index
        Place of each in the flattened half plane; the first is zero frequency.
    frequency
        Cycles per pixel.
    """
    grid = frequency_grid(box)
    # Whole numbers: boxes of one field of view agree on which frequencies are inside.
    inside = ((grid * box).round().square().sum(-1) <= radius**2) & ~told_by_conjugate(grid)
    flat_index = torch.nonzero(inside.ravel())[:, 0]
    return flat_index, grid.reshape(-1, 2)[flat_index]


def largest_disc(box: int) -> tuple[Int[Tensor, " k"], Float[Tensor, "k 2"]]:
    """Frequencies of a box that may be compared and back-projected, as `half_disc` gives them: short of Nyquist."""
    return half_disc(box, (box - 1) / 2)


def interpolation_envelope(
    box: int, size: int, degree: int, device: torch.device = CPU
) -> Float[Tensor, "box box box"]:
    """What B-spline interpolation between the coefficients of a map padded to ``size`` multiplies the map by.

    The spline's transform, ``sinc^(degree + 1)`` along each axis; of degree 1 it is trilinear interpolation.
    """
    falloff = torch.sinc(centred_axis(box, device) / size) ** (degree + 1)
    return falloff[:, None, None] * falloff[None, :, None] * falloff[None, None, :]


@lru_cache(KEPT_GRIDS)
def half_plane_weight(box: int, device: torch.device = CPU) -> Float[Tensor, "1 half"]:
    """How often each column of the half plane stands in the full plane: 1 at the edges, 2 between (Parseval)."""
    weight = torch.full((1, box // 2 + 1), 2.0)
    weight[:, 0] = 1.0
    weight[:, -1] = 1.0
    return weight.to(device)
