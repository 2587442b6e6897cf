"""What every rival is given: the same stored particles, poses, CTF and mask; and what all are judged by."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from cpu_clock import CpuClock

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.occupancy import find_occupied
from cryoformer_dist.orchestration.config_files import read_run_file
from cryoformer_dist.physics.fourier import weighted_shells
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.directory import SHELL_WEIGHT, load_consensus, load_mask, load_shell_weight, write_maps
from cryoformer_dist.simulation.particle_set import TRUTH_FOLDER


@dataclass(frozen=True)
class Snapshot:
    """What a program claims after some epochs: latents of all particles in store order, and maps of latents.

    ``weighted`` says whether the noise of fine shells has been filtered out of the maps already.
    """

    latents: np.ndarray
    decode: Callable[[np.ndarray], np.ndarray]
    weighted: bool = False


@dataclass(frozen=True)
class Contender:
    """One program with its settings.

    Attributes
    ----------
    train
        Goes on from what its folder holds until so many epochs are done.
    epochs
        CPU seconds at the end of each epoch that can be judged.
    snapshot
        State after an epoch.
    remark
        For the reader of the table.
    """

    name: str
    train: Callable[[int], None]
    epochs: Callable[[], dict[int, float]]
    snapshot: Callable[[int], Snapshot]
    remark: str = ""


@dataclass(frozen=True)
class ParticleSet:
    """A simulated set with its truth, and the folder in which rivals work on it."""

    config_path: Path
    config: RunConfig
    store: ParticleStore
    folder: Path

    @staticmethod
    def of(config_path: Path, work: Path | None) -> "ParticleSet":
        config = read_run_file(config_path, [])
        store = ParticleStore.open(Path(config.dataset.store))
        return ParticleSet(config_path.resolve(), config, store, work or Path(config.dataset.store).parent / "rivals")

    @cached_property
    def particles(self) -> StoredParticles:
        return self.store.particles()

    @property
    def truth_folder(self) -> Path:
        return Path(self.store.attributes.source.path).parent / TRUTH_FOLDER

    @property
    def consensus(self) -> Volume:
        return load_consensus(self._prepared())

    @property
    def mask(self) -> torch.Tensor:
        """Where there may be density, found from the particles in the way our own training finds it."""
        return load_mask(self._prepared())

    def alike(self, snapshot: Snapshot) -> Snapshot:
        """The same, its maps filtered as ours are: what any program's maps gain by that is not ours to claim."""
        if snapshot.weighted:
            return snapshot
        weight = load_shell_weight(self._prepared())

        def decode(latents: np.ndarray) -> np.ndarray:
            maps = torch.from_numpy(snapshot.decode(latents))
            return torch.stack([weighted_shells(voxels, weight) for voxels in maps]).numpy()

        return Snapshot(snapshot.latents, decode, weighted=True)

    @property
    def preparation_cpu_seconds(self) -> float:
        """What consensus and mask cost; they count for every program that uses the mask."""
        return CpuClock(self._prepared()).spent()

    def _prepared(self) -> Path:
        folder = self.folder / "prepared"
        if not (folder / SHELL_WEIGHT).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            consensus, voxel_size = back_project(self.store, np.arange(len(self.store))), self.store.pixel_size_angstrom
            mask = find_occupied(consensus.voxels, voxel_size)
            write_maps(folder, consensus, mask, voxel_size)
            CpuClock(folder).append(0, time.process_time() - start)
        return folder
