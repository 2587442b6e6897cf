"""A reference map that many images are compared with at many poses."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.fourier import volume_to_fourier
from cryoformer_dist.physics.grids import centred_axis, frequency_grid

_PADDING = 2


class Reference:
    """A map's transform, to be cut into slices at the frequencies within a shell.

    Parameters
    ----------
    voxels
        The map.
    shell
        Highest frequency, in Fourier shells of its box.

    Attributes
    ----------
    place
        Of each frequency in a flattened half plane; on the column ``kx = 0`` one of each pair.
    frequency
        ``(k, 2)`` cycles/pixel.
    """

    def __init__(self, voxels: Float[Tensor, "box box box"], shell: int) -> None:
        box = voxels.shape[-1]
        grid = frequency_grid(box)
        radius = grid.norm(dim=-1) * box
        # On the column kx = 0 half says it all.
        inside = (radius > 0) & (radius <= shell) & ~((grid[..., 0] == 0) & (grid[..., 1] < 0))
        self.place = torch.nonzero(inside.ravel())[:, 0]
        self.frequency = grid.reshape(-1, 2)[self.place]
        self._size = box * _PADDING
        # Trilinear interpolation between coefficients multiplies the map by sinc^2: divide it out first.
        falloff = torch.sinc(centred_axis(box) / self._size) ** 2
        voxels = voxels / (falloff[:, None, None] * falloff[None, :, None] * falloff[None, None, :])
        margin = (self._size - box) // 2
        padded = torch.nn.functional.pad(voxels, (margin,) * 6)
        transform = torch.fft.fftshift(volume_to_fourier(padded))
        self._transform = torch.stack([transform.real, transform.imag])[None]

    def slices(self, rotation: Float[Tensor, "particles candidates 3 3"]) -> Complex[Tensor, "particles candidates k"]:
        """Central slices: the projection along z of a map turned by A is its transform at ``A^T (kx, ky, 0)``."""
        index = torch.einsum("pi,bcij->bcpj", self.frequency * self._size, rotation[..., :2, :])
        # The sampler counts from -1 to 1 between the outer faces of the grid; zero frequency sits at size / 2.
        position = (2 * index + 1) / self._size
        flat = position.reshape(1, 1, 1, -1, 3)
        found = torch.nn.functional.grid_sample(self._transform, flat, align_corners=False)[0]
        return torch.complex(found[0], found[1]).reshape(index.shape[:-1])

    def best(
        self,
        weighted: Complex[Tensor, "particles k"],
        energy: Float[Tensor, " particles"],
        transfer: Float[Tensor, "particles k"],
        rotation: Float[Tensor, "particles candidates 3 3"],
        log_prior: Float[Tensor, "particles candidates"],
        shifts: Float[Tensor, "shifts 2"],
    ) -> tuple[Tensor, Tensor]:
        """Most probable candidate rotation and shift of each particle.

        Parameters
        ----------
        weighted
            Images centred by their shift so far, times the CTF.
        energy
            Summed squares of each image's coefficients.
        transfer
            CTF.
        rotation
            Candidates.
        log_prior
            Of the candidate rotations, up to a constant.
        shifts
            Candidates, pixels; as stored shifts, what centres the image.
        """
        slices = self.slices(rotation)
        power = (slices.abs().square() * transfer[:, None].square()).sum(-1)
        cross = slices.conj() * weighted[:, None]
        phase = -2 * torch.pi * self.frequency @ shifts.T
        # Real part of the sum over frequencies, for all shifts at once, as two products of real matrices.
        match = cross.real @ torch.cos(phase) - cross.imag @ torch.sin(phase)
        explained = 2 * match - power[..., None]
        # What the best match leaves of these images is noise: it says how much a mismatch weighs against the prior.
        left = (energy - explained.flatten(1).amax(1)).mean()
        noise = torch.maximum(left, 1e-6 * energy.mean()) / len(self.place)
        posterior = explained / noise + log_prior[..., None]
        winner = posterior.flatten(1).argmax(1)
        return winner // len(shifts), winner % len(shifts)
