import numpy as np
import pytest
import torch

from cryoformer_dist.initialization.search_rounds import draw_cone, list_shifts
from cryoformer_dist.physics.pose import rotation_angle_deg, rotation_from_axis_angle


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_candidates_hold_the_pose_so_far_and_keep_within_their_bounds() -> None:
    cone = draw_cone(400, 20.0, _generator(8))
    angle = rotation_angle_deg(cone, torch.eye(3).expand_as(cone))
    assert torch.equal(cone[0], torch.eye(3))
    assert 18 < float(angle.max()) <= 20.001
    # Even in volume: half the radius holds an eighth.
    assert 0.05 < float((angle < 10).float().mean()) < 0.22
    shifts = list_shifts(1.0, 0.25)
    assert [0.0, 0.0] in shifts.tolist()
    assert float(shifts.norm(dim=1).max()) == pytest.approx(1.0)
    assert float(shifts.sum(0).abs().max()) < 1e-5
    assert len(shifts) == len(torch.unique(shifts, dim=0)) == 49
    assert list_shifts(0.0, 1.0).tolist() == [[0.0, 0.0]]


def test_candidates_are_nearer_to_any_rotation_than_a_quarter_more_at_random() -> None:
    def draw_at_random(count: int, seed: int) -> torch.Tensor:
        axis = torch.randn(count, 3, generator=_generator(seed))
        share = torch.rand(count, 1, generator=_generator(seed + 100)) ** (1 / 3)
        return rotation_from_axis_angle(float(np.deg2rad(20.0)) * share * axis / axis.norm(dim=1, keepdim=True))

    def miss(cone: torch.Tensor) -> float:
        """Mean squared angle to the nearest candidate."""
        targets = draw_at_random(500, 20)
        shape = (len(targets), len(cone), 3, 3)
        angle = rotation_angle_deg(targets[:, None].expand(shape), cone.expand(shape))
        return float(angle.amin(1).square().mean())

    even = max(miss(draw_cone(64, 20.0, _generator(seed))) for seed in range(5))
    assert even < np.mean([miss(draw_at_random(80, seed)) for seed in range(5)])
    assert not torch.equal(draw_cone(64, 20.0, _generator(0)), draw_cone(64, 20.0, _generator(1)))
