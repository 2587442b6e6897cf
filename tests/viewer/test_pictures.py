from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.runs.directory import load_consensus
from cryoformer_dist.viewer.maps import DecodedMaps
from cryoformer_dist.viewer.pictures import draw_sample, make_montage, project_maps
from cryoformer_dist.viewer.snapshot import Snapshot


def test_a_sample_is_of_those_and_the_same_for_the_same_seed() -> None:
    places = np.arange(0, 400, 3)
    sample = draw_sample(places, 10, 1)
    assert len(set(sample.tolist())) == 10
    assert set(sample.tolist()) <= set(places.tolist())
    np.testing.assert_array_equal(sample, draw_sample(places, 10, 1))
    assert (sample != draw_sample(places, 10, 2)).any()
    np.testing.assert_array_equal(draw_sample(places[:3], 10, 1), places[:3])


@pytest.mark.parametrize(("count", "seed", "particles"), [(0, 0, 9), (25, 0, 9), (4, -1, 9), (4, 0, 0)])
def test_a_sample_that_cannot_be_is_refused(count: int, seed: int, particles: int) -> None:
    with pytest.raises(SelectionError):
        draw_sample(np.arange(particles), count, seed)


def read_batch(snapshot: Snapshot, places: np.ndarray) -> ParticleBatch:
    store, rows = snapshot.columns.store, snapshot.columns.store_row[places]
    return make_batch(ImageBlock(store.read_images(rows), rows, rows * 0), store.particles())


def test_projections_are_those_that_training_compares_images_with(snapshot: Snapshot) -> None:
    places, trained = np.array([2, 5, 40]), snapshot.trained
    batch = read_batch(snapshot, places)
    found = project_maps(snapshot, DecodedMaps(trained), places, batch.pixel_size_angstrom)
    pose = Pose(torch.from_numpy(trained.rotation[places]), torch.from_numpy(trained.shift_angstrom[places]))
    with torch.no_grad():
        plain = trained.learner.objectives.project(torch.from_numpy(trained.latents[places]), pose, batch, 0)
    box = plain.shape[-2]
    ring = (frequency_grid(box) * box).norm(dim=-1)
    # Maps are decoded with their shells weighted.
    weight = torch.from_numpy(trained.shell_weight)[ring.round().long().clamp_max(box // 2 - 1)]
    inside = (ring > 0) & (ring < box / 2 - 1)
    for one, other in zip(found, plain * weight, strict=True):
        overlap = (one[inside] * other[inside].conj()).sum().real
        assert overlap / (one[inside].norm() * other[inside].norm()) > 0.98
        assert one[inside].norm() / other[inside].norm() == pytest.approx(1, abs=0.1)


def test_filtered_images_look_more_like_the_model_than_images_do(snapshot: Snapshot, run: Path) -> None:
    consensus = load_consensus(run).voxels.numpy()
    montage = make_montage(snapshot, SimpleNamespace(of=lambda latent: consensus), np.arange(24))  # type: ignore[arg-type]

    def likeness(images: np.ndarray) -> float:
        return float((images * montage.projected).mean())

    assert likeness(montage.filtered) > 1.2 * likeness(montage.images) > 0.1
    others = np.roll(montage.projected, 1, axis=0)
    assert likeness(montage.filtered) > 1.2 * float((montage.filtered * others).mean())
    for images in (montage.images, montage.filtered, montage.projected):
        np.testing.assert_allclose(images.mean(axis=(1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(images.std(axis=(1, 2)), 1, atol=1e-3)
