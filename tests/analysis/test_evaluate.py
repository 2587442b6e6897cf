from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.rotating_blobs import blobs, decode_circle

from cryoformer_dist.analysis.evaluate import Estimate, evaluate, evaluate_alone, score_quickly
from cryoformer_dist.analysis.map_scores import map_variation, score_maps
from cryoformer_dist.analysis.truth import Truth, choose_particles, read_truth
from cryoformer_dist.errors import SmallSampleWarning, StoreError, StoreNotFoundError
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.scores import ScoresAlone

STATES = 8
PARTICLES = 800


@pytest.fixture(scope="module")
def truth() -> Truth:
    rng = np.random.default_rng(3)
    states = np.arange(STATES) * 360.0 / STATES
    return Truth(
        state=rng.uniform(0, 360, PARTICLES),
        rotation=random_rotations(PARTICLES, torch.Generator().manual_seed(0)).numpy(),
        shift_angstrom=rng.uniform(-5, 5, (PARTICLES, 2)).astype(np.float32),
        volume_state=states,
        volumes=blobs(states),
        voxel_size_angstrom=4.0,
        period=360.0,
        discrete=False,
    )


def estimate_of(truth: Truth, latents_in_file_order: np.ndarray, **refined) -> Estimate:
    """Rows permuted as in a store."""
    order = np.random.default_rng(1).permutation(PARTICLES)
    latents = latents_in_file_order[order].astype(np.float32)
    given = {"stored_rotation": truth.rotation[order], "stored_shift_angstrom": truth.shift_angstrom[order]}
    return Estimate(latents, order, **given, **{name: value[order] for name, value in refined.items()})


def circle(truth: Truth) -> np.ndarray:
    angle = np.deg2rad(truth.state)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def consensus_of(truth: Truth) -> Volume:
    return Volume(torch.from_numpy(truth.volumes.mean(axis=0)), truth.voxel_size_angstrom)


def test_the_mean_map_scores_nothing(truth):
    scores = score_maps(np.stack([truth.volumes.mean(axis=0)] * STATES), truth.volumes)
    assert scores.difference_map_correlation == 0
    assert scores.difference_map_amplitude == 0
    assert scores.auc_gap == pytest.approx(0, abs=1e-6)
    assert scores.map_correlation > 0.5


def test_the_truth_scores_one(truth):
    scores = score_maps(truth.volumes, truth.volumes)
    assert scores.difference_map_correlation == pytest.approx(1)
    assert scores.difference_map_amplitude == pytest.approx(1)
    assert scores.map_correlation == pytest.approx(1)
    assert scores.fsc_area_own == pytest.approx(1, abs=1e-5)
    assert scores.auc_gap > 0.1


def test_maps_of_the_wrong_states_score_nothing(truth):
    scores = score_maps(np.roll(truth.volumes, STATES // 2, axis=0), truth.volumes)
    assert scores.difference_map_correlation <= 0.05
    assert scores.auc_gap < 0
    mirrored = score_maps(truth.volumes[::-1].copy(), truth.volumes)
    assert mirrored.difference_map_correlation <= 0.05


def test_scores_ignore_scale_and_offset_even_one_per_map(truth):
    noisy = truth.volumes + 0.05 * np.random.default_rng(0).normal(size=truth.volumes.shape).astype(np.float32)
    plain = score_maps(noisy, truth.volumes)
    offset = np.linspace(-3, 3, STATES).reshape(-1, 1, 1, 1)
    moved = score_maps((7 * noisy + offset).astype(np.float32), truth.volumes)
    for name in plain.__slots__:
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=2e-4), name


def test_damped_motion_keeps_its_correlation_and_loses_amplitude(truth):
    mean = truth.volumes.mean(axis=0)
    scores = score_maps(mean + 0.5 * (truth.volumes - mean), truth.volumes)
    assert scores.difference_map_correlation == pytest.approx(1, abs=1e-5)
    assert scores.difference_map_amplitude == pytest.approx(0.5, abs=1e-4)


def test_unrelated_change_scores_nothing(truth):
    noise = np.random.default_rng(5).normal(size=truth.volumes.shape).astype(np.float32)
    scores = score_maps(truth.volumes.mean(axis=0) + 0.1 * noise, truth.volumes)
    assert abs(scores.difference_map_correlation) < 0.05


def test_a_perfect_run_reaches_the_ceiling_and_the_consensus_the_floor(truth):
    result = evaluate(decode_circle, estimate_of(truth, circle(truth)), consensus_of(truth), truth)
    scores = result.scores
    assert scores.maps.difference_map_correlation > 0.99
    assert scores.maps.difference_map_amplitude == pytest.approx(1, abs=0.05)
    assert scores.maps.map_correlation > 0.99
    assert scores.maps.auc_gap == pytest.approx(scores.ceiling.auc_gap, abs=0.03)
    assert scores.latents.latent_rank_correlation == pytest.approx(1, abs=1e-3)
    assert scores.latents.angle_error_deg < 0.1
    assert scores.consensus.difference_map_correlation == 0
    assert scores.consensus.auc_gap == pytest.approx(0, abs=1e-6)
    assert scores.consensus.latent_rank_correlation == 0
    assert len(scores.states) == len(result.own) == len(result.consensus) == STATES


def test_latents_of_the_wrong_particles_score_nothing(truth):
    shuffled = circle(truth)[np.random.default_rng(0).permutation(PARTICLES)]
    scores = evaluate(decode_circle, estimate_of(truth, shuffled), consensus_of(truth), truth).scores
    assert abs(scores.latents.latent_rank_correlation) < 0.15
    assert scores.latents.angle_error_deg == pytest.approx(90, abs=8)
    assert scores.maps.auc_gap < 0.5 * scores.ceiling.auc_gap


def test_a_run_that_ignores_its_latents_is_its_own_floor_however_noisy_the_consensus(truth):
    mean = truth.volumes.mean(axis=0)
    noise = 0.1 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    noisy = Volume(consensus_of(truth).voxels + noise, truth.voxel_size_angstrom)
    estimate = estimate_of(truth, circle(truth))
    scores = evaluate(lambda latents: np.stack([mean] * len(latents)), estimate, noisy, truth).scores
    for name in ("difference_map_correlation", "auc_gap", "map_correlation", "fsc_area_own"):
        assert getattr(scores.maps, name) == pytest.approx(getattr(scores.still, name), abs=1e-6)
    assert scores.maps.fsc_area_own > scores.consensus.fsc_area_own + 0.05
    median = np.median([state.resolution_angstrom for state in scores.states])
    assert scores.still.resolution_angstrom == pytest.approx(median)


def test_a_run_that_moves_is_ahead_of_its_own_maps_standing_still(truth):
    scores = evaluate(decode_circle, estimate_of(truth, circle(truth)), consensus_of(truth), truth).scores
    assert scores.maps.map_correlation > scores.still.map_correlation + 0.02
    assert scores.map_variation == pytest.approx(scores.true_map_variation, rel=0.05)


def test_quick_scores_are_those_of_the_whole_evaluation(truth):
    estimate = estimate_of(truth, circle(truth))
    whole = evaluate(decode_circle, estimate, consensus_of(truth), truth).scores
    quick = score_quickly(decode_circle, estimate.latents, estimate.source_row, truth)
    assert {**asdict(quick), "resolution_angstrom": None} == {**asdict(whole.maps), "resolution_angstrom": None}
    assert quick.resolution_angstrom == np.median([state.resolution_angstrom for state in whole.states])


def test_truth_of_a_larger_box_is_band_limited_to_the_maps(truth):
    large = Truth(
        **{name: getattr(truth, name) for name in truth.__slots__ if name not in ("volumes", "voxel_size_angstrom")},
        volumes=np.stack([np.kron(v, np.ones((2, 2, 2), dtype=np.float32)) for v in truth.volumes]),
        voxel_size_angstrom=2.0,
    )
    result = evaluate(decode_circle, estimate_of(truth, circle(truth)), consensus_of(truth), large)
    assert result.voxel_size_angstrom == pytest.approx(4.0)
    with pytest.raises(StoreError, match="larger"):
        evaluate(
            lambda latents: np.zeros((len(latents), 64, 64, 64), dtype=np.float32),
            estimate_of(truth, circle(truth)),
            consensus_of(truth),
            truth,
        )


def test_truth_of_another_field_of_view_is_refused(truth):
    estimate = estimate_of(truth, circle(truth))
    with pytest.raises(StoreError, match=r"64 Å wide.*the run's 16 Å.*headers"):
        evaluate(decode_circle, estimate, Volume(consensus_of(truth).voxels, 1.0), truth)


def test_truth_of_another_simulation_is_refused(truth):
    estimate = estimate_of(truth, circle(truth))
    foreign = Estimate(
        estimate.latents, estimate.source_row + 10, estimate.stored_rotation, estimate.stored_shift_angstrom
    )
    with pytest.raises(StoreError, match="same simulation"):
        evaluate(decode_circle, foreign, consensus_of(truth), truth)


def test_windows_wrap_round_the_period_and_hold_only_near_particles(truth):
    chosen = choose_particles(truth.state, truth)
    first = truth.state[chosen[0]]
    assert (first > 300).any()
    assert (first < 60).any()
    half_bin = 360 / STATES / 2
    for value, rows in zip(truth.volume_state, chosen, strict=True):
        distance = np.abs((truth.state[rows] - value + 180) % 360 - 180)
        assert distance.max() <= 0.6 * half_bin
    assert len(np.unique(np.concatenate(chosen))) == sum(map(len, chosen))


def test_an_empty_window_is_widened_with_a_warning(truth):
    with pytest.warns(SmallSampleWarning, match="state 0"):
        chosen = choose_particles(np.clip(truth.state, 30, 330), truth)
    assert all(len(rows) >= 5 for rows in chosen)


def test_classes_are_judged_by_naming_them(truth):
    label = np.floor(truth.state / 120)
    classes = Truth(
        label,
        truth.rotation,
        truth.shift_angstrom,
        np.arange(3.0),
        blobs(np.arange(3.0) * 120),
        4.0,
        0.0,
        True,
    )
    latents = 5 * np.eye(3)[label.astype(int)] + np.random.default_rng(0).normal(size=(PARTICLES, 3)) * 0.2
    scores = evaluate(
        lambda z: blobs(z.argmax(axis=1) * 120.0), estimate_of(truth, latents), consensus_of(classes), classes
    ).scores
    assert scores.latents.latent_rank_correlation > 0.99
    assert scores.latents.cluster_accuracy == 1
    assert scores.latents.mean_absolute_error is None
    assert scores.maps.difference_map_correlation == pytest.approx(1, abs=1e-5)
    assert [state.particles for state in scores.states] == np.bincount(label.astype(int)).tolist()


def test_motion_that_is_invented_of_a_rigid_molecule_is_seen_though_there_is_one_true_map(truth):
    rigid = replace(
        truth,
        state=np.zeros(PARTICLES),
        volume_state=np.zeros(1),
        volumes=truth.volumes[:1],
        period=0.0,
        discrete=True,
    )
    moving = evaluate(decode_circle, estimate_of(truth, circle(truth)), consensus_of(rigid), rigid).scores
    still = evaluate(
        lambda latents: np.repeat(rigid.volumes, len(latents), axis=0),
        estimate_of(truth, circle(truth)),
        consensus_of(rigid),
        rigid,
    ).scores
    assert moving.true_map_variation == still.true_map_variation == 0
    assert moving.map_variation > 0.3
    assert still.map_variation < 1e-6


def test_junk_is_counted_and_not_judged(truth):
    junk = (np.arange(PARTICLES) % 5 == 0).astype(np.int8)
    latents, poses = circle(truth), {"rotation": truth.rotation, "shift_angstrom": truth.shift_angstrom.copy()}
    spoilt = {**poses, "shift_angstrom": np.where(junk[:, None], 30, poses["shift_angstrom"])}
    estimate = estimate_of(truth, np.where(junk[:, None], [[5.0, -3.0]], latents), **spoilt)
    named, consensus = replace(truth, junk=junk), consensus_of(truth)
    scores = evaluate(decode_circle, estimate, consensus, named).scores
    assert (scores.junk, scores.particles) == (160, 640)
    assert sum(state.particles for state in scores.states) < 640
    assert scores.latents.latent_rank_correlation > 0.999
    assert scores.pose.after.shift_angstrom_mean == pytest.approx(0, abs=1e-5)
    worse = evaluate(decode_circle, estimate, consensus, truth).scores
    assert (worse.junk, worse.particles) == (None, 800)
    assert worse.latents.latent_rank_correlation < 0.99
    quick = score_quickly(decode_circle, estimate.latents, estimate.source_row, named)
    assert quick.difference_map_correlation == pytest.approx(scores.maps.difference_map_correlation)
    assert quick.difference_map_correlation > worse.maps.difference_map_correlation


def test_without_a_truth_no_measure_against_it_is_invented(truth):
    refined = {"rotation": truth.rotation, "shift_angstrom": truth.shift_angstrom + 3}
    clusters = decode_circle(circle(truth)[::80])
    result = evaluate_alone(clusters, estimate_of(truth, circle(truth), **refined), consensus_of(truth))
    scores = result.scores
    assert isinstance(scores, ScoresAlone)
    assert scores.map_variation == pytest.approx(map_variation(result.volumes))
    assert scores.pose_change.shift_angstrom_mean == pytest.approx(np.sqrt(18), rel=1e-4)
    assert not result.own


def test_refined_poses_are_scored_beside_the_given_ones(truth):
    refined = {"rotation": truth.rotation, "shift_angstrom": truth.shift_angstrom + 1}
    pose = evaluate(decode_circle, estimate_of(truth, circle(truth), **refined), consensus_of(truth), truth).scores.pose
    assert pose.before.shift_angstrom_mean == pytest.approx(0, abs=1e-6)
    assert pose.after.shift_angstrom_mean == pytest.approx(np.sqrt(2), rel=1e-4)
    given = evaluate(decode_circle, estimate_of(truth, circle(truth)), consensus_of(truth), truth).scores.pose
    assert given.after is None


def write_truth(truth: Truth, folder: Path, **changed) -> None:
    fields = ("state", "rotation", "shift_angstrom", "volume_state", "period", "discrete")
    np.savez(folder / "truth.npz", **{name: getattr(truth, name) for name in fields} | changed)
    for index, voxels in enumerate(truth.volumes):
        write_volume(folder / f"volume_{index:03d}.mrc", Volume(torch.from_numpy(voxels), 4.0))


def test_reference_maps_follow_one_another_whatever_the_order_of_their_files(truth, tmp_path):
    backwards = Truth(
        **{name: getattr(truth, name) for name in truth.__slots__ if name not in ("volumes", "volume_state")},
        volumes=truth.volumes[::-1],
        volume_state=truth.volume_state[::-1],
    )
    write_truth(backwards, tmp_path)
    found = read_truth(tmp_path)
    np.testing.assert_array_equal(found.volume_state, truth.volume_state)
    np.testing.assert_allclose(found.volumes, truth.volumes)


def test_reference_maps_on_unlike_grids_are_refused(truth, tmp_path):
    write_truth(truth, tmp_path)
    write_volume(tmp_path / "volume_002.mrc", Volume(torch.from_numpy(truth.volumes[2]), 1.0))
    with pytest.raises(StoreError, match=r"volume_002\.mrc.*1 Å per voxel.*has 16 at 4"):
        read_truth(tmp_path)
    write_volume(tmp_path / "volume_002.mrc", Volume(torch.zeros(20, 20, 20), 4.0))
    with pytest.raises(StoreError, match=r"volume_002\.mrc: box 20"):
        read_truth(tmp_path)


def test_a_class_without_a_reference_map_is_refused(truth, tmp_path):
    write_truth(
        truth, tmp_path, state=np.arange(PARTICLES) % STATES + 1.0, volume_state=np.arange(STATES), discrete=True
    )
    with pytest.raises(StoreError, match=r"particles are of class 8.*reference map for every class"):
        read_truth(tmp_path)


def test_truth_folder_round_trips_and_missing_parts_are_named(truth, tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"truth\.npz"):
        read_truth(tmp_path)
    write_truth(truth, tmp_path)
    found = read_truth(tmp_path)
    np.testing.assert_allclose(found.volumes, truth.volumes)
    np.testing.assert_array_equal(found.state, truth.state)
    assert (found.period, found.discrete, found.voxel_size_angstrom) == (360.0, False, pytest.approx(4.0))
    (tmp_path / "volume_003.mrc").unlink()
    with pytest.raises(StoreNotFoundError, match=r"volume_003\.mrc"):
        read_truth(tmp_path)
