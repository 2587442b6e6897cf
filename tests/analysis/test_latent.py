import numpy as np
import pytest
from support.other_device import DEVICE, other_device

from cryoformer_dist.analysis.latent import (
    balanced_accuracy,
    circular_correlation,
    cluster_class_accuracy,
    correlation,
    find_neighbours,
    find_principal_axes,
    kmeans,
    predict_class,
    predict_coordinate,
    rank_correlation,
    score_latents,
    walk_axis,
)

PARTICLES = 1500


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_principal_axes_find_the_direction_and_share_of_the_variance(rng):
    direction = np.array([3.0, 0.0, 4.0]) / 5
    latents = rng.normal(size=(PARTICLES, 1)) * 3 * direction + 0.3 * rng.normal(size=(PARTICLES, 3)) + 10
    axes = find_principal_axes(latents)
    assert abs(axes.axes[0] @ direction) > 0.999
    assert axes.explained_variance[0] == pytest.approx(9.09 / (9.09 + 0.18), abs=0.02)
    assert axes.explained_variance.sum() == pytest.approx(1)
    np.testing.assert_allclose(axes.lift(axes.project(latents)), latents, atol=1e-9)


def test_principal_axes_do_not_depend_on_the_order_of_particles(rng):
    latents = rng.normal(size=(200, 4)) * [4, 3, 2, 1]
    first, second = find_principal_axes(latents), find_principal_axes(latents[rng.permutation(200)])
    np.testing.assert_allclose(first.axes, second.axes, atol=1e-9)


def test_latents_that_are_not_finite_are_refused(rng):
    latents = rng.normal(size=(20, 2))
    latents[3, 1] = np.nan
    with pytest.raises(ValueError, match="resume"):
        find_principal_axes(latents)


def test_constant_latents_explain_no_variance():
    assert find_principal_axes(np.ones((50, 3))).explained_variance.tolist() == [0, 0, 0]


def test_cluster_centres_are_particles_of_their_own_cluster_in_order_along_the_first_axis(rng):
    groups = np.array([[0, 0], [9, 0], [3, 1], [6, -1]], dtype=np.float64)
    member = rng.integers(0, 4, 400)
    latents = (groups[member] + 0.1 * rng.normal(size=(400, 2))).astype(np.float32)
    clusters = kmeans(latents, 4)
    np.testing.assert_array_equal(clusters.centres, latents[clusters.centre_row])
    np.testing.assert_array_equal(clusters.label[clusters.centre_row], np.arange(4))
    along = find_principal_axes(latents, 1).project(clusters.centres)[:, 0]
    assert (np.diff(along) > 0).all()
    assert cluster_class_accuracy(clusters.label, member) == 1


def test_clusters_found_on_a_device_are_those_of_the_cpu(rng):
    latents = rng.normal(size=(PARTICLES, 3)).astype(np.float32)
    expected = kmeans(latents, 6, seed=1)
    with other_device() as device:
        found = kmeans(latents, 6, 1, DEVICE)
    np.testing.assert_array_equal(found.centre_row, expected.centre_row)
    np.testing.assert_array_equal(found.label, expected.label)
    assert device.waits == 2


def test_kmeans_is_the_same_twice_and_gives_no_more_clusters_than_distinct_latents(rng):
    latents = rng.normal(size=(300, 3))
    np.testing.assert_array_equal(kmeans(latents, 10).label, kmeans(latents, 10).label)
    three = np.repeat(rng.normal(size=(3, 2)), 20, axis=0)
    assert len(kmeans(three, 10).centres) == 3
    assert len(kmeans(np.ones((30, 2)), 10).centres) == 1
    with pytest.raises(ValueError, match="at least 1"):
        kmeans(latents, 0)


def test_traversal_runs_between_the_percentiles_on_one_axis_only(rng):
    latents = rng.normal(size=(PARTICLES, 4)) * [5, 2, 1, 1]
    axes = find_principal_axes(latents)
    walk = axes.project(walk_axis(latents, axes, 0, 9))
    expected = np.percentile(axes.project(latents)[:, 0], [5, 95])
    np.testing.assert_allclose(walk[[0, -1], 0], expected, atol=1e-9)
    np.testing.assert_allclose(np.diff(walk[:, 0]), np.diff(walk[:, 0])[0])
    np.testing.assert_allclose(walk[:, 1:], 0, atol=1e-9)


def test_latents_linear_in_the_coordinate_score_one(rng):
    state = rng.uniform(0, 120, PARTICLES)
    latents = np.outer(state, rng.normal(size=8)) + 1e-6 * rng.normal(size=(PARTICLES, 8))
    scores = score_latents(latents, state, 0.0, False)
    assert scores.latent_rank_correlation == pytest.approx(1, abs=1e-6)
    assert scores.mean_absolute_error == pytest.approx(0, abs=1e-6)
    assert (scores.angle_error_deg, scores.class_accuracy) == (None, None)


def test_latents_on_a_circle_score_one_and_no_angle_error(rng):
    state = rng.uniform(0, 360, PARTICLES)
    angle = np.deg2rad(state + 40)
    latents = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ rng.normal(size=(2, 8))
    prediction = predict_coordinate(latents, state, 360.0)
    assert prediction.rank_correlation == pytest.approx(1, abs=1e-6)
    assert prediction.angle_error_deg == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(prediction.predicted, state, atol=1e-5)


@pytest.mark.parametrize("period", [0.0, 360.0])
def test_unrelated_latents_score_about_zero(rng, period):
    state = rng.uniform(0, 360, PARTICLES)
    prediction = predict_coordinate(rng.normal(size=(PARTICLES, 8)), state, period)
    assert abs(prediction.rank_correlation) < 0.1
    if period:
        assert prediction.angle_error_deg == pytest.approx(90, abs=5)


def test_prediction_is_out_of_sample(rng):
    """Ten dimensions fit sixty noisy values well; out of fold they predict nothing."""
    state = rng.uniform(size=60)
    assert abs(predict_coordinate(rng.normal(size=(60, 10)), state).rank_correlation) < 0.4


def test_constant_latents_order_nothing():
    state = np.linspace(0, 1, 101)
    assert abs(predict_coordinate(np.ones((101, 4)), state).rank_correlation) < 0.35
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0


def test_correlation_ignores_scale_and_offset_and_is_zero_without_variation():
    values = np.random.default_rng(1).normal(size=50).astype(np.float32)
    assert correlation(values, 3 * values - 8) == pytest.approx(1)
    assert correlation(values, -values) == pytest.approx(-1)
    assert correlation(values, np.ones(50, dtype=np.float32)) == 0
    assert correlation(values[:0], values[:0]) == 0


def test_circular_correlation_ignores_the_origin_and_knows_the_sense_of_rotation(rng):
    angle = rng.uniform(-np.pi, np.pi, PARTICLES)
    assert circular_correlation(angle + 2.1, angle) == pytest.approx(1)
    assert circular_correlation(-angle, angle) == pytest.approx(-1)
    assert abs(circular_correlation(rng.permutation(angle), angle)) < 0.1
    noisy = angle + 0.5 * rng.normal(size=PARTICLES)
    assert circular_correlation(noisy, angle) == pytest.approx(np.exp(-0.125), abs=0.03)
    assert circular_correlation(np.zeros(PARTICLES), angle) == 0


def test_separate_classes_are_named_and_mixed_ones_are_chance(rng):
    label = rng.integers(0, 3, PARTICLES)
    centres = 8 * np.eye(3)
    separate = centres[label] + rng.normal(size=(PARTICLES, 3))
    scores = score_latents(separate, label.astype(np.float64), 0.0, True)
    assert scores.latent_rank_correlation > 0.98
    assert scores.cluster_accuracy > 0.98
    mixed = rng.normal(size=(PARTICLES, 3))
    assert balanced_accuracy(predict_class(mixed, label), label) == pytest.approx(1 / 3, abs=0.06)
    assert abs(score_latents(mixed, label.astype(np.float64), 0.0, True).latent_rank_correlation) < 0.1


def test_classes_that_are_filled_unequally_give_nothing_away(rng):
    label = (rng.uniform(size=PARTICLES) < 0.1).astype(int)
    blind = rng.normal(size=(PARTICLES, 3))
    assert cluster_class_accuracy(np.zeros(PARTICLES, dtype=int), label) == 0.5
    assert balanced_accuracy(np.zeros(PARTICLES), label) == 0.5
    named = predict_class(blind, label)
    assert balanced_accuracy(named, label) == pytest.approx(0.5, abs=0.1)
    # Nor is the smaller class overlooked where latents tell it apart, if barely.
    barely = blind + 1.5 * label[:, None]
    assert (predict_class(barely, label)[label == 1] == 1).mean() > 0.8


def test_neighbours_are_the_nearest_others_in_units_of_each_axis_spread(rng):
    latents = rng.normal(size=(300, 3)) * np.array([100.0, 1.0, 0.0])
    rows = np.array([5, 0, 77])
    found = find_neighbours(latents, rows, 4)
    scaled = latents[:, :2] / latents[:, :2].std(axis=0)
    for row, near in zip(rows, found, strict=True):
        distance = np.linalg.norm(scaled - scaled[row], axis=1)
        distance[row] = np.inf
        # Principal axes of a sample are not quite the axes it was drawn along.
        assert len(set(near) & set(np.argsort(distance)[:4])) >= 3
        assert row not in near


def test_particles_with_one_latent_have_neighbours_other_than_themselves():
    found = find_neighbours(np.ones((10, 2)), np.arange(10), 20)
    assert found.shape == (10, 9)
    assert all(row not in near for row, near in enumerate(found))


def test_neighbours_follow_a_curved_path_where_a_line_cannot(rng):
    state = rng.uniform(0, 1, PARTICLES)
    angle = 1.5 * np.pi * state
    latents = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.02 * rng.normal(size=(PARTICLES, 2))
    linear = np.abs(predict_coordinate(latents, state).predicted - state).mean()
    near = np.abs(state[find_neighbours(latents, np.arange(PARTICLES))].mean(axis=1) - state).mean()
    assert near < 0.02 < 0.05 < linear


def test_a_class_is_named_by_particles_of_the_other_folds(rng):
    label = np.repeat([3.0, 7.0], PARTICLES // 2)
    assert (predict_class(label[:, None] + 0.1 * rng.normal(size=(PARTICLES, 1)), label) == label).all()
    blind = predict_class(rng.normal(size=(PARTICLES, 2)), label)
    assert (blind == label).mean() == pytest.approx(0.5, abs=0.1)
