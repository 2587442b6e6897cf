"""The folder of a run: what was asked, on which data, with what; and the maps that training starts from."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.config.loading import dump_config, load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import StoreError
from cryoformer_dist.initialization.consensus import Consensus
from cryoformer_dist.initialization.pose_search import PoseSearchResult
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.physics.fourier import spectrum
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.layout import (
    CHECKPOINTS,
    CONFIG,
    CONSENSUS,
    FIRST_LATENTS,
    FIRST_POSES,
    MANIFEST,
    OCCUPANCY,
    POSE_SEARCH,
    PREPARED,
    RAY_RECORDS,
    SHELL_WEIGHT,
)
from cryoformer_dist.runs.manifest import RunManifest, read_manifest
from cryoformer_dist.storage.places import Place
from cryoformer_dist.storage.working_folder import WorkingFolder, open_working_folder

# Checkpoints come and go by themselves, and Ray keeps its own records.
_LEFT_AT_HOME = (CHECKPOINTS, RAY_RECORDS)


def selected_rows(config: RunConfig, store: ParticleStore) -> Rows:
    """Store rows of the half-set that the run trains on.

    Raises
    ------
    StoreError
        If a half-set is asked for that the store does not have.
    """
    half = store.particles().half_set
    seen = len(store) - config.dataset.hold_out
    if seen <= 0:
        raise StoreError(
            f"{store.path}: dataset.hold_out {config.dataset.hold_out} leaves none of {len(store)} particles"
        )
    if config.dataset.half == "both":
        return np.arange(seen)
    rows = np.flatnonzero(half[:seen] == config.dataset.half)
    if not len(rows):
        raise StoreError(
            f"{store.path}: no particle belongs to half-set {config.dataset.half}; the source has no rlnRandomSubset "
            "or alignments3D/split column: set dataset.half to both"
        )
    return rows


@contextmanager
def open_run_directory(home: str | Place) -> Iterator[WorkingFolder]:
    """A run directory to work in: itself, or a copy of what an object store holds of it, but for checkpoints."""
    with open_working_folder(home, _LEFT_AT_HOME) as run:
        yield run


def send_run(run: WorkingFolder) -> None:
    """Send home what preparation or analysis has written."""
    run.send_changes(_LEFT_AT_HOME, last=MANIFEST)


def is_prepared(run: Path) -> bool:
    """Whether a folder holds a run that workers can train."""
    return (run / MANIFEST).is_file()


def load_run(run: Path) -> tuple[RunConfig, RunManifest]:
    """Configuration and manifest of a run.

    Raises
    ------
    ConfigError
        If the folder holds no run, or one of another version.
    """
    manifest = read_manifest(run)
    return load_config(run / CONFIG, RunConfig), manifest


def load_consensus(run: Path) -> Volume:
    """The back-projection of a prepared run's particles."""
    return read_volume(run / CONSENSUS)


def write_shell_weight(run: Path, weight: Float[Tensor, " shells"]) -> None:
    """Keep what each Fourier shell of a run's maps counts for."""
    np.save(run / SHELL_WEIGHT, weight.numpy())


def load_shell_weight(run: Path) -> Float[Tensor, " shells"]:
    """What each Fourier shell of a run's maps counts for."""
    return torch.from_numpy(np.load(run / SHELL_WEIGHT, allow_pickle=False))


def load_lattice(config: RunConfig, run: Path) -> Lattice:
    """The points of a prepared run; those of a checkpoint are in the checkpoint."""
    return Lattice.of(load_mask(run), config.training.jitter_lattices, config.seed)


def load_mask(run: Path) -> Bool[Tensor, "box box box"]:
    """Where a prepared run allows density."""
    return read_volume(run / OCCUPANCY).voxels > 0.5


def write_occupancy(run: Path, mask: Bool[Tensor, "box box box"], voxel_size_angstrom: float) -> Path:
    """Where a run allows density, as a map."""
    path = run / OCCUPANCY
    write_volume(path, Volume(mask.float(), voxel_size_angstrom), ["cryoformer-dist occupancy"])
    return path


def load_spectrum(config: RunConfig, run: Path) -> Tensor | None:
    """Root-mean-square amplitude per Fourier shell of a prepared run's consensus; ``None`` where no model needs it."""
    return None if config.model.domain == "real" else spectrum(load_consensus(run).voxels)


def load_first_latents(run: Path) -> Tensor | None:
    """First latents of a prepared run, if it was prepared with any."""
    path = run / FIRST_LATENTS
    return torch.from_numpy(np.load(path, allow_pickle=False)) if path.is_file() else None


def store_at_first_poses(run: Path, store: ParticleStore) -> ParticleStore:
    """The store at the poses that training starts from: those of the search, if the run was prepared with one."""
    path = run / FIRST_POSES
    if not path.is_file():
        return store
    with np.load(path, allow_pickle=False) as found:
        pose = Pose(torch.from_numpy(found["rotation"]), torch.from_numpy(found["shift_angstrom"]))
        return store.with_pose(found["rows"], pose)


def begin_run(run: Path, config: RunConfig) -> None:
    """Make a run's folder, and write its configuration."""
    run.mkdir(parents=True, exist_ok=True)
    (run / CONFIG).write_text(dump_config(config))
    for left_over in PREPARED:
        # Of a preparation that was cut short: this one may ask for less.
        (run / left_over).unlink(missing_ok=True)


def write_maps(run: Path, consensus: Consensus, mask: Bool[Tensor, "box box box"], pixel_size_angstrom: float) -> None:
    """Consensus map, where there may be density, and what its Fourier shells count for."""
    volume = Volume(consensus.voxels.float(), pixel_size_angstrom)
    write_volume(run / CONSENSUS, volume, ["cryoformer-dist consensus"])
    write_occupancy(run, mask, pixel_size_angstrom)
    write_shell_weight(run, consensus.shell_weight(mask, pixel_size_angstrom))


def write_first_poses(run: Path, rows: Rows, found: PoseSearchResult) -> None:
    """Poses that were found, and whether the search did any good."""
    pose = found.pose
    np.savez(run / FIRST_POSES, rows=rows, rotation=pose.rotation.numpy(), shift_angstrom=pose.shift_angstrom.numpy())
    summary = {
        "half_map_fsc_at_given_poses": found.agreement_given,
        "half_map_fsc_after_rigid_search": found.agreement_found,
        "given_poses_kept": found.kept,
    }
    (run / POSE_SEARCH).write_text(json.dumps(summary, indent=1))


def write_first_latents(run: Path, latents: Float[Tensor, "particles dimensions"]) -> None:
    """Latents that training starts from, of every row of the store."""
    np.save(run / FIRST_LATENTS, latents.numpy())
