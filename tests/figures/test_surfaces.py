import numpy as np
import pytest
from support.rotating_blobs import blobs

from cryoformer_dist.figures.surfaces import (
    CLUSTER_COLOURS,
    View,
    cluster_colour,
    colour_at,
    colour_states,
    crop_alike,
    cut_slices,
    draw_surface,
    draw_values,
    find_best_view,
    find_common_level,
    measure_variation,
    widen_view,
)

FRONT = View(np.eye(3), 0.5, np.zeros(3))
RED = (1.0, 0.0, 0.0)


def ball(x: float, y: float, z: float, radius: float, box: int = 32) -> np.ndarray:
    """A soft ball about a point given from the centre voxel; density .5 at the radius."""
    axis = np.arange(box) - box // 2
    dz, dy, dx = np.meshgrid(axis - z, axis - y, axis - x, indexing="ij")
    return (1 / (1 + np.exp(2 * (np.sqrt(dx**2 + dy**2 + dz**2) - radius)))).astype(np.float32)


def centroid(opacity: np.ndarray) -> tuple[float, float]:
    rows, columns = np.indices(opacity.shape)
    total = opacity.sum()
    return float((columns * opacity).sum() / total), float((rows * opacity).sum() / total)


@pytest.mark.parametrize("box", [16, 32, 40])
def test_a_ball_is_drawn_with_its_radius_at_its_place(box):
    image = draw_surface(ball(2, -3, 0, 3, box), 0.5, FRONT, RED, size=120)
    pixel = 120 / box
    assert image[..., 3].sum() == pytest.approx(np.pi * (3 * pixel) ** 2, rel=0.08)
    column, row = centroid(image[..., 3])
    # The middle of the picture is the centre voxel.
    assert column == pytest.approx(59.5 + 2 * pixel, abs=0.6)
    assert row == pytest.approx(59.5 - 3 * pixel, abs=0.6)


def test_the_nearer_part_hides_the_farther():
    mark = ball(0, 0, -8, 4)
    image = draw_surface(mark + ball(0, 0, 8, 4), 0.5, FRONT, RED, highlight=mark, size=80)
    behind = draw_surface(mark + ball(0, 0, 8, 4), 0.5, FRONT, RED, highlight=ball(0, 0, 8, 4), size=80)
    assert image[40, 40, 0] - image[40, 40, 1] > 0.3
    assert abs(behind[40, 40, 0] - behind[40, 40, 1]) < 0.1


def test_a_surface_wears_the_values_of_another_map_between_the_limits():
    voxels = ball(-7, 0, 0, 4) + ball(7, 0, 0, 4)
    field = np.broadcast_to((np.arange(32.0) > 16), (32, 32, 32)).astype(np.float32)
    up, down, above = draw_values(
        voxels, 0.5, FRONT, [(field, (0.0, 1.0)), (1 - field, (0.0, 1.0)), (field, (2.0, 3.0))], size=80
    )
    left, right = up[40, 22], up[40, 57]
    # Low is grey, high is a deep red.
    assert np.ptp(left[:3]) < 0.15
    assert right[0] - right[1] > 0.15
    np.testing.assert_allclose(down[40, 57, :2] - down[40, 57, 2], left[:2] - left[2], atol=0.1)
    assert np.ptp(above[40, 57, :3]) < 0.15
    np.testing.assert_array_equal(up[..., 3], draw_surface(voxels, 0.5, FRONT, RED, size=80)[..., 3])


def test_limits_without_a_range_still_draw():
    (picture,) = draw_values(ball(0, 0, 0, 6), 0.5, FRONT, [(np.zeros((32, 32, 32)), (0.0, 0.0))], size=48)
    assert np.isfinite(picture).all()
    assert picture[..., 3].any()


def test_clusters_have_colours_of_their_own():
    colours = [cluster_colour(number) for number in range(len(CLUSTER_COLOURS))]
    assert len({*colours}) >= 10
    assert cluster_colour(len(CLUSTER_COLOURS)) == colours[0]


def test_turning_the_view_turns_the_picture_and_does_not_mirror_it():
    """Right = x, down = y, away = z; seen from the other side (turned about y) x points left."""
    turned = View(np.diag([-1.0, 1.0, -1.0]), 0.5, np.zeros(3))
    voxels = ball(7, -5, 0, 3)
    column, row = centroid(draw_surface(voxels, 0.5, turned, RED, size=96)[..., 3])
    assert column < 40
    assert row < 40


def test_light_comes_from_the_upper_left():
    image = draw_surface(ball(0, 0, 0, 9), 0.5, FRONT, RED, size=96)
    assert image[34, 34, 0] > image[62, 62, 0] + 0.15


def test_nothing_above_the_level_is_an_empty_picture():
    assert not draw_surface(ball(0, 0, 0, 5), 2.0, FRONT, RED, size=64)[..., 3].any()


def test_dust_is_hidden_and_a_second_part_of_the_molecule_is_not():
    level = 0.4
    small, large = ball(10, 0, 0, 1.2), ball(10, 0, 0, 3)
    main = ball(-4, 0, 0, 6)
    alone = draw_surface(main, level, FRONT, RED, size=96)[..., 3].sum()
    assert draw_surface(main + small, level, FRONT, RED, size=96)[..., 3].sum() == pytest.approx(alone, rel=0.01)
    assert draw_surface(main + large, level, FRONT, RED, size=96)[..., 3].sum() > 1.1 * alone


def test_level_is_between_solvent_and_molecule_for_any_scale_and_offset():
    voxels = ball(0, 0, 0, 6)
    plain = find_common_level(voxels[None])
    assert 0.2 < plain < 0.95
    assert find_common_level((40 * voxels - 7)[None]) == pytest.approx(40 * plain - 7, rel=1e-3)
    assert find_common_level(voxels[None], enclosed=0.5) > plain


def test_variation_marks_what_moves_and_only_that():
    moving = measure_variation(blobs(np.array([0.0, 90.0, 180.0, 270.0])))
    assert moving[8, 8, 7] < 0.2
    assert moving[10, 8, 12] > 0.8
    assert not measure_variation(blobs(np.zeros(3))).any()


def test_best_view_holds_every_state_in_the_picture():
    states = blobs(np.arange(8) * 45.0)
    level = find_common_level(states)
    view = find_best_view(states, level)
    np.testing.assert_allclose(view.rotation @ view.rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(view.rotation) == pytest.approx(1)
    for voxels in states:
        opacity = draw_surface(voxels, level, view, RED, size=72)[..., 3]
        assert opacity.any()
        assert not np.concatenate([opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]]).any()


def test_a_widened_view_cuts_nothing_off_at_the_frame_and_never_comes_nearer():
    states = blobs(np.arange(8) * 45.0)
    level = find_common_level(states)
    near = find_best_view(states[:1], level)
    fuller = states[3:5]
    low = 0.2 * level
    assert any(_touches_frame(draw_surface(voxels, low, near, RED, size=72)) for voxels in fuller)
    view = widen_view(near, [(states[:1], level), (fuller, low)])
    assert not any(_touches_frame(draw_surface(voxels, low, view, RED, size=72)) for voxels in fuller)
    np.testing.assert_array_equal(view.rotation, near.rotation)
    assert view.half_width > near.half_width
    same = widen_view(near, [(np.zeros((1, 8, 8, 8)), 1.0)])
    assert same.half_width == pytest.approx(near.half_width)
    np.testing.assert_allclose(same.centre, near.centre, atol=1e-12)


def _touches_frame(picture: np.ndarray) -> bool:
    opacity = picture[..., 3]
    return bool(np.concatenate([opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]]).any())


def test_colours_of_a_circle_close_and_of_a_line_do_not():
    assert colour_at(0.0, True) == colour_at(1.0, True)
    assert colour_at(0.0) != colour_at(1.0)
    assert len({*colour_states(8, True)}) == len({*colour_states(8)}) == 8
    assert len(colour_states(1)) == 1


def test_cropping_takes_the_same_rows_from_every_picture():
    pictures = [np.zeros((50, 20, 4)) for _ in range(2)]
    pictures[0][20:22, :, 3] = 1
    pictures[1][30:31, :, 3] = 1
    cropped = crop_alike(pictures, margin=2)
    assert [picture.shape[0] for picture in cropped] == [15, 15]
    np.testing.assert_array_equal(cropped[0], pictures[0][18:33])


def test_slices_show_the_plane_they_are_named_for():
    voxels = ball(6, 0, 0, 4)
    normal_to_z, normal_to_y, normal_to_x = cut_slices(voxels, (0.0, 1.0), 64)
    assert normal_to_z[32, 45] > 0.9
    assert normal_to_y[32, 45] > 0.9
    assert normal_to_x.max() < 0.2
