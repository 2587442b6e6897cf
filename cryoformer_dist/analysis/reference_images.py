"""Many maps projected at the poses of many images at once: slices of their transforms.

`physics.projection.project_points` splats every point of every map; here each map is transformed once and a slice of
all maps is gathered per image, which costs the same for any molecule. The tests hold the two together.
"""

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.fourier import phase_ramp
from cryoformer_dist.physics.grids import centred_axis, frequency_grid
from cryoformer_dist.physics.projection import OVERSAMPLING

_TAPS = 4


class Slices:
    """Central slices of maps by cubic B-spline interpolation of their twofold padded, deconvolved transforms.

    Parameters
    ----------
    volumes
        ``(maps, box, box, box)``.
    """

    def __init__(self, volumes: Float[np.ndarray, "maps box box box"]) -> None:
        maps, box = volumes.shape[0], volumes.shape[-1]
        self._box, self._size = box, OVERSAMPLING * box
        axis = torch.special.sinc(centred_axis(box) / self._size)
        # A field multiplied by the reciprocal of the spline's transform is interpolated by the spline exactly.
        correction = (axis[:, None, None] * axis[:, None] * axis) ** -4
        self._table = torch.empty(self._size**3, 2 * maps)
        centre = slice(box // 2, box // 2 + box)
        for index, voxels in enumerate(volumes):
            density = torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32))
            padded = torch.zeros(self._size, self._size, self._size)
            padded[centre, centre, centre] = density * correction
            transform = torch.fft.fftn(torch.fft.ifftshift(padded))
            self._table[:, 2 * index : 2 * index + 2] = torch.view_as_real(transform).reshape(-1, 2)
        frequency = frequency_grid(box).reshape(-1, 2)
        # Beyond the sphere of the maps' own box a slice would leave their lattice.
        self._inside = torch.nonzero(frequency.norm(dim=-1) < 0.5).ravel()
        self._frequency = torch.nn.functional.pad(frequency[self._inside] * self._size, (0, 1))

    def project(
        self, rotation: Float[Tensor, "particles 3 3"], shift_pixels: Float[Tensor, "particles 2"]
    ) -> Complex[Tensor, "particles maps box half"]:
        """Projections as half-plane transforms, before the CTF; arguments as of `project_points`.

        Frequencies in the corners, beyond Nyquist in radius, are zero.
        """
        particles, maps = len(rotation), self._table.shape[1] // 2
        sampled = torch.stack([self._slice(matrix) for matrix in rotation])
        half = self._box // 2 + 1
        values = torch.zeros(particles, self._box * half, maps, dtype=torch.complex64)
        values[:, self._inside] = torch.view_as_complex(sampled.reshape(particles, len(self._inside), maps, 2))
        phase = phase_ramp(frequency_grid(self._box), shift_pixels)
        return values.reshape(particles, self._box, half, maps).permute(0, 3, 1, 2) * phase[:, None]

    def _slice(self, rotation: Tensor) -> Tensor:
        """Gather ``(frequencies, 2 maps)`` on the plane whose normal is the beam."""
        position = self._frequency @ rotation
        cell = position.floor()
        first = cell.long() - 1
        weights = _bspline_weights(position - cell)
        taps = torch.arange(_TAPS)
        x, y, z = ((first[:, axis, None] + taps).remainder(self._size) for axis in range(3))
        index = (z[:, :, None, None] * self._size + y[:, None, :, None]) * self._size + x[:, None, None, :]
        weight = weights[:, 2, :, None, None] * weights[:, 1, None, :, None] * weights[:, 0, None, None, :]
        corners = self._table.index_select(0, index.ravel()).reshape(len(index), _TAPS**3, -1)
        return torch.bmm(weight.reshape(len(index), 1, -1), corners)[:, 0]


def _bspline_weights(fraction: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3 4"]:
    """Cubic B-spline weights of the four grid lines around each coordinate."""
    f, g = fraction, 1 - fraction
    first, last = g**3 / 6, f**3 / 6
    second = 2 / 3 - f.square() + 3 * last
    return torch.stack([first, second, 1 - first - second - last, last], dim=-1)
