import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoformer_dist.exploration.rigid_fit import STILL, Movement, refine, sample, search, take_density

BOX = 24


def draw(points: np.ndarray) -> np.ndarray:
    """A map of Gaussian blobs at some places in voxels about the centre."""
    grid = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(grid, grid, grid, indexing="ij")
    away = [np.square(x - a) + np.square(y - b) + np.square(z - c) for a, b, c in points]
    return np.exp(-np.array(away) / 5).sum(axis=0).astype(np.float32)


# No turn but the whole one brings it back.
SHAPE = np.array([[0, 0, 0], [2, 0, 0], [4, 0, 0], [6, 0, 0], [0, 3, 0], [0, 0, 4], [0, 2, 4]], dtype=float)


def turn(degrees: float, axis: tuple[float, float, float], hinge: tuple[float, float, float]) -> Movement:
    direction = np.array(axis) / np.linalg.norm(axis)
    rotation = Rotation.from_rotvec(np.deg2rad(degrees) * direction).as_matrix()
    return Movement(rotation, np.array(hinge) - rotation @ np.array(hinge))


def test_an_axis_is_told_by_its_turn_direction_and_place() -> None:
    movement = turn(70, (1, 2, 2), (3, -1, 2))
    slid = Movement(movement.rotation, movement.shift + 5 * movement.axis)
    for each in (movement, slid):
        assert each.angle_deg == pytest.approx(70)
        np.testing.assert_allclose(each.axis, [1 / 3, 2 / 3, 2 / 3])
        hinge = each.nearest_on_axis(np.array([3.0, -1, 2]))
        np.testing.assert_allclose(hinge, [3, -1, 2], atol=1e-9)
    assert slid.shift @ slid.axis == pytest.approx(5)
    assert STILL.nearest_on_axis(np.zeros(3)) is None


def test_a_map_is_sampled_in_x_y_z() -> None:
    voxels = np.zeros((BOX, BOX, BOX), dtype=np.float32)
    voxels[BOX // 2 + 3, BOX // 2 + 2, BOX // 2 + 1] = 1
    assert sample(voxels, np.array([[1.0, 2, 3], [3, 2, 1], [99, 0, 0]])).tolist() == [1, 0, 0]


def test_a_small_movement_is_followed_and_a_large_one_found() -> None:
    part = take_density(np.where(draw(SHAPE) > 0.3, draw(SHAPE), 0))
    small, large = turn(15, (0, 0, 1), (0, 2, 0)), turn(140, (1, -1, 2), (0, 2, 0))
    near = refine(part, draw(small.apply(SHAPE)), STILL)
    far = search(part, draw(large.apply(SHAPE)))
    for found, true in ((near, small), (far, large)):
        assert found.angle_deg == pytest.approx(true.angle_deg, abs=2)
        assert found.axis @ true.axis > 0.995
        np.testing.assert_allclose(found.apply(SHAPE), true.apply(SHAPE), atol=0.4)
        assert part.agree(draw(true.apply(SHAPE)), found) > 0.99
