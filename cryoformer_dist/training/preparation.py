"""What training starts from, made of a run's particles: poses, consensus map, occupancy, first latents."""

import hashlib
import json
import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, SlowEncodingWarning, SmallSampleWarning, StoreError
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.linear_model import fit_linear_latents, fit_principal_maps
from cryoformer_dist.initialization.occupancy import find_occupied, sphere
from cryoformer_dist.initialization.pose_search import (
    ROUNDS_BY_CONFORMATION,
    LinearConformations,
    PoseSearchResult,
    search_poses,
    search_poses_by_conformation,
)
from cryoformer_dist.machine import WorkerMemory, free_bytes, measure_worker_memory
from cryoformer_dist.model.kernels.sizes import refuse_sizes_without_kernel
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.runs.directory import (
    begin_run,
    is_prepared,
    load_lattice,
    load_mask,
    load_run,
    selected_rows,
    write_first_latents,
    write_first_poses,
    write_maps,
)
from cryoformer_dist.runs.layout import PREPARED
from cryoformer_dist.runs.manifest import RunManifest, write_manifest
from cryoformer_dist.training.memory import (
    Workload,
    refuse_preparation,
    refuse_too_large,
    settle_batch_size,
    with_batch_size,
)
from cryoformer_dist.training.objectives import keeps_operators

# Fewer have hardly a mean and a spread.
_FEWEST_NORMALISED = 8


def prepare_run(
    config: RunConfig,
    store: ParticleStore,
    run: Path,
    resume: bool,
    progress: StagedProgress = silent,
    memory: WorkerMemory | None = None,
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
    memory
        Where it will be trained; in this process when ``None``.

    Raises
    ------
    ConfigError
        If the folder holds a run and ``resume`` is not asked for, or the run there is another one, or it does not fit
        the workers' memory, their GPUs' kernels or the store's box: then nothing is written.
    """
    memory = memory or measure_worker_memory(on_gpu=torch.cuda.is_available())
    _refuse_sizes(config, store, memory)
    if is_prepared(run):
        if not resume:
            raise ConfigError(f"{run}: holds a run already; --resume goes on with it, --name NAME starts another")
        _refuse_other_run(config, store, run)
        earlier, _ = load_run(run)
        refuse_too_large(earlier, _workload(earlier, store, len(load_lattice(earlier, run).flat_index)), memory)
        return
    # What the data's occupancy will be nobody knows yet; all the rest must fit.
    by_data = config.training.occupancy == "data"
    refuse_too_large(config, _workload(config, store, 0 if by_data else int(sphere(store.box_size).sum())), memory)
    refuse_preparation(store.box_size, free_bytes())
    rows = selected_rows(config, store)
    store, found = _searched_poses(config, store, rows, progress)
    consensus = back_project(store, rows, progress=partial(progress, "consensus map"))
    mask = _occupancy(config, store, consensus.voxels)
    config = _begin(config, store, run, mask, memory)
    if found is not None:
        write_first_poses(run, rows, found)
    write_maps(run, consensus, mask, store.pixel_size_angstrom)
    if _latents_start_linear(config):
        write_first_latents(run, _first_latents(config, store, rows, mask, progress))
    write_manifest(run, RunManifest.of(config, store, len(selected_rows(config, store))))


def prepare_like(config: RunConfig, store: ParticleStore, run: Path, other: Path, memory: WorkerMemory) -> None:
    """Make a run directory as `prepare_run` does, from a prepared run of the same `preparation_key`.

    Raises
    ------
    ConfigError
        If it does not fit the workers' memory, their GPUs' kernels or the store's box: then nothing is written.
    """
    _refuse_sizes(config, store, memory)
    config = _begin(config, store, run, load_mask(other), memory)
    for name in PREPARED:
        if (other / name).is_file():
            shutil.copyfile(other / name, run / name)
    write_manifest(run, RunManifest.of(config, store, len(selected_rows(config, store))))


def _begin(config: RunConfig, store: ParticleStore, run: Path, mask: Tensor, memory: WorkerMemory) -> RunConfig:
    """Begin a run's folder with the batch that fits."""
    points = int(mask.sum())
    config = settle_batch_size(config, _workload(config, store, points), memory)
    _warn_of_slow_encoding(config, points, memory)
    _warn_of_small_batches(config)
    begin_run(run, config)
    return config


def _warn_of_slow_encoding(config: RunConfig, points: int, memory: WorkerMemory) -> None:
    """Thousands of small launches a step are nothing to a CPU, and most of a step to a GPU."""
    by_lattice = config.training.projection == "lattice" and config.model.domain == "real"
    if (
        memory.on_gpu
        and by_lattice
        and config.model.hash_grid.backend == "torch"
        and not keeps_operators(config, points)
    ):
        warnings.warn(
            f"{points} points are too many for stored operators of the hash grid: torch hashes them again at every "
            "step, which takes a GPU longer than all the rest; set model.hash_grid.backend: triton",
            SlowEncodingWarning,
            stacklevel=2,
        )


def _warn_of_small_batches(config: RunConfig) -> None:
    """The paper's encoder normalises its latents over the images of a step."""
    size = config.training.global_batch_size
    if config.model.latent.form == "encoder" and size != "auto" and size < _FEWEST_NORMALISED:
        warnings.warn(
            f"model.latent.form: encoder normalises latents over the {size} images of a step: take a "
            f"training.global_batch_size of {_FEWEST_NORMALISED} or more",
            SmallSampleWarning,
            stacklevel=2,
        )


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
        "seed": config.seed,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _refuse_sizes(config: RunConfig, store: ParticleStore, memory: WorkerMemory) -> None:
    """Refuse what the first step would stumble over."""
    if memory.on_gpu:
        refuse_sizes_without_kernel(config.model)
    coarse_box = config.training.coarse_box or 0
    if coarse_box > store.box_size:
        raise ConfigError(
            f"training.coarse_box: {coarse_box} exceeds the store's box of {store.box_size}; leave it out, or take a "
            "smaller one"
        )


def _refuse_other_run(config: RunConfig, store: ParticleStore, run: Path) -> None:
    earlier, manifest = load_run(run)
    if config.training.global_batch_size == "auto":
        # It goes on with what it came to.
        config = with_batch_size(config, earlier.training.global_batch_size)
    if manifest.store_fingerprint != store.fingerprint:
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


def _workload(config: RunConfig, store: ParticleStore, points: int) -> Workload:
    return Workload.of(store, len(selected_rows(config, store)), points)


def _searched_poses(
    config: RunConfig, store: ParticleStore, rows: Rows, progress: StagedProgress
) -> tuple[ParticleStore, PoseSearchResult | None]:
    """The store at poses searched for around the given ones, if they are to be refined per particle."""
    if not _poses_are_searched(config):
        return store, None
    found = search_poses(store, rows, config.seed, partial(progress, "pose search"))
    if not found.kept and _latents_start_linear(config):
        found = replace(found, pose=_poses_by_conformation(config, store, rows, found.pose, progress))
    return store.with_pose(rows, found.pose), found


def _poses_by_conformation(
    config: RunConfig, store: ParticleStore, rows: Rows, pose: Pose, progress: StagedProgress
) -> Pose:
    """Search on with what a linear model learns of the motion, twice: at better poses it learns more."""
    seed = config.seed
    for rounds in ROUNDS_BY_CONFORMATION:
        here = store.with_pose(rows, pose)
        consensus = back_project(here, rows, progress=partial(progress, "consensus map"))
        mask = _occupancy(config, here, consensus.voxels)
        latents = fit_linear_latents(
            here, rows, mask, _linear_dimensions(config), seed, partial(progress, "conformations for the poses")
        )
        conformations = LinearConformations(latents, fit_principal_maps(here, rows, mask, latents))
        report = partial(progress, "pose search by conformation")
        pose = search_poses_by_conformation(store, rows, pose, conformations, rounds, seed, report)
    return pose


def _occupancy(
    config: RunConfig, store: ParticleStore, consensus: Float[Tensor, "box box box"]
) -> Bool[Tensor, "box box box"]:
    by_data = config.training.occupancy == "data"
    mask = find_occupied(consensus, store.pixel_size_angstrom) if by_data else sphere(store.box_size)
    if not mask.any():
        raise StoreError(
            f"{store.path}: the back-projection of the particles shows no density above the background; run "
            "`cryoformer-dist check` on the store (poses, CTF and contrast), or set training.occupancy to sphere"
        )
    return mask


def _first_latents(
    config: RunConfig, store: ParticleStore, rows: Rows, mask: Tensor, progress: StagedProgress
) -> Float[Tensor, "particles dimensions"]:
    """First latents of every store row: the linear model's coordinates, the other dimensions close to zero."""
    count, seed = _linear_dimensions(config), config.seed
    first = 0.1 * torch.randn(len(store), config.model.latent.dimensions, generator=torch.Generator().manual_seed(seed))
    first[rows, :count] = fit_linear_latents(store, rows, mask, count, seed, partial(progress, "first latents"))
    return first


def _poses_are_searched(config: RunConfig) -> bool:
    return config.model.pose.form == "table" and config.model.pose.start == "search"


def _latents_start_linear(config: RunConfig) -> bool:
    latent = config.model.latent
    return latent.tabulated and latent.start == "linear"


def _linear_dimensions(config: RunConfig) -> int:
    return min(config.model.latent.linear_dimensions, config.model.latent.dimensions)
