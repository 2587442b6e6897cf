import numpy as np
import pytest
from support.decoded_states import ANGLES, MOVING, POINTS, TRUTH, decoded
from support.rotating_blobs import BOX, blobs

from cryoformer_dist.analysis.flexibility import (
    Flexibility,
    RunningMoments,
    measure_flexibility,
    rank_queries,
    roc_auc,
    sample_latents,
    score_flexibility,
)
from cryoformer_dist.analysis.trained import DecodedState
from cryoformer_dist.errors import StoreError


@pytest.fixture
def measured() -> Flexibility:
    return measure_flexibility(iter(decoded()), POINTS, BOX)


def test_moments_of_a_stream_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(5, 2, (40, 7, 3)).astype(np.float32)
    moments = RunningMoments()
    for one in values:
        moments.add(one)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.deviation, values.std(axis=0), rtol=1e-4)
    moments = RunningMoments()
    moments.add(values[0])
    assert not moments.deviation.any()


def test_a_stream_is_not_changed_by_being_measured():
    values = np.ones(4, dtype=np.float32)
    moments = RunningMoments()
    moments.add(values)
    moments.add(3 * values)
    np.testing.assert_array_equal(values, 1)
    np.testing.assert_allclose(moments.mean, 2)


def test_flexibility_is_the_deviation_over_states_at_the_points_and_nothing_elsewhere(measured):
    np.testing.assert_allclose(measured.deviation.ravel()[POINTS], MOVING, atol=1e-5)
    np.testing.assert_allclose(measured.mean.ravel()[POINTS], TRUTH.mean(axis=0).ravel()[POINTS], atol=1e-5)
    elsewhere = np.setdiff1d(np.arange(BOX**3), POINTS)
    for voxels in (measured.mean, measured.deviation, measured.attention_map(1), measured.molecule):
        assert not voxels.ravel()[elsewhere].any()
    np.testing.assert_allclose(measured.attention_map(0).ravel()[POINTS], 0.25)
    assert measured.states == len(ANGLES)


def test_the_molecule_is_everywhere_any_state_reaches():
    full = measure_flexibility((DecodedState(v.ravel(), np.ones((BOX**3, 1), np.float32)) for v in TRUTH),
                               np.arange(BOX**3), BOX)  # fmt: skip
    np.testing.assert_array_equal(full.molecule, TRUTH.max(axis=0) > full.level)
    # The blob on its way round is in the molecule at every angle, the corner never.
    for voxels in TRUTH:
        assert full.molecule[np.unravel_index((voxels - TRUTH.mean(axis=0)).argmax(), voxels.shape)]
    assert not full.molecule[0, 0, 0]


def test_no_state_is_refused():
    with pytest.raises(StoreError, match="no particle"):
        measure_flexibility(iter(()), POINTS, BOX)


def test_the_query_that_marks_motion_is_ranked_first_and_a_still_one_scores_nothing(measured):
    ranks = {rank.query: rank for rank in rank_queries(measured)}
    assert next(iter(ranks)) == 1
    assert ranks[1].correlation == pytest.approx(1, abs=1e-3)
    assert ranks[2].correlation == pytest.approx(-1, abs=1e-3)
    assert ranks[0].correlation == 0
    assert ranks[0].mean_weight == pytest.approx(0.25)
    assert ranks[0].mean_variation == 0


def test_roc_area_is_the_chance_that_a_positive_scores_higher():
    score = np.array([0.1, 0.4, 0.35, 0.8])
    assert roc_auc(score, np.array([False, False, True, True])) == pytest.approx(0.75)
    assert roc_auc(score, np.zeros(4, dtype=bool)) is None
    assert roc_auc(score, np.ones(4, dtype=bool)) is None


def test_true_motion_scores_one_a_constant_a_half_and_the_reverse_nothing():
    true_motion = TRUTH.std(axis=0)
    assert score_flexibility(true_motion, TRUTH) == pytest.approx(1)
    assert score_flexibility(7 * true_motion + 1, TRUTH) == pytest.approx(1)
    assert score_flexibility(np.ones_like(true_motion), TRUTH) == pytest.approx(0.5)
    assert score_flexibility(-true_motion, TRUTH) == pytest.approx(0)


def test_knowing_where_the_molecule_is_is_not_knowing_where_it_moves():
    still = blobs(np.zeros(1))[0]
    assert score_flexibility(still, TRUTH) < 0.7
    noise = np.random.default_rng(0).normal(size=TRUTH[0].shape)
    assert abs(score_flexibility(noise, TRUTH) - 0.5) < 0.1


def test_a_truth_that_does_not_move_gives_no_score():
    still = np.repeat(TRUTH[:1], 7, axis=0)
    assert score_flexibility(TRUTH.std(axis=0), still) is None


def test_particles_are_drawn_once_each_and_the_same_for_the_same_seed():
    latents = np.arange(200.0, dtype=np.float32)[:, None]
    drawn = sample_latents(latents, 40, seed=5)
    assert len(np.unique(drawn)) == 40
    np.testing.assert_array_equal(drawn, sample_latents(latents, 40, seed=5))
    assert not np.array_equal(drawn, sample_latents(latents, 40, seed=6))
    np.testing.assert_array_equal(sample_latents(latents[:9], 40), latents[:9])
