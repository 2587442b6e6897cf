"""Whether a run can be made, told before its particles are looked at; and the run directory it begins with."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import torch

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.selection import read_selection
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, SmallSampleWarning
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.machine import WorkerMemory, gib, measure_worker_memory
from cryoformer_dist.model.kernels.sizes import refuse_sizes_without_kernel
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.runs.directory import (
    holds_run,
    load_mask,
    load_run,
    note_store_place,
    rewrite_config,
    selected_rows,
    write_config,
)
from cryoformer_dist.runs.layout import OCCUPANCY, PREPARED, RESULTS
from cryoformer_dist.runs.manifest import RunManifest, write_manifest
from cryoformer_dist.runs.masks import mask_digest, read_masks, write_masks
from cryoformer_dist.runs.resuming import find_refused_changes
from cryoformer_dist.storage.places import place_at
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.first_estimates import make_first_estimates
from cryoformer_dist.training.memory import (
    Workload,
    refuse_too_large,
    settle_batch_size,
    with_batch_size,
)

# Fewer have hardly a mean and a spread.
_FEWEST_NORMALISED = 8
# Half maps on twofold grids and their transforms: 7.1 GiB at 256 pixels, measured, the program included.
_PREPARATION_BYTES_PER_VOXEL = 450


def begin_run(config: RunConfig, store: ParticleStore, run: Path, resume: bool, memory: WorkerMemory) -> None:
    """Begin a run directory, or see that it holds this run: what can be told before the particles are looked at.

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
    memory
        Where it will be trained.

    Raises
    ------
    ConfigError
        If the folder holds a run and ``resume`` is not asked for, or the run there is another one, or it does not fit
        the workers' memory, their GPUs' kernels or the store's box: then nothing is written.
    """
    _refuse_sizes(config, store, memory)
    if holds_run(run):
        if not resume:
            raise ConfigError(f"{run}: holds a run already; --resume goes on with it, --name NAME starts another")
        config = _settle_resumed(config, store, run)
    refuse_too_large(config, _workload(config, store, _count_points(config, store, run)), memory)
    if holds_run(run):
        _note_changes(config, store, run)
        return
    _refuse_preparation(store.box_size, memory.bytes)
    masks = read_masks(config, store)
    _warn_of_small_batches(config)
    selected_rows(config, store)
    write_config(run, config)
    write_masks(run, masks, store.pixel_size_angstrom)
    write_manifest(run, RunManifest.of(config, store, len(selected_rows(config, store)), memory.on_gpu))


def prepare_run(
    config: RunConfig,
    store: ParticleStore,
    run: Path,
    resume: bool,
    progress: StagedProgress = silent,
    memory: WorkerMemory | None = None,
) -> None:
    """Begin a run and make what it starts from, all in this process; see `begin_run`, `make_first_estimates`.

    Parameters
    ----------
    progress
        Called with (stage, done, in all).
    memory
        Where it will be trained; in this process when ``None``.
    """
    memory = memory or measure_worker_memory(on_gpu=torch.cuda.is_available())
    begin_run(config, store, run, resume, memory)
    make_first_estimates(WorkingFolder.on_disk(run), load_run(run)[0], store, memory, progress)


def prepare_like(config: RunConfig, store: ParticleStore, run: Path, other: Path, memory: WorkerMemory) -> None:
    """Make a run directory as `prepare_run` does, from a prepared run of the same `preparation_key`.

    Raises
    ------
    ConfigError
        If it does not fit the workers' memory, their GPUs' kernels or the store's box: then nothing is written.
    """
    _refuse_sizes(config, store, memory)
    config = settle_batch_size(config, _workload(config, store, int(load_mask(other).sum())), memory)
    _warn_of_small_batches(config)
    write_config(run, config)
    for name in PREPARED:
        if (other / name).is_file():
            shutil.copyfile(other / name, run / name)
    write_manifest(run, RunManifest.of(config, store, len(selected_rows(config, store)), memory.on_gpu))


def _count_points(config: RunConfig, store: ParticleStore, run: Path) -> int:
    """Points of the lattice, as far as they are known: none before the data have told where density is."""
    if (run / OCCUPANCY).is_file() and holds_run(run):
        return int(load_mask(run).sum())
    return 0 if config.training.occupancy == "data" else int(sphere(store.box_size).sum())


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
    latent = config.model.latent
    inputs = {
        "store": store.fingerprint,
        "half": config.dataset.half,
        "hold_out": config.dataset.hold_out,
        "selection": _selection_digest(config),
        "poses": config.model.pose.searched,
        "latents": [latent.dimensions, latent.linear_dimensions_used] if latent.starts_linear else None,
        "occupancy": config.training.occupancy,
        "masks": [mask_digest(path) for path in (config.training.mask, config.training.focus_mask)],
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


def _settle_resumed(config: RunConfig, store: ParticleStore, run: Path) -> RunConfig:
    """The configuration that the run there goes on with: what may change is as it is asked for now."""
    earlier, manifest = load_run(run)
    if config.training.global_batch_size == "auto":
        # It goes on with what it came to.
        config = with_batch_size(config, earlier.training.global_batch_size)
    if manifest.store_fingerprint != store.fingerprint:
        raise ConfigError(f"{run}: was trained on another store than {store.path}; use that one, or another --name")
    changed = find_refused_changes(earlier, config)
    if _selection_digest(earlier) != _selection_digest(config):
        changed.insert(0, "dataset.selection")
    if changed:
        raise ConfigError(
            f"{run}: was started with other values of {', '.join(changed)}; resume with those, or use another --name"
        )
    return config.model_copy(update={"name": earlier.name})


def _note_changes(config: RunConfig, store: ParticleStore, run: Path) -> None:
    """Write down what a run goes on with; results that are wanted otherwise now are to be made again."""
    earlier = load_run(run)[0]
    if config.results != earlier.results:
        (run / RESULTS).unlink(missing_ok=True)
    if config != earlier:
        rewrite_config(run, config)
    note_store_place(run, store)


def _selection_digest(config: RunConfig) -> str | None:
    """Checksum of the source rows that a run is confined to."""
    given = config.dataset.selection
    return None if given is None else hashlib.sha256(read_selection(place_at(given)).source_row.tobytes()).hexdigest()


def _workload(config: RunConfig, store: ParticleStore, points: int) -> Workload:
    return Workload.of(store, len(selected_rows(config, store)), points)


def _refuse_preparation(box: int, free: int) -> None:
    """See that a worker, with so many bytes free, can make the maps that a run begins with."""
    needed = _PREPARATION_BYTES_PER_VOXEL * box**3
    if needed > free:
        raise ConfigError(
            f"at {box} pixels the maps that a run begins with take about {gib(needed)} of a worker's memory, and it "
            f"has {gib(free)}; start fewer workers on a machine, or convert the particles with a smaller --box"
        )
