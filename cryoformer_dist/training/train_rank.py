"""One rank's part of a run, from its files to trained weights; the same with Ray and without."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed

from cryoformer_dist.config.schema import RunConfig, TrainingConfig
from cryoformer_dist.data.batch import BatchSource, local_batches
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.ranks import rank_and_world
from cryoformer_dist.runs.checkpoint_choice import agree_on_checkpoint
from cryoformer_dist.runs.directory import load_mask, selected_rows
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.engine import DeepSpeedEngine, Engine, TorchEngine
from cryoformer_dist.training.first_estimates import make_first_estimates
from cryoformer_dist.training.imitation import LinearMaps, count_imitation_steps, imitate
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.memory import Workload, settle_loader
from cryoformer_dist.training.objectives import Objectives
from cryoformer_dist.training.particles import RankParticles
from cryoformer_dist.training.reporting import Reporter, tell_stages
from cryoformer_dist.training.trainer import Trainer, particles_per_rank

Loader = Callable[[RunConfig, ParticleStore], BatchSource]
"""What makes batches of a store, as ``dataset.loader`` says."""


def train_rank(
    working: WorkingFolder,
    config: RunConfig,
    store: ParticleStore,
    memory: WorkerMemory,
    reporter: Reporter,
    load: Loader,
    device: torch.device,
) -> None:
    """Go through this rank's part of a run: first estimates that are not there yet, then training, from where it was.

    Until there is a checkpoint, every attempt begins by giving the network its start (`imitation`).

    Parameters
    ----------
    working
        Run directory from `begin_run`.
    config, store
        As the run directory names them.
    memory
        Of a worker.
    reporter
        Told of every report.
    load
        Told a configuration whose ``dataset.loader`` is settled.
    device
        Where the network lives.
    """
    rank, world = rank_and_world()
    config = make_first_estimates(working, config, store, memory, tell_stages(working, reporter), device)
    rows = selected_rows(config, store)
    batch_size = particles_per_rank(config.training, world, len(rows))
    # Settled at every start and not written down: it is the memory of these workers that counts.
    work = Workload.of(store, len(rows), int(load_mask(working.folder).sum()))
    config = settle_loader(config, work, memory)
    learner = Learner.from_run(config, store, working.folder, device)
    checkpoint = agree_on_checkpoint(working, config.training.storage_patience_seconds)
    imitated = count_imitation_steps(config, len(rows))
    if checkpoint is None and imitated:
        progress = partial(tell_stages(working, reporter), "first network")
        imitate(learner, LinearMaps.of_run(working.folder, device), rows, batch_size, imitated, progress)
    engine = build_engine(learner.objectives, config.training, device, batch_size)
    batches = load(config, store)
    samples = batches if config.dataset.loader == "resident" else local_batches(store, device)
    particles = RankParticles(rows, store.shard_size, batches, samples, batch_size, rank, world, reporter.alive)
    Trainer(learner, engine, particles, reporter, working, memory).train(checkpoint)


def build_engine(module: Objectives, training: TrainingConfig, device: torch.device, batch_size: int) -> Engine:
    """The engine that the configuration names, for so many particles of a rank at a step."""
    if training.engine == "torch":
        return TorchEngine(module, training, device)
    return DeepSpeedEngine(module, training, device, batch_size)


def join_world_of_one(device: torch.device) -> None:
    """A process group of this process alone: DeepSpeed needs one even without company."""
    if torch.distributed.is_initialized():
        return
    # Whatever a launcher may have left there.
    os.environ["LOCAL_RANK"] = "0"
    meeting_point = Path(tempfile.mkdtemp()) / "group"
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{meeting_point}", rank=0, world_size=1)
