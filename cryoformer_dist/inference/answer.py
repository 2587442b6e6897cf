"""What images say about their particles, as ranks exchange it and tables keep it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.physics.pose import Pose


@dataclass(frozen=True, slots=True)
class Answer:
    """What images say about their particles.

    Attributes
    ----------
    latent, deviation
        Of each, and the width of its posterior along each dimension.
    pose, amplitude
        Of each.
    weight, alone
        How probable it is that the image shows a particle, with or without something beside it; and without.
    """

    latent: Float[Tensor, "particles dimensions"]
    deviation: Float[Tensor, "particles dimensions"]
    pose: Pose
    amplitude: Float[Tensor, " particles"]
    weight: Float[Tensor, " particles"]
    alone: Float[Tensor, " particles"]

    def pack(self) -> Float[Tensor, "particles numbers"]:
        """All of it side by side, as ranks exchange it."""
        pose = (self.pose.rotation.flatten(1), self.pose.shift_angstrom)
        numbers = torch.stack([self.amplitude, self.weight, self.alone], dim=1)
        return torch.cat([*pose, numbers, self.latent, self.deviation], dim=1)

    @staticmethod
    def unpack(numbers: Float[Tensor, "particles numbers"]) -> "Answer":
        """Inverse of `pack`."""
        rotation, shift, amplitude, weight, alone, rest = torch.split(
            numbers, [9, 2, 1, 1, 1, numbers.shape[1] - 14], dim=1
        )
        latent, deviation = rest.chunk(2, dim=1)
        pose = Pose(rotation.reshape(-1, 3, 3), shift)
        return Answer(latent, deviation, pose, amplitude[:, 0], weight[:, 0], alone[:, 0])
