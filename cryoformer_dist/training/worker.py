"""One rank's part of a run, from its files to trained weights; the same with Ray and without."""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed

from cryoformer_dist.config.schema import RunConfig, TrainingConfig
from cryoformer_dist.data.batch import BatchSource, local_batches
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.ranks import gather_objects, rank_and_world
from cryoformer_dist.runs.checkpoint import Checkpoint, fetch_latest, latest_checkpoint
from cryoformer_dist.runs.directory import (
    load_first_latents,
    load_lattice,
    load_spectrum,
    selected_rows,
    store_at_first_poses,
)
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.engine import DeepSpeedEngine, Engine, TorchEngine
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.objectives import Objectives
from cryoformer_dist.training.reporting import Reporter
from cryoformer_dist.training.trainer import TrainingData, particles_per_rank, run_training

_LOOK_AGAIN_SECONDS = 1.0


def train_rank(
    working: WorkingFolder,
    config: RunConfig,
    store: ParticleStore,
    reporter: Reporter,
    batches_of: Callable[[ParticleStore], BatchSource],
    device: torch.device,
) -> None:
    """Train this rank's share of a prepared run, from its newest checkpoint when there is one.

    Parameters
    ----------
    working
        Run directory from `prepare_run`.
    config, store
        As the run directory names them.
    reporter
        Told of every report.
    batches_of
        Loader: `local_batches`, or Ray's.
    device
        Where the network lives.
    """
    fetch_latest(working)
    rows = selected_rows(config, store)
    particles_per_rank(config.training, rank_and_world()[1], len(rows))
    learner = Learner(
        config,
        store_at_first_poses(working.folder, store).particles(),
        store.box_size,
        store.pixel_size_angstrom,
        load_lattice(config, working.folder),
        device,
        load_first_latents(working.folder),
        load_spectrum(config, working.folder),
    )
    engine = build_engine(learner.objectives, config.training, device, len(rows))
    batches = batches_of(store)
    samples = batches if config.dataset.loader == "resident" else local_batches(store)
    data = TrainingData(rows, store.shard_size, batches, samples)
    checkpoint = agreed_checkpoint(working, config.training.storage_patience_seconds)
    run_training(learner, engine, data, reporter, working, checkpoint)


def agreed_checkpoint(run: WorkingFolder, patience_seconds: float) -> Checkpoint | None:
    """The newest checkpoint that any rank sees, once this one does: network file systems show a node new files late.

    Raises
    ------
    CheckpointError
        If this rank does not come to see it.
    """
    mine = latest_checkpoint(run.folder)
    wanted = max(gather_objects(_name(mine)))
    give_up = time.monotonic() + patience_seconds
    while _name(mine) != wanted:
        if time.monotonic() >= give_up:
            raise CheckpointError(
                f"{run.home}: holds {wanted} for another worker, but not for this one on {platform.node()}, not after "
                f"{patience_seconds:g} s; storage must be one that all nodes see"
            )
        time.sleep(_LOOK_AGAIN_SECONDS)
        fetch_latest(run)
        mine = latest_checkpoint(run.folder)
    return mine


def _name(checkpoint: Checkpoint | None) -> str:
    return checkpoint.folder.name if checkpoint else ""


def build_engine(module: Objectives, training: TrainingConfig, device: torch.device, particles: int) -> Engine:
    """The engine that the configuration names."""
    if training.engine == "torch":
        return TorchEngine(module, training, device)
    world = rank_and_world()[1]
    return DeepSpeedEngine(module, training, device, particles_per_rank(training, world, particles))


def join_world_of_one(device: torch.device) -> None:
    """A process group of this process alone: DeepSpeed needs one even without company."""
    if torch.distributed.is_initialized():
        return
    # Whatever a launcher may have left there.
    os.environ["LOCAL_RANK"] = "0"
    meeting_point = Path(tempfile.mkdtemp()) / "group"
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{meeting_point}", rank=0, world_size=1)
