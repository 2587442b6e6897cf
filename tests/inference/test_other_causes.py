import numpy as np
import pytest
import torch

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.inference.other_causes import Candidate, Cause, explain_by, list_candidates, predict_from

PARTICLES = 3000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def motion(rng: np.random.Generator) -> np.ndarray:
    """Latents along a curve: the first axis moves, the second bends."""
    state = rng.uniform(-1, 1, PARTICLES)
    return np.stack([2 * state, state**2 - 1 / 3, 0.1 * rng.normal(size=PARTICLES)], axis=1)


def test_contrast_that_leaks_is_found_on_its_axis_and_none_is_near_the_floor(rng, motion):
    contrast = rng.normal(size=(PARTICLES, 1))
    innocent = explain_by(Candidate(Cause.AMPLITUDE, contrast), motion)
    assert innocent.explained < 0.005
    assert 0 <= innocent.floor < 0.005
    assert innocent.told < 0.02
    leaking = motion.copy()
    # Its variance against that of the motion, 4 / 3 + 4 / 45.
    leaking[:, 1] += 0.8 * contrast[:, 0]
    found = explain_by(Candidate(Cause.AMPLITUDE, contrast), leaking)
    assert found.explained == pytest.approx(0.64 / (0.64 + 4 / 3 + 4 / 45 + 0.01), abs=0.03)
    assert found.axis == 2
    assert found.axis_explained > 0.8
    assert found.told > 0.8
    assert found.floor < 0.005


def test_a_quadratic_dependence_is_seen(rng, motion):
    defocus = rng.uniform(-1, 1, (PARTICLES, 1))
    bent = motion + np.array([0, 3, 0]) * (defocus**2 - 1 / 3)
    found = explain_by(Candidate(Cause.DEFOCUS, defocus), bent)
    assert found.explained > 0.3
    assert found.axis_explained > 0.8


def test_groups_are_causes_too(rng, motion):
    group = rng.integers(0, 5, PARTICLES)
    shifted = motion + np.array([1.0, 0, 0]) * np.array([-2, 0, 2, 1, -1.0])[group][:, None]
    found = explain_by(Candidate(Cause.OPTICS_GROUP, group=group), shifted)
    assert found.explained == pytest.approx(2 / (2 + 4 / 3 + 4 / 45 + 0.01), abs=0.04)
    assert found.told is None
    assert explain_by(Candidate(Cause.OPTICS_GROUP, group=group), motion).explained < 0.01


def test_a_cause_known_of_the_first_particles_only_is_held_against_those(rng, motion):
    power = motion[:500, :1] + 0.1 * rng.normal(size=(500, 1))
    assert explain_by(Candidate(Cause.IMAGE_POWER, power), motion).explained > 0.8


def test_latents_tell_of_what_is_a_quadratic_function_of_them(rng, motion):
    assert predict_from(motion, motion[:, :1] ** 2 + motion[:, 1:2] * motion[:, :1]) > 0.99
    assert predict_from(motion, rng.normal(size=(PARTICLES, 2))) < 0.02
    assert predict_from(motion, np.ones((PARTICLES, 1))) == 0


def test_a_store_says_what_is_known_of_its_images(tiny_store, rng):
    store = ParticleStore.open(tiny_store)
    rows = np.arange(40)
    pose = store.particles().pose(rows)
    amplitude = np.exp(0.1 * rng.normal(size=40))
    found = {each.cause: each for each in list_candidates(store, rows, pose, amplitude)}
    # One optics group, poses as given, too few for pieces of the file.
    assert set(found) == {Cause.AMPLITUDE, Cause.IMAGE_POWER, Cause.DEFOCUS, Cause.VIEW}
    np.testing.assert_allclose(found[Cause.AMPLITUDE].values[:, 0], np.log(amplitude))
    images = store.read_images(rows).astype(np.float64)
    np.testing.assert_allclose(np.exp(found[Cause.IMAGE_POWER].values[:, 0]), (images**2).mean(axis=(1, 2)), rtol=1e-3)
    # The beam, as the molecule sees it.
    beam = pose.rotation.mT @ torch.tensor([0.0, 0.0, 1.0])
    np.testing.assert_allclose(found[Cause.VIEW].values, beam.numpy(), atol=1e-6)
    moved = type(pose)(pose.rotation, pose.shift_angstrom + torch.randn(40, 2))
    change = {each.cause: each for each in list_candidates(store, rows, moved, None)}[Cause.POSE_CHANGE]
    np.testing.assert_allclose(change.values[:, 3:], (moved.shift_angstrom - pose.shift_angstrom).numpy(), atol=1e-5)
    assert np.abs(change.values[:, :3]).max() == 0
