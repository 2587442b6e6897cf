import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from support.blobs import blobs, correlation, no_shift

from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.pose import (
    Pose,
    axis_angle_from_rotation,
    nearest_rotation,
    random_rotations,
    relion_euler_from_rotation,
    rotation_angle_deg,
    rotation_from_6d,
    rotation_from_axis_angle,
    rotation_from_relion_euler,
    sixd_from_rotation,
    squared_frobenius,
    turned_in_plane,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_rotations(matrices: torch.Tensor) -> None:
    identity = torch.eye(3, dtype=matrices.dtype).expand_as(matrices)
    assert torch.allclose(matrices @ matrices.transpose(-1, -2), identity, atol=2e-6)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(len(matrices), dtype=matrices.dtype), atol=2e-6)


def test_relion_euler_matrix_is_intrinsic_zyz_transposed():
    angles = (torch.rand(50, 3, generator=generator()) - 0.5) * 720
    # RELION turns the axes, scipy the vectors: its matrix is the transpose.
    expected = Rotation.from_euler("ZYZ", angles.double().numpy(), degrees=True).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(rotation_from_relion_euler(angles).numpy(), expected, atol=5e-6)


@pytest.mark.parametrize(
    ("euler", "vector", "lands_on"),
    [
        # psi, and rot at tilt 0, turn the content from +y towards +x.
        *[((0.0, 0.0, 90.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)), ((90.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))],
        # tilt about y brings +x up the beam and the beam's axis to -x.
        *[((0.0, 90.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), ((0.0, 90.0, 0.0), (0.0, 0.0, 1.0), (-1.0, 0.0, 0.0))],
    ],
)
def test_quarter_turns_bring_the_axes_where_relion_puts_them(euler, vector, lands_on):
    landed = rotation_from_relion_euler(torch.tensor(euler)) @ torch.tensor(vector)
    assert torch.allclose(landed, torch.tensor(lands_on), atol=1e-6)


def test_relion_euler_round_trip_keeps_the_angles():
    draw = torch.rand(500, 3, generator=generator(1))
    angles = draw * torch.tensor([358.0, 176.0, 358.0]) + torch.tensor([-179.0, 2.0, -179.0])
    back = relion_euler_from_rotation(rotation_from_relion_euler(angles))
    assert torch.allclose(back, angles, atol=2e-3)


@pytest.mark.parametrize("tilt", [0.0, 180.0, 0.001, 179.999])
@pytest.mark.parametrize(("rot", "psi"), [(0.0, 0.0), (30.0, 20.0), (-170.0, 95.0), (120.0, -120.0)])
def test_relion_euler_round_trip_keeps_the_rotation_at_the_poles(tilt, rot, psi):
    rotation = rotation_from_relion_euler(torch.tensor([rot, tilt, psi]))
    back = relion_euler_from_rotation(rotation)
    assert torch.isfinite(back).all()
    assert float(back[1]) == pytest.approx(tilt, abs=0.02)
    assert torch.allclose(rotation_from_relion_euler(back), rotation, atol=2e-4 if tilt % 180 else 2e-6)


def test_zero_rotation_vector_is_the_identity_both_ways():
    zero = torch.zeros(1, 3)
    assert torch.equal(rotation_from_axis_angle(zero)[0], torch.eye(3))
    assert torch.allclose(axis_angle_from_rotation(torch.eye(3)[None]), zero)
    assert torch.isfinite(axis_angle_from_rotation(torch.eye(3)[None])).all()


def test_rotation_vector_is_rodrigues_transposed_for_any_length():
    vectors = torch.randn(200, 3, generator=generator(2)) * 3
    assert int((vectors.norm(dim=-1) > torch.pi).sum()) > 50
    expected = Rotation.from_rotvec(vectors.double().numpy()).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(rotation_from_axis_angle(vectors).numpy(), expected, atol=1e-5)


def test_rotation_vector_round_trip_below_pi():
    vectors = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator(3)), dim=-1)
    vectors = vectors * torch.linspace(1e-4, 3.13, 200)[:, None]
    back = axis_angle_from_rotation(rotation_from_axis_angle(vectors))
    assert torch.allclose(back, vectors, atol=2e-5)


def test_rotation_vector_beyond_pi_comes_back_as_the_short_way_round():
    back = axis_angle_from_rotation(rotation_from_axis_angle(torch.tensor([[0.0, 0.0, 1.5 * torch.pi]])))
    assert torch.allclose(back, torch.tensor([[0.0, 0.0, -0.5 * torch.pi]]), atol=1e-5)


@pytest.mark.parametrize(
    "axis", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.6, -0.8, 0.0), (-1.0, 1.0, 1.0)]
)
def test_half_turn_survives_the_round_trip_about_any_axis(axis):
    unit = torch.nn.functional.normalize(torch.tensor([axis]), dim=-1)
    half_turn = 2 * unit[..., None] * unit[..., None, :] - torch.eye(3)
    back = axis_angle_from_rotation(half_turn)
    assert float(back.norm()) == pytest.approx(torch.pi, abs=1e-5)
    assert torch.allclose(rotation_from_axis_angle(back), half_turn, atol=2e-6)


def test_six_numbers_round_trip_a_rotation():
    rotation = random_rotations(100, generator(4))
    assert torch.allclose(rotation_from_6d(sixd_from_rotation(rotation)), rotation, atol=2e-6)


def test_any_six_numbers_give_a_rotation_and_their_scale_does_not_matter():
    six = torch.randn(100, 6, generator=generator(5))
    rotation = rotation_from_6d(six)
    assert_rotations(rotation)
    scaled = six * torch.tensor([3.0, 3.0, 3.0, 0.2, 0.2, 0.2])
    assert torch.allclose(rotation_from_6d(scaled), rotation, atol=1e-5)


def test_random_rotations_are_rotations_and_uniform():
    rotation = random_rotations(20_000, generator(6))
    assert_rotations(rotation[:1000])
    # Each entry has mean 0 and variance 1/3: five standard errors.
    assert float(rotation.mean(0).abs().max()) < 5 * (1 / 3 / 20_000) ** 0.5
    assert torch.allclose(rotation.square().mean(0), torch.full((3, 3), 1 / 3), atol=0.012)
    # Density of the angle is (1 - cos) / pi, so its mean is pi / 2 + 2 / pi.
    angle = rotation_angle_deg(rotation, torch.eye(3).expand_as(rotation))
    assert float(torch.deg2rad(angle).mean()) == pytest.approx(torch.pi / 2 + 2 / torch.pi, abs=0.025)


def test_random_rotations_repeat_with_the_seed():
    assert torch.equal(random_rotations(5, generator(7)), random_rotations(5, generator(7)))
    assert not torch.equal(random_rotations(5, generator(7)), random_rotations(5, generator(8)))


def test_nearest_rotation_returns_a_rotation_as_it_is_and_repairs_a_noisy_one():
    rotation = random_rotations(100, generator(9))
    assert torch.allclose(nearest_rotation(rotation), rotation, atol=3e-6)
    noisy = 1.7 * rotation + 0.02 * torch.randn(100, 3, 3, generator=generator(10))
    repaired = nearest_rotation(noisy)
    assert_rotations(repaired)
    assert float(rotation_angle_deg(repaired, rotation).max()) < 3


def test_nearest_rotation_of_a_mirror_is_still_a_rotation_and_the_best_one():
    mirrored = random_rotations(50, generator(11)) @ torch.diag(torch.tensor([0.5, 1.0, -1.2]))
    nearest = nearest_rotation(mirrored)
    assert_rotations(nearest)
    found = (nearest - mirrored).square().sum((-1, -2))
    for other in random_rotations(300, generator(12)):
        assert bool((found <= (other - mirrored).square().sum((-1, -2)) + 1e-5).all())


@pytest.mark.parametrize("degrees", [0.01, 1.0, 60.0, 120.0, 179.0, 180.0])
def test_angle_between_rotations_is_the_angle_turned(degrees):
    axis = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, -0.5]]), dim=-1)
    start = random_rotations(1, generator(13)).double()
    turned = rotation_from_axis_angle(axis.double() * np.deg2rad(degrees)) @ start
    tolerance = {179.0: 0.01, 180.0: 0.01}.get(degrees, 1e-4)
    assert float(rotation_angle_deg(start, turned)) == pytest.approx(degrees, abs=tolerance)


def test_squared_frobenius_runs_from_zero_to_eight():
    rotation = random_rotations(3, generator(14))
    assert torch.equal(squared_frobenius(rotation, rotation), torch.zeros(3))
    opposite = rotation @ torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    assert torch.allclose(squared_frobenius(rotation, opposite), torch.full((3,), 8.0), atol=1e-5)


def test_rows_of_a_pose_keep_rotation_and_shift_together():
    pose = Pose(random_rotations(5, generator(15)), torch.arange(10.0).reshape(5, 2))
    picked = pose[torch.tensor([3, 1])]
    assert torch.equal(picked.rotation, pose.rotation[[3, 1]])
    assert picked.shift_angstrom.tolist() == [[6, 7], [2, 3]]


@pytest.mark.parametrize("tilt", [25.0, 90.0, 160.0])
def test_turned_in_plane_images_of_one_viewing_direction_look_the_same(tilt):
    psi = torch.tensor([0.0, 35.0, 90.0, 180.0, -140.0])
    rotation = rotation_from_relion_euler(torch.stack([torch.full((5,), 50.0), torch.full((5,), tilt), psi], dim=1))
    images = blobs(sigma=2.0).images(rotation, no_shift(5), 32)
    turned = turned_in_plane(images, rotation)
    # The first has nothing to turn, the others become the first.
    assert torch.allclose(turned[0], images[0], atol=1e-5)
    assert float(correlation(turned[1:], turned[:1]).min()) > 0.995
    assert float(correlation(images[1:], images[:1]).max()) < 0.95


def test_turning_in_plane_moves_a_pixel_by_minus_psi_about_the_centre_pixel():
    image = torch.zeros(1, 8, 8)
    # At (x, y) = (2, -1) about the centre.
    image[0, 3, 6] = 1
    rotation = rotation_from_relion_euler(torch.tensor([[20.0, 70.0, 90.0]]))
    turned = turned_in_plane(image, rotation)[0]
    x, y, _ = rotation_from_relion_euler(torch.tensor([0.0, 0.0, -90.0])) @ torch.tensor([2.0, -1.0, 0.0])
    assert float(turned[round(4 + float(y)), round(4 + float(x))]) == pytest.approx(1, abs=1e-4)
    assert float(turned.sum()) == pytest.approx(1, abs=1e-4)


def test_views_along_the_pole_are_turned_by_some_angle_about_the_centre():
    rotation = rotation_from_relion_euler(torch.tensor([[30.0, 0.0, 40.0], [30.0, 180.0, 40.0]]))
    # Whatever the angle, a round image is the same afterwards.
    images = torch.exp(-radius_grid(48, 2).square() / 100).expand(2, -1, -1)
    torch.testing.assert_close(turned_in_plane(images, rotation), images, atol=0.01, rtol=0)
