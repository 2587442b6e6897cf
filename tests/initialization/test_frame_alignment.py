import numpy as np
import pytest
import torch

from cryoformer_dist.initialization import frame_alignment
from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.physics.pose import (
    Pose,
    random_rotations,
    rotation_angle_deg,
    rotation_from_axis_angle,
    squared_frobenius,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_all_poses_of_a_half_share_is_taken_back() -> None:
    given = Pose(random_rotations(50, _generator(5)), 5 * torch.randn(50, 2, generator=_generator(6)))
    turn, offset = random_rotations(1, _generator(7))[0], torch.tensor([3.0, -8.0, 5.0])
    # The same images of a molecule whose frame is turned and whose origin lies elsewhere.
    drifted = Pose(given.rotation @ turn, given.shift_angstrom + (given.rotation @ offset)[:, :2])
    back = align_frame(given, drifted)
    assert torch.allclose(back.rotation, given.rotation, atol=1e-5)
    assert torch.allclose(back.shift_angstrom, given.shift_angstrom, atol=1e-3)
    # What a particle has found for itself stays its own.
    own = Pose(drifted.rotation.clone(), drifted.shift_angstrom.clone())
    own.rotation[7] = rotation_from_axis_angle(torch.tensor([0.5, 0.0, 0.0])) @ own.rotation[7]
    kept = squared_frobenius(align_frame(given, own).rotation, given.rotation)
    assert float(kept[7]) == pytest.approx(8 * np.sin(0.25) ** 2, rel=0.1)
    assert float(kept.sum() - kept[7]) < 0.02


def test_a_drift_that_follows_the_conformation_is_taken_back_and_what_a_particle_found_stays() -> None:
    count = 200
    given = Pose(random_rotations(count, _generator(8)), 5 * torch.randn(count, 2, generator=_generator(9)))
    latents = torch.randn(count, 2, generator=_generator(10))
    # Turns of some degrees per unit of each coordinate, and an origin that moves with them.
    turn = rotation_from_axis_angle(latents @ torch.tensor([[0.05, -0.02, 0.03], [0.0, 0.04, -0.01]]))
    offset = latents @ torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]])
    rotation = given.rotation @ turn
    own = rotation_from_axis_angle(0.02 * torch.randn(count, 3, generator=_generator(11)))
    drifted = Pose(own @ rotation, given.shift_angstrom + torch.einsum("pij,pj->pi", rotation, offset)[:, :2])
    back = align_frame(given, drifted, latents)
    error = rotation_angle_deg(back.rotation, own @ given.rotation)
    assert float(error.mean()) < 0.1 * float(rotation_angle_deg(drifted.rotation, given.rotation).mean())
    assert float((back.shift_angstrom - given.shift_angstrom).norm(dim=1).mean()) < 0.3
    rigid = align_frame(given, drifted)
    assert float(rotation_angle_deg(rigid.rotation, own @ given.rotation).mean()) > 5 * float(error.mean())


def test_ranks_that_hold_alike_particles_take_back_the_drift_that_one_alone_would() -> None:
    given = Pose(random_rotations(40, _generator(12)), torch.zeros(40, 2))
    found = Pose(given.rotation @ random_rotations(1, _generator(13)), torch.randn(40, 2, generator=_generator(14)))
    latents = torch.randn(40, 2, generator=_generator(15))
    alone, among_three = align_frame(given, found, latents), align_frame(given, found, latents, lambda sums: 3 * sums)
    torch.testing.assert_close(among_three.rotation, alone.rotation)
    torch.testing.assert_close(among_three.shift_angstrom, alone.shift_angstrom)


def test_many_particles_are_fitted_block_by_block_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Pose(random_rotations(40, _generator(12)), torch.zeros(40, 2))
    found = Pose(given.rotation @ random_rotations(1, _generator(13)), torch.randn(40, 2, generator=_generator(14)))
    latents = torch.randn(40, 2, generator=_generator(15))
    at_once = align_frame(given, found, latents)
    monkeypatch.setattr(frame_alignment, "_BLOCK", 7)
    in_blocks = align_frame(given, found, latents)
    torch.testing.assert_close(in_blocks.shift_angstrom, at_once.shift_angstrom)
