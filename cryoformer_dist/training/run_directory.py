"""The folder of a run: what was asked, on which data, with what; and the maps that training starts from."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.config.loading import dump_config, load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, StoreError
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.model.kernels.sizes import refuse_sizes_without_kernel
from cryoformer_dist.physics.fourier import spectrum
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.storage.places import Place
from cryoformer_dist.storage.run_folder import MANIFEST, RunFolder, opened_folder
from cryoformer_dist.training.consensus import (
    CONSENSUS,
    SHELL_WEIGHT,
    Consensus,
    back_project,
    load_consensus,
    write_shell_weight,
)
from cryoformer_dist.training.linear_start import linear_latents, principal_maps
from cryoformer_dist.training.machine import Room, free_bytes, room_here
from cryoformer_dist.training.memory import (
    Workload,
    refuse_preparation,
    refuse_too_large,
    settle_batch_size,
    with_batch_size,
)
from cryoformer_dist.training.occupancy import Lattice, occupied, sphere
from cryoformer_dist.training.pose_search import (
    ROUNDS_BY_CONFORMATION,
    Conformations,
    FoundPoses,
    search_poses,
    search_poses_by_conformation,
)

_OCCUPANCY = "occupancy.mrc"
_FIRST_LATENTS = "first_latents.npy"
_FIRST_POSES = "first_poses.npz"
_SEARCH_SUMMARY = "pose_search.json"
# Checkpoints come and go by themselves, and Ray keeps its own records.
_LEFT_AT_HOME = ("checkpoints", "ray")
_PREPARED = (CONSENSUS, _OCCUPANCY, SHELL_WEIGHT, _FIRST_POSES, _FIRST_LATENTS, _SEARCH_SUMMARY)
_PACKAGES = ("cryoformer-dist", "torch", "ray", "deepspeed", "zarr", "numpy")


StagedProgress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


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


def prepare_run(
    config: RunConfig,
    store: ParticleStore,
    run: Path,
    resume: bool,
    progress: StagedProgress | None = None,
    room: Room | None = None,
    like: Path | None = None,
) -> None:
    """Make a run directory ready for workers: configuration, manifest, consensus map, occupancy.

    Parameters
    ----------
    config
        Resolved configuration.
    store
        Particle store.
    run
        Run directory; made when absent.
    resume
        Go on with the run that is there.
    progress
        Called with (stage, done, in all).
    room
        Where it will be trained; in this process when ``None``.
    like
        Prepared run of the same `preparation_key`, whose maps, first poses and first latents are copied.

    Raises
    ------
    ConfigError
        If the folder holds a run and ``resume`` is not asked for, or the run there is another one, or it does not fit
        the workers' memory, their GPUs' kernels or the store's box: then nothing is written.
    """
    room = room or room_here(on_gpu=torch.cuda.is_available())
    _refuse_sizes(config, store, room)
    if is_prepared(run):
        if not resume:
            raise ConfigError(f"{run}: holds a run already; --resume goes on with it, --name NAME starts another")
        _refuse_other_run(config, store, run)
        earlier, _ = load_run(run)
        refuse_too_large(earlier, _workload(earlier, store, len(load_lattice(earlier, run).flat_index)), room)
        return
    # What the data's occupancy will be nobody knows yet; all the rest must fit.
    by_data = config.training.occupancy == "data"
    refuse_too_large(config, _workload(config, store, 0 if by_data else int(sphere(store.box_size).sum())), room)
    report = progress or _silent
    found: FoundPoses | None = None
    if like is None:
        refuse_preparation(store.box_size, free_bytes())
        store, found = _searched_poses(config, store, report)
        consensus = back_project(store, selected_rows(config, store), progress=partial(report, "consensus map"))
        mask = _occupancy(config, store, consensus.voxels)
    else:
        mask = load_mask(like)
    config = settle_batch_size(config, _workload(config, store, int(mask.sum())), room)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_config(config))
    for left_over in (_FIRST_POSES, _FIRST_LATENTS, _SEARCH_SUMMARY):
        # Of a preparation that was cut short: this one may ask for none.
        (run / left_over).unlink(missing_ok=True)
    if like is None:
        if found is not None:
            _write_poses(run, selected_rows(config, store), found)
        _write_maps(run, consensus, mask, store.pixel_size_angstrom)
        _prepare_latents(config, store, run, mask, report)
    else:
        for name in _PREPARED:
            if (like / name).is_file():
                shutil.copyfile(like / name, run / name)
    # Written last: a folder with a manifest is ready.
    manifest_path = run / MANIFEST
    temporary = manifest_path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_manifest(config, store), indent=1))
    temporary.replace(manifest_path)


def _refuse_sizes(config: RunConfig, store: ParticleStore, room: Room) -> None:
    """Refuse what the first step would stumble over."""
    if room.on_gpu:
        refuse_sizes_without_kernel(config.model)
    coarse_box = config.training.coarse_box or 0
    if coarse_box > store.box_size:
        raise ConfigError(
            f"training.coarse_box: {coarse_box} exceeds the store's box of {store.box_size}; leave it out, or take a "
            "smaller one"
        )


@contextmanager
def opened_run(home: str | Place) -> Iterator[RunFolder]:
    """A run directory to work in: itself, or a copy of what an object store holds of it, but for checkpoints."""
    with opened_folder(home, _LEFT_AT_HOME) as run:
        yield run


def send_run(run: RunFolder) -> None:
    """Send home what preparation or analysis has written."""
    run.send_changes(_LEFT_AT_HOME)


def preparation_key(config: RunConfig, store: ParticleStore) -> str:
    """Name of all that maps, first poses and first latents depend on: runs of one key are prepared alike."""
    linear = _latents_start_linear(config)
    inputs = {
        "store": store.fingerprint,
        "half": config.dataset.half,
        "hold_out": config.dataset.hold_out,
        "poses": _poses_are_searched(config),
        "latents": [config.model.latent.dimensions, _linear_dimensions(config)] if linear else None,
        "occupancy": config.training.occupancy,
        "seed": config.training.seed,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def is_prepared(run: Path) -> bool:
    """Whether a folder holds a run that workers can train."""
    return (run / MANIFEST).is_file()


def load_run(run: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Configuration and manifest of a run.

    Raises
    ------
    ConfigError
        If the folder holds no run.
    """
    if not is_prepared(run):
        raise ConfigError(f"{run}: not a run directory (no {MANIFEST})")
    return load_config(run / "config.yaml", RunConfig), json.loads((run / MANIFEST).read_text())


def load_lattice(config: RunConfig, run: Path) -> Lattice:
    """The points of a prepared run; those of a checkpoint are in the checkpoint."""
    training = config.training
    return Lattice.of(load_mask(run), training.jitter_lattices, training.seed)


def load_mask(run: Path) -> Bool[Tensor, "box box box"]:
    """Where a prepared run allows density."""
    return read_volume(run / _OCCUPANCY).voxels > 0.5


def write_occupancy(run: Path, mask: Bool[Tensor, "box box box"], voxel_size_angstrom: float) -> Path:
    """Where a run allows density, as a map."""
    path = run / _OCCUPANCY
    write_volume(path, Volume(mask.float(), voxel_size_angstrom), ["cryoformer-dist occupancy"])
    return path


def load_spectrum(config: RunConfig, run: Path) -> Tensor | None:
    """Root-mean-square amplitude per Fourier shell of a prepared run's consensus; ``None`` where no model needs it."""
    return None if config.model.domain == "real" else spectrum(load_consensus(run).voxels)


def load_first_latents(run: Path) -> Tensor | None:
    """First latents of a prepared run, if it was prepared with any."""
    path = run / _FIRST_LATENTS
    return torch.from_numpy(np.load(path, allow_pickle=False)) if path.is_file() else None


def store_at_first_poses(run: Path, store: ParticleStore) -> ParticleStore:
    """The store at the poses that training starts from: those of the search, if the run was prepared with one."""
    path = run / _FIRST_POSES
    if not path.is_file():
        return store
    with np.load(path, allow_pickle=False) as found:
        pose = Pose(torch.from_numpy(found["rotation"]), torch.from_numpy(found["shift_angstrom"]))
        return store.with_pose(found["rows"], pose)


def _workload(config: RunConfig, store: ParticleStore, points: int) -> Workload:
    return Workload.of(store, len(selected_rows(config, store)), points)


def _searched_poses(
    config: RunConfig, store: ParticleStore, progress: StagedProgress
) -> tuple[ParticleStore, FoundPoses | None]:
    """The store at poses searched for around the given ones, if they are to be refined per particle."""
    if not _poses_are_searched(config):
        return store, None
    rows = selected_rows(config, store)
    found = search_poses(store, rows, config.training.seed, partial(progress, "pose search"))
    if not found.kept and _latents_start_linear(config):
        found = replace(found, pose=_poses_by_conformation(config, store, rows, found.pose, progress))
    return store.with_pose(rows, found.pose), found


def _write_poses(run: Path, rows: Rows, found: FoundPoses) -> None:
    """Poses that were found, and whether the search did any good."""
    pose = found.pose
    np.savez(run / _FIRST_POSES, rows=rows, rotation=pose.rotation.numpy(), shift_angstrom=pose.shift_angstrom.numpy())
    summary = {
        "half_map_fsc_at_given_poses": found.agreement_given,
        "half_map_fsc_at_found_poses": found.agreement_found,
        "given_poses_kept": found.kept,
    }
    (run / _SEARCH_SUMMARY).write_text(json.dumps(summary, indent=1))


def _poses_by_conformation(
    config: RunConfig, store: ParticleStore, rows: Rows, pose: Pose, progress: StagedProgress
) -> Pose:
    """Search on with what a linear model learns of the motion, twice: at better poses it learns more."""
    seed = config.training.seed
    for rounds in ROUNDS_BY_CONFORMATION:
        here = store.with_pose(rows, pose)
        consensus = back_project(here, rows, progress=partial(progress, "consensus map"))
        mask = _occupancy(config, here, consensus.voxels)
        latents = linear_latents(
            here, rows, mask, _linear_dimensions(config), seed, partial(progress, "conformations for the poses")
        )
        conformations = Conformations(latents, principal_maps(here, rows, mask, latents))
        report = partial(progress, "pose search by conformation")
        pose = search_poses_by_conformation(store, rows, pose, conformations, rounds, seed, report)
    return pose


def _occupancy(
    config: RunConfig, store: ParticleStore, consensus: Float[Tensor, "box box box"]
) -> Bool[Tensor, "box box box"]:
    by_data = config.training.occupancy == "data"
    mask = occupied(consensus, store.pixel_size_angstrom) if by_data else sphere(store.box_size)
    if not mask.any():
        raise StoreError(
            f"{store.path}: the back-projection of the particles shows no density above the background; run "
            "`cryoformer-dist check` on the store (poses, CTF and contrast), or set training.occupancy to sphere"
        )
    return mask


def _poses_are_searched(config: RunConfig) -> bool:
    return config.model.pose.form == "table" and config.model.pose.start == "search"


def _latents_start_linear(config: RunConfig) -> bool:
    latent = config.model.latent
    return latent.tabulated and latent.start == "linear"


def _linear_dimensions(config: RunConfig) -> int:
    return min(config.model.latent.linear_dimensions, config.model.latent.dimensions)


def _write_maps(run: Path, consensus: Consensus, mask: Tensor, pixel_size_angstrom: float) -> None:
    """Consensus map, where there may be density, and what its Fourier shells count for."""
    volume = Volume(consensus.voxels.float(), pixel_size_angstrom)
    write_volume(run / CONSENSUS, volume, ["cryoformer-dist consensus"])
    write_occupancy(run, mask, pixel_size_angstrom)
    write_shell_weight(run, consensus.shell_weight(mask, pixel_size_angstrom))


def _prepare_latents(
    config: RunConfig, store: ParticleStore, run: Path, mask: Tensor, progress: StagedProgress
) -> None:
    """First latents of every store row: the linear model's coordinates, the other dimensions close to zero."""
    if not _latents_start_linear(config):
        return
    rows, count, seed = selected_rows(config, store), _linear_dimensions(config), config.training.seed
    first = 0.1 * torch.randn(len(store), config.model.latent.dimensions, generator=torch.Generator().manual_seed(seed))
    first[rows, :count] = linear_latents(store, rows, mask, count, seed, partial(progress, "first latents"))
    np.save(run / _FIRST_LATENTS, first.numpy())


def _manifest(config: RunConfig, store: ParticleStore) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": config.name,
        "seed": config.training.seed,
        "store": str(store.path),
        "store_fingerprint": store.fingerprint,
        "particles": len(selected_rows(config, store)),
        "box_size": store.box_size,
        "pixel_size_angstrom": store.pixel_size_angstrom,
        "backend": config.model.hash_grid.backend,
        "engine": config.training.engine,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _refuse_other_run(config: RunConfig, store: ParticleStore, run: Path) -> None:
    earlier, manifest = load_run(run)
    if config.training.global_batch_size == "auto":
        # It goes on with what it came to.
        config = with_batch_size(config, earlier.training.global_batch_size)
    if manifest["store_fingerprint"] != store.fingerprint:
        raise ConfigError(f"{run}: was trained on another store than {store.path}; use that one, or another --name")
    changed = [
        f"{part}.{key}"
        for part in ("model", "training")
        for key in getattr(config, part).model_dump()
        if getattr(getattr(earlier, part), key) != getattr(getattr(config, part), key)
    ]
    for key in ("half", "hold_out"):
        if getattr(earlier.dataset, key) != getattr(config.dataset, key):
            changed.insert(0, f"dataset.{key}")
    if changed:
        raise ConfigError(
            f"{run}: was started with other values of {', '.join(changed)}; resume with those, or use another --name"
        )
