"""Central slices of maps: what many images at many poses are compared with, without touching a map's points again."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.fourier import volume_to_fourier
from cryoformer_dist.physics.grids import centred_axis, frequency_grid

PADDING = 2


class VolumeSlices:
    """Transforms of maps over one box, to be cut at the frequencies within a shell.

    Parameters
    ----------
    voxels
        The maps.
    shell
        Highest frequency, in Fourier shells of their box; below half the box.

    Attributes
    ----------
    place
        Of each frequency in a flattened half plane; on the column ``kx = 0`` one of each pair.
    frequency
        ``(k, 2)`` cycles/pixel.

    Notes
    -----
    Trilinear interpolation on a twofold padded grid, its envelope divided out of the maps first.
    """

    def __init__(self, voxels: Float[Tensor, "maps box box box"], shell: int) -> None:
        maps, box = voxels.shape[0], voxels.shape[-1]
        grid = frequency_grid(box).to(voxels.device)
        radius = grid.norm(dim=-1) * box
        # On the column kx = 0 half says it all.
        inside = (radius > 0) & (radius <= shell) & ~((grid[..., 0] == 0) & (grid[..., 1] < 0))
        self.place = torch.nonzero(inside.ravel())[:, 0]
        self.frequency = grid.reshape(-1, 2)[self.place]
        self._size = box * PADDING
        # Trilinear interpolation between coefficients multiplies the map by sinc^2: divide it out first.
        falloff = (torch.sinc(centred_axis(box) / self._size) ** 2).to(voxels.device)
        envelope = falloff[:, None, None] * falloff[None, :, None] * falloff[None, None, :]
        margin = (self._size - box) // 2
        # Of all maps, the numbers of one frequency lie side by side: a slice gathers them together.
        self._transform = voxels.new_empty(self._size, self._size, self._size, 2 * maps)
        for index, one in enumerate(voxels):
            padded = torch.nn.functional.pad(one / envelope, (margin,) * 6)
            transform = torch.fft.fftshift(volume_to_fourier(padded))
            self._transform[..., 2 * index], self._transform[..., 2 * index + 1] = transform.real, transform.imag

    def at(self, rotation: Float[Tensor, "*poses 3 3"]) -> Complex[Tensor, "maps *poses k"]:
        """Slices: the projection along z of a map turned by A is its transform at ``A^T (kx, ky, 0)``."""
        index = torch.einsum("pi,...ij->...pj", self.frequency * self._size, rotation[..., :2, :])
        # The sampler counts from -1 to 1 between the outer faces of the grid; zero frequency sits at size / 2.
        position = (2 * index + 1) / self._size
        channels = self._transform.permute(3, 0, 1, 2)[None]
        found = torch.nn.functional.grid_sample(channels, position.reshape(1, 1, 1, -1, 3), align_corners=False)
        numbers = found[0].reshape(-1, 2, *index.shape[:-1])
        return torch.complex(numbers[:, 0], numbers[:, 1])
