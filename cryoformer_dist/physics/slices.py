"""Central slices of maps: what many images at many poses are compared with, without touching a map's points again.

`projection.project_points` splats every point of a map into every image; here each map is transformed once, and a slice
costs the same for any molecule. The tests hold them together.
"""

import copy

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.fourier import phase_ramp, volume_to_fourier
from cryoformer_dist.physics.grids import frequency_grid, half_disc, interpolation_envelope
from cryoformer_dist.physics.splat import TAPS, bspline

PADDING = 2
# Maps that are transformed at once.
_TOGETHER = 4


class TrilinearSlices:
    """Transforms of maps over one box, to be cut at the frequencies within a shell by trilinear interpolation.

    Parameters
    ----------
    voxels
        The maps.
    shell
        Highest frequency, in Fourier shells of their box; below half the box.

    Attributes
    ----------
    maps
        How many.
    flat_index
        Place of each frequency in a flattened half plane; on the column ``kx = 0`` one of each pair.
    frequency
        ``(k, 2)`` cycles/pixel.
    """

    def __init__(self, voxels: Float[Tensor, "maps box box box"], shell: int) -> None:
        self.maps, box = voxels.shape[0], voxels.shape[-1]
        # Zero frequency says nothing.
        self.flat_index, self.frequency = (each[1:].to(voxels.device) for each in half_disc(box, float(shell)))
        self._size = box * PADDING
        # Of all maps, the numbers of one frequency lie side by side: a slice gathers them together.
        self._transform = voxels.new_empty(self._size, self._size, self._size, self.maps, 2)
        # With alternating signs zero frequency comes to the middle: to roll transforms takes longer than to make them.
        sign = (-1.0) ** (torch.arange(box, device=voxels.device) - box // 2)
        signs = sign[:, None, None] * sign[:, None] * sign
        # Several maps fill a line of a processor's cache, which one alone would write in pieces.
        for kept, some in zip(self._transform.split(_TOGETHER, dim=-2), voxels.split(_TOGETHER), strict=True):
            kept.copy_(torch.view_as_real(_padded_transforms(some * signs, degree=1)).movedim(0, -2))

    def leading(self, maps: int) -> "TrilinearSlices":
        """The same of the first so many maps alone."""
        slices = copy.copy(self)
        slices._transform = self._transform[..., :maps, :].contiguous()
        slices.maps = slices._transform.shape[-2]
        return slices

    def at(self, rotation: Float[Tensor, "*poses 3 3"]) -> Complex[Tensor, "maps *poses k"]:
        """Slices: the projection along z of a map turned by A is its transform at ``A^T (kx, ky, 0)``."""
        numbers = self.parts_at(rotation)
        return torch.complex(numbers[:, 0], numbers[:, 1])

    def parts_at(self, rotation: Float[Tensor, "*poses 3 3"]) -> Float[Tensor, "maps 2 *poses k"]:
        """Real and imaginary parts of the slices, for those who go on with real numbers."""
        # The sampler counts from -1 to 1 between the outer faces of the grid; zero frequency sits at size / 2.
        middle = rotation.new_full((1, 1, 1), 1 / self._size)
        plane = 2 * rotation.reshape(-1, 3, 3)[:, :2]
        position = torch.baddbmm(middle, self.frequency.expand(len(plane), -1, 2), plane)
        channels = self._transform.flatten(-2).permute(3, 0, 1, 2)[None]
        found = torch.nn.functional.grid_sample(channels, position.reshape(1, 1, 1, -1, 3), align_corners=False)
        return found[0].reshape(-1, 2, *rotation.shape[:-2], len(self.frequency))


class SplineSlices:
    """Transforms of maps over one box, to be cut at all frequencies below Nyquist by cubic B-splines: slower, finer.

    Parameters
    ----------
    voxels
        The maps, on the CPU.
    """

    def __init__(self, voxels: Float[Tensor, "maps box box box"]) -> None:
        maps, box = voxels.shape[0], voxels.shape[-1]
        self._box, self._size = box, box * PADDING
        self._table = voxels.new_empty(self._size**3, 2 * maps)
        for index, one in enumerate(voxels.split(1)):
            self._table[:, 2 * index : 2 * index + 2] = torch.view_as_real(_padded_transforms(one, 3)).reshape(-1, 2)
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
        weights = torch.stack(bspline(position - cell), dim=-1)
        taps = torch.arange(TAPS)
        x, y, z = ((first[:, axis, None] + taps).remainder(self._size) for axis in range(3))
        index = (z[:, :, None, None] * self._size + y[:, None, :, None]) * self._size + x[:, None, None, :]
        weight = weights[:, 2, :, None, None] * weights[:, 1, None, :, None] * weights[:, 0, None, None, :]
        corners = self._table.index_select(0, index.ravel()).reshape(len(index), TAPS**3, -1)
        return torch.bmm(weight.reshape(len(index), 1, -1), corners)[:, 0]


def _padded_transforms(
    voxels: Float[Tensor, "maps box box box"], degree: int
) -> Complex[Tensor, "maps size size size"]:
    """Transforms of maps on the padded lattice, interpolation's envelope divided out first; zero frequency first."""
    box = voxels.shape[-1]
    envelope = interpolation_envelope(box, box * PADDING, degree, voxels.device)
    margin = (box * PADDING - box) // 2
    return volume_to_fourier(torch.nn.functional.pad(voxels / envelope, (margin,) * 6))
