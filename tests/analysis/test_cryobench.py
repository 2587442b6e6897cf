from dataclasses import asdict, replace

import numpy as np
import pytest
from support.rotating_blobs import BOX, blobs, circle_truth, decode_circle, on_circle

from cryoformer_dist.analysis.cryobench import ShellCorrelator, perfect_area, sample_particles, score_images
from cryoformer_dist.analysis.masks import make_solvent_mask
from cryoformer_dist.analysis.truth import Truth

PARTICLES, STATES = 250, 8


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Every particle is in one of the reference states, as in CryoBench."""
    continuous = circle_truth(PARTICLES, STATES)
    return replace(continuous, state=continuous.volume_state[np.arange(PARTICLES) % STATES])


def scores(truth: Truth, decode=decode_circle, latents: np.ndarray | None = None, order: np.ndarray | None = None):
    order = np.arange(PARTICLES) if order is None else order
    latents = on_circle(truth.state) if latents is None else latents
    consensus = truth.volumes.mean(axis=0)
    of_states = (np.arange(STATES), decode(on_circle(truth.volume_state)))
    mask = make_solvent_mask(truth.volumes)
    return score_images(decode, latents[order], order, truth, consensus, mask, "truth", of_states)


def reference_curve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The definition, shell by shell on the whole cube."""
    box = first.shape[-1]
    a, b = np.fft.fftshift(np.fft.fftn(first)), np.fft.fftshift(np.fft.fftn(second))
    axis = np.arange(box) - box // 2
    radius = np.sqrt(sum(c**2 for c in np.meshgrid(axis, axis, axis, indexing="ij")))
    curve = [1.0]
    for shell in range(1, box // 2):
        here = (radius >= shell - 1) & (radius < shell)
        product = np.vdot(a[here], b[here]).real
        curve.append(product / np.linalg.norm(a[here]) / np.linalg.norm(b[here]))
    return np.array(curve)


def test_the_curve_is_the_one_cryobench_defines():
    rng = np.random.default_rng(0)
    first, second = blobs(np.array([0.0]))[0], blobs(np.array([40.0]))[0]
    second = second + 0.1 * rng.normal(size=second.shape).astype(np.float32)
    half = np.zeros_like(first)
    half[:, :, BOX // 2 :] = 1
    correlator = ShellCorrelator(BOX, half)
    ours, true = correlator.transform(first), correlator.transform(second)
    expected = reference_curve(first, second)
    assert len(expected) == BOX // 2
    assert expected[3:].max() < 0.99
    np.testing.assert_allclose(correlator.correlate(ours[0], true[0]), expected, atol=1e-5)
    curves = expected, reference_curve(first * half, second * half)
    areas = [np.trapezoid(curve.clip(0, 1), np.arange(BOX // 2) / BOX) for curve in curves]
    assert areas[0] != pytest.approx(areas[1], abs=1e-3)
    assert correlator.measure_areas(first, true) == pytest.approx(areas, abs=1e-6)


def test_a_perfect_score_is_half_less_one_shell():
    assert perfect_area(128) == 63 / 128
    noise = np.random.default_rng(0).normal(size=(32, 32, 32))
    correlator = ShellCorrelator(32, np.ones_like(noise))
    assert correlator.measure_areas(noise, correlator.transform(noise)) == pytest.approx([15 / 32] * 2, abs=1e-6)


def test_an_empty_map_agrees_only_at_shell_zero_by_definition():
    correlator = ShellCorrelator(BOX, np.ones((BOX,) * 3))
    (empty, _), (full, _) = correlator.transform(np.zeros((BOX,) * 3)), correlator.transform(blobs(np.zeros(1))[0])
    assert correlator.correlate(empty, full).tolist() == [1.0] + [0.0] * (BOX // 2 - 1)


def test_a_hundred_particles_are_taken_as_cryobench_does():
    assert sample_particles(100_000).tolist() == list(range(0, 100_000, 1000))
    assert sample_particles(250).tolist() == list(range(0, 250, 2))
    assert sample_particles(64).tolist() == list(range(64))


def test_the_truth_scores_perfectly_and_the_mean_map_below(truth):
    found = scores(truth)
    for name in ("mean", "median", "masked_mean", "masked_median", "per_conformation_mean"):
        assert getattr(found, name) == pytest.approx(found.perfect, abs=1e-6), name
    assert found.std == pytest.approx(0, abs=1e-6)
    assert found.maps == 125
    still = scores(truth, lambda latents: np.stack([truth.volumes.mean(axis=0)] * len(latents)))
    assert still.mean == pytest.approx(found.consensus_mean)
    assert still.masked_mean == pytest.approx(found.consensus_masked_mean)
    assert still.mean < found.perfect - 0.02
    assert 0 <= still.consensus_masked_mean < found.perfect - 0.02


def test_maps_of_other_particles_score_below_the_mean_map(truth):
    shuffled = on_circle(truth.state)[np.random.default_rng(0).permutation(PARTICLES)]
    found = scores(truth, latents=shuffled)
    assert found.mean < found.consensus_mean
    assert found.masked_mean < found.consensus_masked_mean


def test_particles_are_sampled_in_the_order_of_their_file(truth):
    """Half of the file is right, half is wrong: which particles are drawn must not depend on the store's order."""
    wrong = on_circle(np.where(np.arange(PARTICLES) % 2, truth.state, truth.state + 180))
    in_file_order = scores(truth, latents=wrong)
    assert in_file_order.mean < in_file_order.consensus_mean
    shuffled = scores(truth, latents=wrong, order=np.random.default_rng(1).permutation(PARTICLES))
    expected = asdict(in_file_order)
    assert asdict(shuffled) == {**{name: pytest.approx(expected[name], abs=1e-9) for name in expected}, "mask": "truth"}


def test_between_references_the_nearest_stands_for_the_truth():
    continuous = circle_truth(PARTICLES, STATES)
    of_states = (np.arange(STATES), continuous.volumes)
    mask = make_solvent_mask(continuous.volumes)
    common = (np.arange(PARTICLES), continuous, continuous.volumes.mean(axis=0), mask, "truth", of_states)
    exact = score_images(decode_circle, on_circle(continuous.state), *common)
    spacing = 360 / STATES
    snapped = on_circle(np.round(continuous.state / spacing) * spacing)
    assert exact.consensus_mean < exact.mean < exact.perfect
    # Here the consensus is the mean of the true maps.
    assert exact.still_mean == pytest.approx(exact.consensus_mean)
    assert score_images(decode_circle, snapped, *common).mean == pytest.approx(exact.perfect, abs=1e-5)
