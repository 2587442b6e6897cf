"""Is the protein bright or dark? The sign is found from the data, never guessed from the kind of file."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.ctf import CTFParams
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.pose import Pose

CERTAIN_Z_SCORE = 3.0
_BLOCKS = 10
_RADIUS_FRACTION = 0.45


@dataclass(frozen=True, slots=True)
class Contrast:
    """Sign that makes images light-on-dark (``image = +CTF * projection``) and how it is known.

    Attributes
    ----------
    sign
        +1 when the source is light-on-dark already, -1 when it is dark-on-light.
    z_score
        Measured skewness in units of its standard error, positive for light-on-dark; 0 when not measured.
    how
        ``measured``, ``uncertain`` (measured, too few particles to say), ``given`` or ``assumed`` (no poses).
    """

    sign: int
    z_score: float
    how: str

    def __str__(self) -> str:
        found = "light-on-dark" if self.sign > 0 else "dark-on-light, images multiplied by -1"
        measured = f", {abs(self.z_score):.1f} standard errors" if self.how in ("measured", "uncertain") else ""
        return f"{found} ({self.how}{measured})"


def contrast_from_z_score(z_score: float) -> Contrast:
    """Judge a measurement: the contrast it supports, or light-on-dark marked uncertain."""
    if abs(z_score) < CERTAIN_Z_SCORE:
        return Contrast(1, z_score, "uncertain")
    return Contrast(1 if z_score > 0 else -1, z_score, "measured")


def contrast_z_score(
    images: Float[Tensor, "particles box box"],
    pose: Pose,
    ctf: CTFParams,
    pixel_size_angstrom: Float[Tensor, " particles"],
) -> float:
    """Skewness of the back-projected density over its jackknife error: positive when the protein is bright.

    Protein is a compact minority of the voxels, so its side of the distribution has the long tail whatever
    its shape; the statistic changes sign exactly with the images, so it favours neither answer.

    Parameters
    ----------
    images
        `(particles, box, box)`, background mean 0, of either contrast.
    pixel_size_angstrom
        `(particles,)` of each image.
    """
    box, blocks = images.shape[-1], min(_BLOCKS, len(images) // 2)
    if blocks < 2:
        return 0.0
    maps = torch.stack(
        [
            _back_project(images, pose, ctf, pixel_size_angstrom, torch.arange(block, len(images), blocks))
            for block in range(blocks)
        ]
    )
    inside = maps[:, radius_grid(box, 3) <= _RADIUS_FRACTION * box].double()
    total = inside.sum(0)
    leave_one_out = np.array([_skewness(total - inside[block]) for block in range(blocks)])
    error = float(np.sqrt((blocks - 1) * np.mean((leave_one_out - leave_one_out.mean()) ** 2)))
    return _skewness(total) / error if error > 0 else 0.0


def _back_project(
    images: Tensor, pose: Pose, ctf: CTFParams, pixel_size_angstrom: Tensor, rows: Tensor
) -> Float[Tensor, "box box box"]:
    """Map of some of the images."""
    accumulator = FourierAccumulator(images.shape[-1], float(pixel_size_angstrom[0]))
    accumulator.add(images[rows], pose[rows], ctf[rows], pixel_size_angstrom[rows])
    return accumulator.solve()


def _skewness(values: Tensor) -> float:
    """Third standardised moment."""
    centred = values - values.mean()
    return float(centred.pow(3).mean() / centred.square().mean().clamp_min(1e-300).pow(1.5))
