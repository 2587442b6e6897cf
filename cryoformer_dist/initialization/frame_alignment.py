"""The frame of the molecule that found poses refer to, brought back to that of the given ones.

A map and all its poses may turn together unpunished. With a model of the motion they may even turn by another amount
at every conformation: nothing in images says which part of a molecule stands still, and a rigid map prefers what
blurs least, which on an arm that swings by 120 degrees turns the body by 7 degrees either way. Where the given poses
came from says it: they are wrong one by one, not on average over the particles of a conformation.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.physics.pose import Pose, nearest_rotation, rotation_from_axis_angle

# Particles whose equations are written out together: of a million they would take a gigabyte.
_BLOCK = 2**16


def _as_it_is(sums: Tensor) -> Tensor:
    return sums


def align_frame(
    given: Pose,
    found: Pose,
    latents: Float[Tensor, "particles dimensions"] | None = None,
    total: Callable[[Tensor], Tensor] = _as_it_is,
) -> Pose:
    """Found poses without the drift from the given ones that many particles share.

    Parameters
    ----------
    given, found
        Of the same particles.
    latents
        Conformations: the drift is then an affine function of them, without them one rotation and one offset of the
        molecule.
    total
        Makes of a sum over these particles that over all of them: `sum_over_ranks` where each rank has its share.

    Returns
    -------
    pose
        What a particle has found for itself stays its own.
    """
    basis = torch.ones(len(found.rotation), 1, dtype=torch.float64, device=found.rotation.device)
    if latents is not None:
        basis = torch.cat([basis, latents.double()], dim=1)
    drift = given.rotation.mT @ found.rotation
    # The rotation nearest to the mean is that nearest to the sum.
    common = nearest_rotation(total(drift.double().sum(0))).T.to(drift)
    # The skew part of a rotation is its axis times the sine of its angle: linear for drifts, bounded for outliers.
    turn = basis @ _fit([(basis, _axial(drift @ common).double())], total)
    rotation = found.rotation @ common @ rotation_from_axis_angle(turn.to(drift))
    # The image of an offset of the molecule is a shift.
    seen = rotation[:, :2].double()
    moved = (found.shift_angstrom - given.shift_angstrom).double()
    blocks = zip(*(torch.split(each, _BLOCK) for each in (seen, basis, moved)), strict=True)
    equations = ((torch.einsum("pij,pk->pikj", s, b).flatten(2).flatten(0, 1), m.reshape(-1, 1)) for s, b, m in blocks)
    offset = basis @ _fit(equations, total).reshape(-1, 3)
    return Pose(rotation, found.shift_angstrom - torch.einsum("pij,pj->pi", seen, offset).to(drift))


def _fit(equations: Iterable[tuple[Tensor, Tensor]], total: Callable[[Tensor], Tensor]) -> Tensor:
    """Least squares by normal equations, which are sums over particles; of equally good solutions the smallest.

    Parameters
    ----------
    equations
        Blocks of ``(equations, unknowns)`` and ``(equations, columns)``.
    total
        As of `align_frame`.
    """
    sums = [(design.mT @ design, design.mT @ values) for design, values in equations]
    normal, right = (total(torch.stack(each).sum(0)) for each in zip(*sums, strict=True))
    fitted: Tensor = torch.linalg.pinv(normal, hermitian=True) @ right
    return fitted


def _axial(matrix: Float[Tensor, "particles 3 3"]) -> Float[Tensor, "particles 3"]:
    """Vector ``v`` of a matrix's skew part, which takes ``x`` to ``v`` cross ``x``."""
    skew = (matrix - matrix.mT) / 2
    return torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=-1)
