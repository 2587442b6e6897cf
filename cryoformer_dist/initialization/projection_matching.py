"""A reference map that many images are compared with at many poses."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.fourier import phase_ramp
from cryoformer_dist.physics.slices import TrilinearSlices


class ReferenceMap:
    """A map to be compared with at the frequencies within a shell.

    Parameters
    ----------
    voxels
        The map.
    shell
        Highest frequency, in Fourier shells of its box.

    Attributes
    ----------
    slices
        The map's transform.
    """

    def __init__(self, voxels: Float[Tensor, "box box box"], shell: int) -> None:
        self.slices = TrilinearSlices(voxels[None], shell)

    def find_most_probable(
        self,
        weighted: Complex[Tensor, "particles k"],
        energy: Float[Tensor, " particles"],
        transfer: Float[Tensor, "particles k"],
        rotation: Float[Tensor, "particles candidates 3 3"],
        log_prior: Float[Tensor, "particles candidates"],
        shifts: Float[Tensor, "shifts 2"],
    ) -> tuple[Tensor, Tensor]:
        """Find the most probable candidate rotation and shift of each particle: places in both lists."""
        posterior = self.log_posterior(weighted, energy, transfer, rotation, log_prior, shifts)
        winner = posterior.flatten(1).argmax(1)
        return winner // len(shifts), winner % len(shifts)

    def log_posterior(
        self,
        weighted: Complex[Tensor, "particles k"],
        energy: Float[Tensor, " particles"],
        transfer: Float[Tensor, "particles k"],
        rotation: Float[Tensor, "particles candidates 3 3"],
        log_prior: Float[Tensor, "particles candidates"],
        shifts: Float[Tensor, "shifts 2"],
    ) -> Float[Tensor, "particles candidates shifts"]:
        """How probable each candidate is, up to a constant per particle; a particle's numbers depend on itself alone.

        Parameters
        ----------
        weighted
            Images centred by their shift so far, times ``transfer``.
        energy
            Summed squares of each image's coefficients.
        transfer
            CTF, times the magnification.
        rotation
            Candidates.
        log_prior
            Of the candidate rotations, up to a constant.
        shifts
            Candidates, pixels; as stored shifts, what centres the image.
        """
        real, imaginary = self.slices.parts_at(rotation)[0]
        power = (real.square() + imaginary.square()) @ transfer.square()[..., None]
        # Fewer shifts than rotations: the image is moved, not the slices.
        moved = weighted[:, None] * phase_ramp(self.slices.frequency, shifts)
        match = real @ moved.real.mT + imaginary @ moved.imag.mT
        explained = 2 * match - power
        # What the best match leaves of an image is noise: it says how much a mismatch weighs against the prior.
        left = energy - explained.flatten(1).amax(1)
        noise = torch.maximum(left, 1e-6 * energy) / len(self.slices.flat_index)
        posterior: Tensor = explained / noise[:, None, None] + log_prior[..., None]
        return posterior
