"""Our own program: trained here, with its CPU seconds per epoch, or a run that was trained elsewhere."""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
from cpu_clock import CpuClock, run_timed
from particle_set import Contender, ParticleSet, Snapshot

from cryoformer_dist.analysis.trained import load_trained
from cryoformer_dist.runs.checkpoint import Checkpoint, checkpoints
from cryoformer_dist.runs.directory import is_prepared, selected_rows
from cryoformer_dist.runs.training_log import read_training_log


def ours(data: ParticleSet, epochs: int) -> Contender:
    """Our training of so many epochs (its learning rate follows the whole length), one checkpoint per epoch."""
    run = data.folder / f"ours-{epochs}"
    return Contender(
        name=f"ours, {epochs} epochs",
        train=partial(_train, data, run),
        epochs=CpuClock(run).read,
        snapshot=partial(_snapshot, data, run),
    )


def finished_run(data: ParticleSet, run: Path) -> Contender:
    """A run trained elsewhere: as many points as it kept checkpoints; seconds are those of its log."""
    return Contender(
        name=f"ours, {run.name}",
        train=lambda epochs: None,
        epochs=partial(_logged_seconds, data, run),
        snapshot=partial(_snapshot, data, run),
        remark="seconds by the wall clock of its training loop, preparation not counted",
    )


def _steps_per_epoch(data: ParticleSet) -> int:
    rows = selected_rows(data.config, data.store)
    return math.ceil(len(rows) / data.config.training.global_batch_size)


def _by_epoch(data: ParticleSet, run: Path) -> dict[int, Checkpoint]:
    """Checkpoints that stand at the end of an epoch, or of the training."""
    steps = _steps_per_epoch(data)
    return {max(1, round(found.position.step / steps)): found for found in checkpoints(run)}


def _train(data: ParticleSet, run: Path, epochs: int) -> None:
    if max(_by_epoch(data, run), default=0) >= epochs:
        return
    steps = _steps_per_epoch(data)
    command = [sys.executable, "-m", "cryoformer_dist.cli", "train", str(data.config_path), "--local"]
    command += ["--storage", str(run.parent), "--name", run.name]
    if is_prepared(run):
        command += ["--resume"]
    settings = {
        "epochs": epochs,
        "report_every_steps": steps,
        "checkpoint_every_steps": steps,
        "keep_checkpoints": epochs + 1,
        "threads_per_worker": 1,
    }
    for key, value in settings.items():
        command += ["--set", f"training.{key}={value}"]
    run.mkdir(parents=True, exist_ok=True)
    run_timed(command, run.with_suffix(".log"), CpuClock(run), lambda: set(_by_epoch(data, run)))


def _logged_seconds(data: ParticleSet, run: Path) -> dict[int, float]:
    records = read_training_log(run)
    measured = CpuClock(run).read()
    seconds = {
        epoch: max(record.seconds for record in records if record.step <= found.position.step)
        for epoch, found in _by_epoch(data, run).items()
    }
    return measured or seconds


def _snapshot(data: ParticleSet, run: Path, epoch: int) -> Snapshot:
    trained = load_trained(run)
    if not np.array_equal(trained.source_row, data.particles.source_row):
        raise ValueError(f"{run}: was trained on other particles than {data.store.path}")
    found = _by_epoch(data, run)[epoch]
    if found.folder == trained.checkpoint.folder:
        return Snapshot(trained.latents, trained.decode, weighted=True)
    if trained.config.model.latent.form != "table":
        raise ValueError(f"{run}: only the last checkpoint of a run with an encoder can be judged")
    trained.learner.objectives.model.load_state_dict(found.read_weights())
    trained.learner.load_table_state(found.read_tables())
    return Snapshot(trained.learner.latents.numpy(), trained.decode, weighted=True)
