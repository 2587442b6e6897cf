"""A small world with one motion: a blob that goes round another, as maps, truth folder and finished run."""

from pathlib import Path

import numpy as np
import torch
from support.training_records import training_record

from cryoformer_dist.analysis.evaluate import Estimate, evaluate, evaluate_alone
from cryoformer_dist.analysis.evaluation_files import write_evaluation
from cryoformer_dist.analysis.reconstruct import SeriesPlan, read_all_series, reconstruct
from cryoformer_dist.analysis.truth import Truth, read_truth
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.manifest import SCHEMA_VERSION, RunManifest, write_manifest
from cryoformer_dist.runs.training_log import write_training_log
from cryoformer_dist.storage.working_folder import WorkingFolder

BOX = 16
VOXEL_SIZE_ANGSTROM = 4.0


def blobs(angle_deg: np.ndarray) -> np.ndarray:
    """A still blob and one that goes round it: ``(states, BOX, BOX, BOX)``."""
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    maps = []
    for angle in np.deg2rad(angle_deg):
        still = np.exp(-((x + 1) ** 2 + y**2 + z**2) / 6)
        moving = np.exp(-((x - 4 * np.cos(angle)) ** 2 + (y - 4 * np.sin(angle)) ** 2 + (z - 2) ** 2) / 4)
        maps.append(still + 0.8 * moving)
    return np.array(maps, dtype=np.float32)


def decode_circle(latents: np.ndarray) -> np.ndarray:
    """The perfect decoder for latents (cos, sin)."""
    return blobs(np.rad2deg(np.arctan2(latents[:, 1], latents[:, 0])))


def circle_truth(particles: int, states: int) -> Truth:
    """A full circle of which only some states have a reference map."""
    rng = np.random.default_rng(3)
    coordinates = np.arange(states) * 360.0 / states
    return Truth(
        state=rng.uniform(0, 360, particles),
        rotation=random_rotations(particles, torch.Generator().manual_seed(0)).numpy(),
        shift_angstrom=rng.uniform(-5, 5, (particles, 2)).astype(np.float32),
        volume_state=coordinates,
        volumes=blobs(coordinates),
        voxel_size_angstrom=VOXEL_SIZE_ANGSTROM,
        period=360.0,
        discrete=False,
    )


def on_circle(state_deg: np.ndarray) -> np.ndarray:
    """The perfect latents, ``(particles, 2)``."""
    angle = np.deg2rad(state_deg)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def write_truth(folder: Path, particles: int, states: int) -> Path:
    """Truth folder of a full circle."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    coordinates = np.arange(states) * 360.0 / states
    np.savez(
        folder / "truth.npz",
        state=rng.uniform(0, 360, particles),
        rotation=random_rotations(particles, torch.Generator().manual_seed(0)).numpy(),
        shift_angstrom=rng.uniform(-5, 5, (particles, 2)).astype(np.float32),
        volume_state=coordinates,
        period=np.float64(360),
        discrete=np.bool_(False),
    )
    for index, voxels in enumerate(blobs(coordinates)):
        write_volume(folder / f"volume_{index:03d}.mrc", Volume(torch.from_numpy(voxels), VOXEL_SIZE_ANGSTROM))
    return folder


MANIFEST = RunManifest(
    schema_version=SCHEMA_VERSION,
    name="blobs",
    seed=0,
    store="particles.zarr",
    store_fingerprint="ab12",
    particles=500,
    box_size=16,
    pixel_size_angstrom=3.0,
    backend="torch",
    engine="torch",
    python="3.11",
    versions={"cryoformer-dist": "1.2.3"},
)


def write_run(run: Path, truth_folder: Path, *, judged: bool = True, refined: bool = True) -> Path:
    """Everything a finished run leaves behind, from a perfect decoder."""
    run.mkdir()
    truth = read_truth(truth_folder)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(truth.state))
    angle = np.deg2rad(truth.state[order])
    latents = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.05 * rng.normal(size=(len(order), 2))
    latents = latents.astype(np.float32)
    poses = (truth.rotation[order], truth.shift_angstrom[order])
    moved = poses[1] + rng.normal(size=poses[1].shape).astype(np.float32)
    estimate = Estimate(latents, order, poses[0], moved, *(poses if refined else (None, None)))
    consensus = Volume(torch.from_numpy(truth.volumes.mean(axis=0)), VOXEL_SIZE_ANGSTROM)
    write_volume(run / "consensus.mrc", consensus)
    plan, labels = SeriesPlan(clusters=4, axes=2, points=3), ["made by a test"]
    found = {
        "latent_deviation": np.full_like(latents, 0.05),
        "amplitude": np.exp(0.2 * rng.normal(size=len(order))).astype(np.float32),
        "weight": (rng.uniform(size=len(order)) > 0.1).astype(np.float32),
    }
    table = {"latent": latents, "source_row": order} | (found if refined else {})
    reconstruct(WorkingFolder.on_disk(run), decode_circle, table, VOXEL_SIZE_ANGSTROM, plan, labels)
    clusters = read_all_series(run, "kmeans")["kmeans"]
    against = evaluate(decode_circle, estimate, consensus, truth)
    write_evaluation(run, against if judged else evaluate_alone(clusters, estimate, consensus))
    records = [
        training_record(
            stage=stage,
            step=10 * number,
            loss=1.0 - 0.01 * number,
            particles_per_second=100.0 + number,
            slowness=1.0,
            data_wait_share=0.02,
            seconds=5.0 * (6 * index + number),
            workers=2,
        )
        for index, stage in enumerate(("pose_settling", "reconstruction"))
        for number in range(1, 7)
    ]
    write_training_log(run, records)
    (run / "config.yaml").write_text("training:\n  seed: 0  # <not markup>\n")
    write_manifest(run, MANIFEST)
    return run
