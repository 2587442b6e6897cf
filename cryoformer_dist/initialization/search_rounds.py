"""From coarse to fine: which rotations and shifts a pose search tries at every particle in each round."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.physics.pose import rotation_from_axis_angle

# Powers of one over the plastic number: the most even sequence in a square.
_PLASTIC_STEPS = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True, slots=True)
class SearchRound:
    """What one round of a search tries at every particle.

    Attributes
    ----------
    shell
        Highest frequency that is compared, in Fourier shells of the box.
    cone_deg
        Largest rotation tried away from the pose so far.
    candidates
        Rotations tried.
    shift_radius, shift_step
        Shifts tried about the one so far, in pixels of the box cropped for ``shell``.
    """

    shell: int
    cone_deg: float
    candidates: int
    shift_radius: float
    shift_step: float

    @property
    def box(self) -> int:
        """Smallest box that holds the shell with room to interpolate."""
        return 2 * (self.shell + 2)


ROUNDS = (
    SearchRound(8, 30.0, 64, 3.0, 0.5),
    SearchRound(8, 25.0, 64, 2.0, 0.5),
    SearchRound(10, 20.0, 64, 1.5, 0.5),
    SearchRound(12, 14.0, 64, 1.0, 0.33),
    SearchRound(14, 9.0, 40, 1.0, 0.25),
    SearchRound(18, 5.0, 40, 0.5, 0.25),
    SearchRound(22, 3.0, 28, 0.5, 0.25),
)
"""Coarse to fine; a step of the cone is about one radian of phase at the rim of the particle. Finer than the last round
is left to the gradients of training."""

ROUNDS_BY_CONFORMATION = (
    (SearchRound(14, 8.0, 40, 0.5, 0.25), SearchRound(18, 6.0, 40, 0.5, 0.25)),
    (SearchRound(18, 6.0, 40, 0.5, 0.25), SearchRound(22, 4.0, 40, 0.5, 0.25)),
)
"""Once more from medium to fine with maps of the conformations, which are learned anew at better poses in between."""


def select_rounds(rounds: Sequence[SearchRound], box: int) -> Sequence[SearchRound]:
    """Take the rounds whose shells a box holds; for a very small box one at what it holds."""
    return [each for each in rounds if each.box <= box] or [replace(rounds[0], shell=box // 2 - 2)]


def draw_cone(count: int, cone_deg: float, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Draw rotations evenly spread up to an angle; the first is none.

    Points of Hammersley in the ball of rotation vectors, all moved by one random offset: two thirds as many reach as
    near to every rotation as points that know nothing of one another.
    """
    place, offset = torch.arange(count)[:, None], torch.rand(3, generator=generator)
    radius = ((place[:, 0] + offset[0]) / count) ** (1 / 3)
    sphere = (place * torch.tensor(_PLASTIC_STEPS) + offset[1:]) % 1
    height, turn = 2 * sphere[:, 0] - 1, 2 * torch.pi * sphere[:, 1]
    across = (1 - height.square()).sqrt()
    axis = torch.stack([across * turn.cos(), across * turn.sin(), height], dim=1)
    vector = axis * (np.deg2rad(cone_deg) * radius[:, None])
    # The innermost point.
    vector[0] = 0
    return rotation_from_axis_angle(vector)


def list_shifts(radius: float, step: float) -> Float[Tensor, "shifts 2"]:
    """List the shifts on a grid within a radius, none among them."""
    reach = int(radius / step)
    axis = torch.arange(-reach, reach + 1) * step
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    return grid[grid.norm(dim=1) <= radius + 1e-6]
