"""Images of known maps at poses that err: summing over poses is nearer the truth than believing them, and knows it."""

import numpy as np
import pytest
import torch
from support.tiny_runs import write_set

from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.truth import Truth, measure_spread, read_truth
from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.inference.comparison import Spread
from cryoformer_dist.inference.marginal import find_posterior, fit_scale, mix_maps

IMAGES = 200


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticleStore, Truth]:
    folder = tmp_path_factory.mktemp("erring")
    perturbation = {"rotation_sd_deg": 5.0, "shift_sd_pixels": 0.5}
    store = write_set(folder, IMAGES, snr=1.0, perturbation=perturbation)
    return ParticleStore.open(store), read_truth(folder / "particles" / "truth")


def batches(store: ParticleStore) -> list[ParticleBatch]:
    rows = np.arange(IMAGES)
    return [make_batch(ImageBlock(store.read_images(rows), rows, np.zeros_like(rows)), store.particles())]


def ask(scene: tuple[ParticleStore, Truth], spread: Spread | None) -> tuple[float, float]:
    """Mean error of the mean state, and errors over widths, with a spread or at the given poses."""
    store, truth = scene
    source = store.particles().source_row
    maps = torch.from_numpy(np.stack([fit_box(voxels, store.box_size) for voxels in truth.volumes]))
    count = len(maps)
    shown = torch.from_numpy(np.abs(truth.state[source][:, None] - truth.volume_state).argmin(axis=1))
    right = store.with_pose(np.arange(IMAGES), truth.pose(source))
    pixel, even = store.pixel_size_angstrom, torch.full((count,), 1 / count)
    scale = fit_scale(mix_maps(maps, torch.eye(count), even, pixel, store.box_size), batches(right), [shown])
    mixture = mix_maps(scale * maps, torch.eye(count), even, pixel, store.box_size)
    found = find_posterior(mixture, batches(store), spread or Spread()).double().numpy()
    mean = found @ truth.volume_state
    width = np.sqrt((found @ truth.volume_state**2 - mean**2).clip(1e-6))
    error = np.abs(mean - truth.state[source])
    return float(error.mean()), float(np.sqrt(np.square(error / width.clip(min=0.5 * truth.volume_state[0])).mean()))


def test_summing_over_poses_errs_less_and_claims_less(scene: tuple[ParticleStore, Truth]) -> None:
    spread = measure_spread(scene[1], scene[0].particles(), np.arange(IMAGES))
    assert np.rad2deg(spread.rotation_rad) == pytest.approx(5, rel=0.1)
    assert spread.shift_angstrom / scene[0].pixel_size_angstrom == pytest.approx(0.5, rel=0.1)
    assert spread.amplitude == 0
    error, z = ask(scene, spread)
    believing, overconfident = ask(scene, None)
    assert error < believing
    assert z < overconfident


def test_the_scale_of_the_maps_is_found(scene: tuple[ParticleStore, Truth]) -> None:
    store, truth = scene
    source = store.particles().source_row
    maps = torch.from_numpy(np.stack([fit_box(voxels, store.box_size) for voxels in truth.volumes]))
    shown = torch.from_numpy(np.abs(truth.state[source][:, None] - truth.volume_state).argmin(axis=1))
    right = batches(store.with_pose(np.arange(IMAGES), truth.pose(source)))
    even = torch.full((len(maps),), 1 / len(maps))

    def scale(factor: float) -> float:
        mixture = mix_maps(factor * maps, torch.eye(len(maps)), even, store.pixel_size_angstrom, store.box_size)
        return fit_scale(mixture, right, [shown])

    assert scale(1.0) > 0
    assert scale(2.0) == pytest.approx(scale(1.0) / 2, rel=1e-4)
