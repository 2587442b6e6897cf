"""The frame of the molecule that found poses refer to, brought back to that of the given ones.

A map and all its poses may turn together unpunished. With a model of the motion they may even turn by another amount
at every conformation: nothing in images says which part of a molecule stands still, and a rigid map prefers what
blurs least, which on an arm that swings by 120 degrees turns the body by 7 degrees either way. Where the given poses
came from says it: they are wrong one by one, not on average over the particles of a conformation.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.physics.pose import Pose, nearest_rotation, rotation_from_axis_angle


def align_frame(given: Pose, found: Pose, latents: Float[Tensor, "particles dimensions"] | None = None) -> Pose:
    """Found poses without the drift from the given ones that many particles share.

    Parameters
    ----------
    given, found
        Of the same particles.
    latents
        Conformations, mean 0: the drift is then an affine function of them, without them one rotation and one offset of
        the molecule.

    Returns
    -------
    pose
        What a particle has found for itself stays its own.
    """
    count = len(found.rotation)
    basis = torch.ones(count, 1) if latents is None else torch.nn.functional.pad(latents, (1, 0), value=1.0)
    drift = given.rotation.mT @ found.rotation
    common = nearest_rotation(drift.mean(0)).T
    # The skew part of a rotation is its axis times the sine of its angle: linear for drifts, bounded for outliers.
    vector = _axial(drift @ common)
    turn = basis @ torch.linalg.lstsq(basis, vector, driver="gelsd").solution
    rotation = found.rotation @ common @ rotation_from_axis_angle(turn)
    # The image of an offset of the molecule is a shift.
    seen = rotation[:, :2]
    design = torch.einsum("pij,pk->pikj", seen, basis).reshape(2 * count, -1)
    moved = (found.shift_angstrom - given.shift_angstrom).reshape(-1, 1)
    offset = basis @ torch.linalg.lstsq(design, moved, driver="gelsd").solution.reshape(-1, 3)
    return Pose(rotation, found.shift_angstrom - torch.einsum("pij,pj->pi", seen, offset))


def _axial(matrix: Float[Tensor, "particles 3 3"]) -> Float[Tensor, "particles 3"]:
    """Vector ``v`` of a matrix's skew part, which takes ``x`` to ``v`` cross ``x``."""
    skew = (matrix - matrix.mT) / 2
    return torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=-1)
