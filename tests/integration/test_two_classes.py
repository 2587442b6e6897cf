"""Third-party images of two classes, each particle seen in 8 to 10 tilts: does the latent tell the classes apart?"""

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.analysis.latent import kmeans
from cryoformer_dist.analysis.trained import load_trained
from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.io.cryodrgn import load_numpy_pickle
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.io.reading import check_stacks, read_particles
from cryoformer_dist.orchestration.worker import SilentReporter, train_alone
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import comparable_frequencies, image_to_fourier, mean_squared_error_half_plane
from cryoformer_dist.physics.grids import frequency_grid, lattice_points
from cryoformer_dist.physics.projection import project_points
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.preparation import prepare_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.CryoFormerWarning"),
]


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "particles" / "tomodrgn_2class"


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    table = read_particles(folder / "10076_both_32_sim.star", datadir=folder)
    check_stacks(table)
    output = tmp_path_factory.mktemp("two_classes") / "particles.zarr"
    return convert_serially(plan_conversion(table, output, ConversionOptions()))


def particle_of_image(folder: Path, images: int) -> np.ndarray:
    """Particle number of each star row: the name in its last column."""
    rows = (folder / "10076_both_32_sim.star").read_text().split("\n")
    names = [row.split()[-1] for row in rows if ".mrcs" in row]
    assert len(names) == images
    stack = ["classD" in row for row in rows if ".mrcs" in row]
    return np.unique([f"{name}-{side}" for name, side in zip(names, stack, strict=True)], return_inverse=True)[1]


def accuracy(assigned: np.ndarray, label: np.ndarray) -> float:
    """Share of right assignments under the better naming of two classes."""
    right = float((assigned == label).mean())
    return max(right, 1 - right)


def oracle_errors(store: ParticleStore, folder: Path) -> np.ndarray:
    """Squared error of every image under each true map at the true pose, each map at its best common scale."""
    particles, rows, box = store.particles(), np.arange(len(store)), store.box_size
    target = image_to_fourier(torch.from_numpy(store.read_images(rows).astype(np.float32)))
    frequency = frequency_grid(box)[None] / store.pixel_size_angstrom
    transfer = contrast_transfer_function(particles.ctf(rows), frequency)
    pose = particles.pose(rows)
    weight = comparable_frequencies(box)
    errors = []
    for name in ("D", "E"):
        voxels = read_volume(folder / f"10076_class{name}_32.mrc").voxels
        density = voxels.reshape(1, -1).expand(len(rows), -1)
        shift = -pose.shift_angstrom / store.pixel_size_angstrom
        image = project_points(density, lattice_points(box), pose.rotation, shift, box) * transfer * weight
        scale = (image.conj() * target).real.sum() / image.abs().square().sum()
        errors.append(mean_squared_error_half_plane(target - scale * image, weight).numpy())
    return np.stack(errors, axis=1)


def test_latent_assigns_classes_nearly_as_well_as_maximum_likelihood_with_the_true_maps(
    store: ParticleStore, folder: Path, tmp_path: Path
) -> None:
    particle = particle_of_image(folder, len(store))[store.particles().source_row]
    label_of_image = (store.particles().source_row >= 576).astype(int)  # the star lists class D first
    counts = np.bincount(particle)
    label = np.round(np.bincount(particle, label_of_image) / counts)
    stored_labels = load_numpy_pickle(folder / "labels_D-0_E-1.pkl")
    assert (len(counts), label.sum()) == (len(stored_labels), stored_labels.sum())

    errors = oracle_errors(store, folder)
    pooled = np.stack([np.bincount(particle, errors[:, k]) for k in range(2)], axis=1)
    oracle = accuracy(pooled.argmin(1), label)

    values = {
        "name": "two-classes",
        "dataset": {"store": str(store.path), "loader": "local"},
        "model": {
            "hash_grid": {"levels": 5, "base_resolution": 4, "finest_resolution": 24},
            "decoder": {"queries": 16, "channels": 32, "density_width": 32},
        },
        "training": {"epochs": 30, "global_batch_size": 16, "engine": "torch"},
    }
    run = tmp_path / "run"
    config = parse_config(values, RunConfig, "test")
    prepare_run(config, store, run, resume=False)
    train_alone(WorkingFolder.on_disk(run), config, store, SilentReporter(), torch.get_num_threads(), on_gpu=False)
    latents = load_trained(run).latents
    means = np.stack([np.bincount(particle, column) / counts for column in latents.T], axis=1)
    ours = accuracy(kmeans(means, 2).label, label)
    per_image = accuracy(errors.argmin(1), label_of_image)
    print(f"class accuracy per particle: latent {ours:.3f}, oracle {oracle:.3f}; oracle per image {per_image:.3f}")
    assert ours >= 0.9 * oracle
