from dataclasses import replace

import numpy as np
import pytest
import torch
from support.blobs import blobs, microscope
from support.stored_images import stored_images
from support.tiny_runs import write_set

from cryoformer_dist.analysis.latent import score_latents
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.linear_model import fit_linear_latents, fit_principal_maps
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid, radius_grid
from cryoformer_dist.physics.pose import Pose, random_rotations

SMALL = radius_grid(16, 3) <= 6


@pytest.fixture(scope="module")
def swinging(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticleStore, np.ndarray]:
    """A store of the molecule with the swinging arm, and the arm's angle of each store row."""
    source = {"kind": "phantom", "arc_deg": 100}
    path = write_set(tmp_path_factory.mktemp("linear"), particles=400, source=source, snr=1.0)
    store = ParticleStore.open(path)
    with np.load(path.parent / "particles" / "truth" / "truth.npz") as truth:
        state = truth["state"][store.particles().source_row]
    return store, state


@pytest.fixture(scope="module")
def latent(swinging: tuple[ParticleStore, np.ndarray]) -> torch.Tensor:
    return fit_linear_latents(swinging[0], np.arange(400), SMALL, 2, 0)


def test_coordinates_follow_the_motion(swinging: tuple[ParticleStore, np.ndarray], latent: torch.Tensor) -> None:
    state = swinging[1]
    assert score_latents(latent.numpy(), state, 0.0, False).latent_rank_correlation > 0.8
    shuffled = np.random.default_rng(0).permutation(state)
    assert score_latents(latent.numpy(), shuffled, 0.0, False).latent_rank_correlation < 0.15


def test_coordinates_are_white(latent: torch.Tensor) -> None:
    torch.testing.assert_close(latent.mean(0), torch.zeros(2), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(latent.T @ latent / 400, torch.eye(2), atol=1e-3, rtol=0.0)


def test_another_seed_finds_the_same_motion(swinging: tuple[ParticleStore, np.ndarray], latent: torch.Tensor) -> None:
    calls: list[tuple[int, int]] = []
    other = fit_linear_latents(swinging[0], np.arange(400), SMALL, 2, 1, lambda *call: calls.append(call))
    # Axes may turn into one another; the space they span is that of the motion.
    assert torch.linalg.svdvals(latent.T @ other / 400).max() > 0.8
    assert calls[-1][0] == calls[-1][1]


def test_latents_of_a_rigid_molecule_do_not_tell_images_of_another_pixel_size_apart() -> None:
    ratio, count, generator = 1.25, 400, torch.Generator().manual_seed(1)
    coarse = torch.arange(count) % 2 == 1
    pixel = torch.where(coarse, 14.0 * ratio, 14.0)
    pose = Pose(random_rotations(count, generator), torch.randn(count, 2, generator=generator) * 14.0)
    moved = -pose.shift_angstrom / pixel[:, None]
    ctf = microscope(
        count, defocus_u_angstrom=20_000.0, defocus_v_angstrom=19_000.0, phase_shift_deg=0.0, amplitude_contrast=0.1
    )
    molecule = replace(blobs().scaled(0.5), sigma=0.75)
    shown = molecule.projection(pose.rotation, moved, 16)
    shown[coarse] = molecule.as_stored(1 / ratio).projection(pose.rotation, moved, 16)[coarse]
    clean = fourier_to_image(shown * transfer_at(ctf, frequency_grid(16), pixel), 16).float()
    clean = clean * (0.5 / clean.var()).sqrt()
    noise = torch.randn(count, 16, 16, generator=generator)
    accuracy = []
    # The second time as strong as in counts, which grow with the pixel's area: an amplitude, no conformation.
    for strength in (1.0, ratio):
        images = torch.where(coarse[:, None, None], clean * strength, clean) + noise
        latent = fit_linear_latents(stored_images(images, pose, ctf, pixel), np.arange(count), SMALL, 2, 0)
        accuracy.append(score_latents(latent.numpy(), coarse.double().numpy(), 0.0, True).class_accuracy)
    assert max(accuracy) < 0.57


def test_where_conformations_may_not_differ_principal_maps_have_no_density(
    swinging: tuple[ParticleStore, np.ndarray],
) -> None:
    store, state = swinging
    truth = store.path.parent / "particles" / "truth"
    states = torch.stack([read_volume(path).voxels for path in sorted(truth.glob("volume_*.mrc"))])
    rows, varying = np.arange(400), states.std(0) > 0.05 * states.std(0).max()
    assert 0 < (varying & SMALL).sum() < 0.5 * SMALL.sum()
    latent = fit_linear_latents(store, rows, SMALL, 2, 0, varying=varying)
    maps = fit_principal_maps(store, rows, SMALL, latent, varying)
    assert (maps[1:, ~varying] == 0).all()
    assert (maps[1:, varying & SMALL] != 0).all()
    assert (maps[0, SMALL] != 0).all()
    assert score_latents(latent.numpy(), state, 0.0, False).latent_rank_correlation > 0.8
