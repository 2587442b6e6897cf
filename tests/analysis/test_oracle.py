from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.rotating_blobs import BOX, VOXEL_SIZE_ANGSTROM, blobs, circle_truth

from cryoformer_dist.analysis.oracle import (
    Likelihood,
    average_states,
    find_likelihood,
    find_shares,
    measure_errors,
    sample_images,
    score_oracle,
)
from cryoformer_dist.analysis.truth import Truth, find_nearest_reference, read_truth, state_distance
from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.ctf import CTFParams, contrast_transfer_function
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid, lattice_points
from cryoformer_dist.physics.pose import Pose, rotation_from_axis_angle
from cryoformer_dist.physics.projection import project_points

IMAGES, STATES = 120, 12


def imaged(truth: Truth, noise: float, amplitude: float = 1.0) -> CroppedImages:
    """Images of the particles themselves, whose states lie between the references."""
    generator = torch.Generator().manual_seed(2)
    rotation = torch.from_numpy(truth.rotation)
    shift = -torch.from_numpy(truth.shift_angstrom) / VOXEL_SIZE_ANGSTROM
    ctf = CTFParams(
        *(torch.full((len(truth.state),), value) for value in (15_000.0, 15_000.0, 0.0, 0.0, 300.0, 2.7, 0.1))
    )
    transfer = contrast_transfer_function(ctf, frequency_grid(BOX)[None] / VOXEL_SIZE_ANGSTROM)
    density = torch.from_numpy(blobs(truth.state).reshape(len(truth.state), -1))
    clean = fourier_to_image(project_points(density, lattice_points(BOX), rotation, shift, BOX) * transfer, BOX)
    images = amplitude * clean + noise * torch.randn(clean.shape, generator=generator)
    pixel = torch.full((len(shift),), VOXEL_SIZE_ANGSTROM)
    return CroppedImages(image_to_fourier(images), transfer, rotation, shift, pixel)


@pytest.fixture(scope="module")
def circle() -> Truth:
    return circle_truth(IMAGES, STATES)


@pytest.fixture(scope="module")
def arc(circle: Truth) -> Truth:
    centres = (np.arange(STATES) + 0.5) * 10
    state = np.linspace(0, 120, IMAGES)
    return replace(circle, state=state, volume_state=centres, volumes=blobs(centres), period=0.0)


def likelihood(truth: Truth, sample: CroppedImages) -> Likelihood:
    return find_likelihood(sample, truth.volumes, truth.volume_state, truth.period, truth.discrete)


@pytest.mark.parametrize("kind", ["circle", "arc"])
@pytest.mark.parametrize("amplitude", [1.0, 7.0])
def test_on_clean_images_the_error_is_a_small_part_of_a_bin(kind, amplitude, circle, arc):
    """States up to half a bin beyond the last reference are among them; the amplitude of an image is not known."""
    truth = circle if kind == "circle" else arc
    width = np.diff(truth.volume_state)[0]
    found = likelihood(truth, imaged(truth, noise=0.0, amplitude=amplitude))
    error = state_distance(found.most_probable(), truth.state, truth.period)
    assert error.mean() < 0.1 * width
    nearest = truth.volume_state[find_nearest_reference(truth.state, truth)]
    assert error.mean() < 0.5 * state_distance(nearest, truth.state, truth.period).mean()


def test_the_more_noise_the_larger_the_error_up_to_chance(circle):
    errors = []
    for noise in (0.3, 2.0, 1000.0):
        sample = imaged(circle, noise)
        scaled = replace(sample, coefficients=sample.coefficients / noise)
        found = likelihood(circle, scaled).most_probable()
        errors.append(measure_errors(found, circle.state, 360.0, 360.0))
    angles = [error.angle_error_deg for error in errors]
    assert angles[0] < 15 < angles[1] < angles[2]
    assert angles[2] == pytest.approx(90, abs=20)
    assert errors[0].rank_correlation > 0.95
    assert abs(errors[2].rank_correlation) < 0.35


def test_wrong_poses_spoil_the_oracle(circle):
    sample = imaged(circle, 0.0)
    turned = replace(sample, rotation=sample.rotation.roll(1, 0))
    error = state_distance(likelihood(circle, turned).most_probable(), circle.state, 360.0)
    assert error.mean() > 40


def test_classes_are_named_and_never_interpolated(circle):
    label = np.floor(circle.state / 30)
    classes = replace(
        circle,
        state=label,
        volume_state=np.arange(12.0),
        volumes=blobs(np.arange(12) * 30.0),
        period=0.0,
        discrete=True,
    )
    # Each particle is exactly its class.
    exact = replace(circle, state=label * 30.0)
    found = likelihood(classes, imaged(exact, 0.0))
    assert set(found.state) == set(range(12))
    assert (found.most_probable() == label).mean() > 0.99


def test_without_anything_to_tell_states_apart_the_mean_stays_in_the_middle():
    state = np.linspace(0, 1, 11)
    flat = Likelihood(state, np.zeros((3, 11)))
    np.testing.assert_allclose(flat.mean(0.0), 0.5)
    sharp = Likelihood(state, np.where(np.arange(11) == 8, 0.0, -1e3)[None])
    np.testing.assert_allclose([sharp.mean(0.0)[0], sharp.most_probable()[0]], 0.8)
    round_the_corner = Likelihood(np.array([0.0, 90.0, 180.0, 270.0, 350.0]), np.array([[0.0, -1e3, -1e3, -1e3, 0.0]]))
    assert round_the_corner.mean(360.0)[0] == pytest.approx(355)


def test_errors_are_those_that_were_put_in():
    true = np.linspace(0, 350, 36)
    off = measure_errors(np.mod(true + 20, 360), true, 360.0, 360.0)
    assert off.angle_error_deg == pytest.approx(20)
    assert off.rank_correlation == pytest.approx(1)
    line = measure_errors(true[::-1], true, 0.0, 350.0)
    assert line.rank_correlation == pytest.approx(-1)
    assert line.mean_absolute_error == pytest.approx(np.abs(true[::-1] - true).mean() / 350)


def test_the_oracle_reads_a_store_and_stands_beside_our_latents(tiny_store: Path):
    store = ParticleStore.open(tiny_store)
    truth = read_truth(tiny_store.parent / "particles" / "truth")
    rows = np.arange(len(store))
    state = truth.state[store.particles().source_row]
    rng = np.random.default_rng(0)
    blind = score_oracle(store, truth, rng.normal(size=(len(store), 2)), rows, particles=40)
    perfect = score_oracle(store, truth, state[:, None] / 100, rows, particles=40)
    assert blind.particles == 40
    assert blind.oracle == perfect.oracle
    assert blind.oracle.rank_correlation > 0.6
    assert perfect.ours.mean_absolute_error < perfect.oracle.mean_absolute_error < blind.ours.mean_absolute_error
    assert blind.posterior.mean_absolute_error < blind.ours.mean_absolute_error
    assert blind.error_ratio == pytest.approx(blind.ours.error / blind.oracle.error)
    assert blind.neighbours_error_ratio == pytest.approx(blind.neighbours.error / blind.oracle.error)


def test_the_oracle_says_how_much_an_image_says(tiny_store: Path):
    store = ParticleStore.open(tiny_store)
    truth = read_truth(tiny_store.parent / "particles" / "truth")
    rows = np.arange(len(store))
    found = score_oracle(store, truth, np.random.default_rng(0).normal(size=(len(store), 2)), rows)
    assert 0.2 < found.nats < np.log(10 * 20)
    # Given poses are right: to sum over them is to take them.
    assert (found.given_pose_error_deg, found.given_pose_error_angstrom) == (0, 0)
    assert found.marginal_nats == pytest.approx(found.nats, rel=0.2)
    assert found.marginal.mean_absolute_error == pytest.approx(found.posterior.mean_absolute_error, rel=0.25)


def test_poses_that_err_cost_the_oracle_what_summing_over_them_cannot_bring_back(tiny_store: Path):
    store = ParticleStore.open(tiny_store)
    truth = read_truth(tiny_store.parent / "particles" / "truth")
    rows = np.arange(len(store))
    latents = np.random.default_rng(0).normal(size=(len(store), 2))
    generator = torch.Generator().manual_seed(0)
    pose = store.particles().pose()
    turned = rotation_from_axis_angle(0.07 * torch.randn(len(store), 3, generator=generator)) @ pose.rotation
    exact = score_oracle(store, truth, latents, rows)
    erring = score_oracle(store.with_pose(rows, Pose(turned, pose.shift_angstrom)), truth, latents, rows)
    assert erring.given_pose_error_deg == pytest.approx(4, rel=0.15)
    assert erring.nats == pytest.approx(exact.nats)
    assert erring.marginal_nats < exact.marginal_nats
    assert erring.marginal.mean_absolute_error > exact.marginal.mean_absolute_error
    far = rotation_from_axis_angle(torch.randn(len(store), 3, generator=generator)) @ pose.rotation
    lost = score_oracle(store.with_pose(rows, Pose(far, pose.shift_angstrom)), truth, latents, rows)
    assert (lost.marginal, lost.marginal_nats, lost.marginal_z) == (None, None, None)


def test_states_are_shared_out_as_particles_are():
    grid = np.linspace(0, 1, 101)
    crowded = np.concatenate([np.full(900, 0.25), np.linspace(0, 1, 100)])
    share = find_shares(grid, crowded, 0.0, discrete=False)
    assert share.sum() == pytest.approx(1)
    assert share[grid < 0.5].sum() > 0.9
    assert share.min() > 0
    assert share[20:30].min() > 10 * share[60:].max()
    np.testing.assert_allclose(
        find_shares(np.arange(2.0), np.repeat([0.0, 1.0], [1, 3]), 0.0, True), [0.25, 0.75], atol=1e-3
    )


def test_the_oracle_names_classes_too(tiny_store: Path):
    """The tiny set's arc cut into its ten reference states."""
    store = ParticleStore.open(tiny_store)
    truth = read_truth(tiny_store.parent / "particles" / "truth")
    classes = replace(
        truth,
        state=find_nearest_reference(truth.state, truth).astype(np.float64),
        volume_state=np.arange(10.0),
        discrete=True,
    )
    state = classes.state[store.particles().source_row]
    rows = np.arange(len(store))
    found = score_oracle(store, classes, np.eye(10)[state.astype(int)], rows)
    assert found.ours.class_accuracy > 0.9
    assert found.oracle.class_accuracy > 0.3
    assert found.neighbours.class_accuracy <= 1
    assert (found.posterior, found.ours.mean_absolute_error) == (None, None)
    blind = score_oracle(store, classes, np.random.default_rng(0).normal(size=(64, 2)), rows)
    assert blind.oracle.class_accuracy == found.oracle.class_accuracy
    assert blind.error_ratio > 1
    assert blind.error_ratio == pytest.approx((1 - blind.ours.class_accuracy) / (1 - blind.oracle.class_accuracy))


def test_the_mean_of_states_goes_round_the_corner():
    states = np.array([[350.0, 10.0, 0.0]])
    assert average_states(states, 0.0)[0] == pytest.approx(120)
    assert abs((average_states(states, 360.0)[0] + 180) % 360 - 180) < 1e-9


def test_images_larger_than_needed_are_cropped_and_keep_their_unit_noise(tiny_store: Path, monkeypatch):
    store = ParticleStore.open(tiny_store)
    truth = read_truth(tiny_store.parent / "particles" / "truth")
    rows = np.arange(32)
    whole = sample_images(store, rows, truth)
    monkeypatch.setattr("cryoformer_dist.analysis.oracle.LARGEST_BOX", 12)
    small = sample_images(store, rows, truth)
    assert small.coefficients.shape == (32, 12, 7)
    variance, before = (fourier_to_image(sample.coefficients, box).var() for sample, box in ((small, 12), (whole, 16)))
    # The cropped images lose their Nyquist lines, a sixth of the power of white noise.
    assert float(variance) == pytest.approx(float(before), rel=0.3)
    torch.testing.assert_close(small.shift_pixels, whole.shift_pixels * 12 / 16)
