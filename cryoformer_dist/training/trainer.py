"""Training, knowing neither Ray nor where it runs."""

import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from cryoformer_dist.config.schema import TrainingConfig
from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.data.order import Consumed
from cryoformer_dist.errors import ConfigError, RunStopped, StepLeftOutWarning, TrainingError
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.ranks import Vote, gather_objects, sum_over_ranks, take_from_leader
from cryoformer_dist.runs.checkpoint import Checkpoint, Position, name_what_is_not_finite, write_checkpoint
from cryoformer_dist.runs.directory import write_occupancy
from cryoformer_dist.runs.notices import add_notice
from cryoformer_dist.runs.stop_request import StopRequest
from cryoformer_dist.runs.training_log import TrainingLog, TrainingRecord
from cryoformer_dist.storage.places import client_errors
from cryoformer_dist.storage.retry import StorageRetry
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.engine import Engine, Word, learning_rate_factor
from cryoformer_dist.training.latent_search import LatentSearch
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.occupancy_refresh import OccupancyRefresh
from cryoformer_dist.training.particles import RankParticles, Seed
from cryoformer_dist.training.reporting import (
    Fault,
    Interval,
    OwnTime,
    Pace,
    Reporter,
    StepFaults,
    Stopwatch,
    Stragglers,
    compare_ranks,
    memory_gib,
)
from cryoformer_dist.training.stages import Moment, Stage, stages

MOST_LEFT_OUT_STEPS = 10
"""So many steps of an attempt may be not finite; at one more it gives up."""


class Trainer:
    """One attempt at a run, on one rank.

    Parameters
    ----------
    learner
        Network and tables.
    engine
        Wraps ``learner.objectives``.
    particles
        What to train on.
    reporter
        Told of every report and checkpoint.
    working
        Run directory; training log and checkpoints are written there.
    memory
        Of a worker: a mask grows no further than it allows.
    """

    def __init__(
        self,
        learner: Learner,
        engine: Engine,
        particles: RankParticles,
        reporter: Reporter,
        working: WorkingFolder,
        memory: WorkerMemory,
    ) -> None:
        self.learner, self.engine, self.particles = learner, engine, particles
        self.reporter, self.working = reporter, working
        self.config, self.leads = learner.config.training, engine.rank == 0
        # Between two steps, when an epoch has ended; latents are searched with the points that a refresh added.
        self.tasks = (OccupancyRefresh(learner, particles, memory), LatentSearch(learner, particles))
        self.retry = StorageRetry(working.home, self.config.storage_patience_seconds, self.leads, gather_objects)
        self.position = Position()
        self.checkpointed_step = 0
        # The mask never shrinks: so many points are those of the one drawn in the run directory.
        self.drawn_points = learner.active_points
        self.stopwatch = Stopwatch()
        self.interval = Interval(engine.device)
        self.faults, self.left_out_steps = StepFaults(engine.device), 0
        self.own_time, self.stragglers = OwnTime(engine.device), Stragglers(gather_objects(platform.node()))
        self.stop_request, self.stop_vote = StopRequest(working.home), Vote(engine.device)
        # The leader's alone, but all ranks wait while it cannot write.
        self.log: TrainingLog | None = None

    def train(self, resume_from: Checkpoint | None = None) -> None:
        """Go through all stages, from the start or from a checkpoint, as if there had been no interruption.

        Raises
        ------
        TrainingError
            If more than `MOST_LEFT_OUT_STEPS` steps are not finite, or what was learned is not at a checkpoint.
        RunStopped
            If the run's user asks for an early end; there is a checkpoint of the last step.
        CheckpointNotWrittenError
            If the run directory's storage is full or away for longer than ``training.storage_patience_seconds``.
        """
        if resume_from is not None:
            self._restore(resume_from)
        self.retry.run(self._open_log)
        for index, stage in enumerate(stages(self.learner.config)):
            if index > self.position.stage:
                self.position = replace(self.position, stage=index, stage_step=0, consumed=Consumed())
            if index == self.position.stage:
                self._train_stage(stage)
        if self.checkpointed_step != self.position.step:
            self._write_checkpoint()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.engine.load(checkpoint.engine_folder)
        self.learner.load_table_state(checkpoint.read_tables())
        self.learner.load_occupancy_state(checkpoint.read_occupancy())
        self.position = checkpoint.position
        self.checkpointed_step = checkpoint.position.step
        self.particles.left_out[:] = checkpoint.position.left_out

    def _open_log(self) -> None:
        if self.leads:
            self.log = TrainingLog(self.working, self.position.step)

    def _train_stage(self, stage: Stage) -> None:
        """Go through what is left of a stage."""
        start = self.position
        seed = (self.learner.config.seed, start.stage)
        if stage.kind == "reconstruction" and start.stage_step == 0 and self.learner.hands_poses_over:
            for batch in self.particles.read_once(seed):
                self.learner.take_encoded_poses(batch)
        while not self._reach_end(stage, seed):
            pass

    def _reach_end(self, stage: Stage, seed: Seed) -> bool:
        """Take steps to the end of the stage; false if one was not finite: then training stands just after it."""
        start, world = self.position, self.engine.world
        if start.consumed.epochs >= stage.epochs:
            # Resumed with fewer epochs than it has done.
            return True
        order = self.particles.order(seed, stage.epochs, start.consumed)
        steps = start.stage_step + math.ceil(order.rows_per_rank(world) / self.particles.batch_size)
        taken = 0
        for batch in self._wait_for(self.particles.read(order)):
            taken += len(batch)
            moment = self._next_moment(stage, steps, order.after(world, taken))
            self._step(moment, batch)
            self.position = moment.position
            due, stopping = self._is_due(moment), self.stop_vote.passed()
            if due or stopping:
                fault = self.faults.find()
                if fault is not None:
                    self._leave_out(fault)
                    return False
            if due:
                self._end_step(moment, batch.epoch)
            if stopping:
                self._stop(moment, batch.epoch)
        return True

    def _is_due(self, moment: Moment) -> bool:
        """Whether something follows the step that needs it to be finite; reports are due at the stage's end too."""
        # Checkpoints are due at some of the reports: the schema sees to it.
        reports = moment.position.step % self.config.report_every_steps == 0
        return reports or moment.ends_stage or any(task.due(moment) for task in self.tasks)

    def _end_step(self, moment: Moment, epoch: int) -> None:
        """Do what is due after a step."""
        for task in self.tasks:
            if task.due(moment):
                task.run(moment, self.interval)
        if moment.position.step % self.config.report_every_steps == 0 or moment.ends_stage:
            self._report(moment, epoch)

    def _leave_out(self, fault: Fault) -> None:
        """Go on after a step that was not finite, and without its rows: nothing has changed since before it.

        Raises
        ------
        TrainingError
            If there have been too many.
        """
        self.left_out_steps += 1
        left_out = tuple(sorted({*self.position.left_out, *fault.rows}))
        self.position = replace(fault.moment.position, left_out=left_out)
        self.particles.left_out[:] = left_out
        rows = list(fault.rows)
        told = (
            f"step {fault.moment.before.step}: loss or gradient not finite on {fault.ranks} of {self.engine.world} "
            f"ranks, nothing of it was kept; store rows {rows}, source rows {self.learner.source_row[rows].tolist()}"
        )
        if self.left_out_steps > MOST_LEFT_OUT_STEPS:
            raise TrainingError(
                f"{told}. Training gives up after {MOST_LEFT_OUT_STEPS} such steps; the last checkpoint is whole: run "
                "`check` on the store; if it is clean, lower training.learning_rates and --resume"
            )
        if self.leads:
            warnings.warn(f"{told}: left out from now on", StepLeftOutWarning, stacklevel=2)
        self._end_step(replace(fault.moment, position=self.position), fault.epoch)

    def _stop(self, moment: Moment, epoch: int) -> NoReturn:
        """End early, nothing of what was learned lost."""
        if not self.interval.is_empty:
            self._report(moment, epoch)
        if self.checkpointed_step != self.position.step:
            self._write_checkpoint()
        raise RunStopped(
            f"stopped at step {self.position.step}, with a checkpoint in {self.working.home}; --resume goes on, "
            f"`cryoformer-dist reconstruct {self.working.home}` makes the maps of this step"
        )

    def _wait_for(self, batches: Iterator[ParticleBatch]) -> Iterator[ParticleBatch]:
        """The batches, the time they keep the step waiting taken."""
        while True:
            self.own_time.begin()
            asked = time.perf_counter()
            batch = next(batches, None)
            self.stopwatch.waited(time.perf_counter() - asked)
            if batch is None:
                return
            yield batch

    def _next_moment(self, stage: Stage, steps: int, consumed: Consumed) -> Moment:
        before = self.position
        after = replace(before, stage_step=before.stage_step + 1, step=before.step + 1, consumed=consumed)
        return Moment(stage, before, after, steps)

    def _step(self, moment: Moment, batch: ParticleBatch) -> None:
        learner, stage, step = self.learner, moment.stage, moment.before.step
        seed, copies = learner.config.seed, len(learner.objectives.lattice.offsets_pixels)
        batch = learner.judged(batch)
        if self.particles.left_out:
            batch = batch.without(torch.tensor(self.particles.left_out, device=batch.row.device))
        inputs = learner.inputs(stage, batch, moment.epoch)
        # Drawn from the step alone: nothing to keep for a resume. The lattice is the same on all ranks, noise is not.
        copy = int(np.random.default_rng([seed, step]).integers(copies))
        noise_seed = int(np.random.default_rng([seed, step, self.engine.rank]).integers(2**31))
        coarse = learner.is_coarse(stage, moment.epoch)
        self.stopwatch.enter(stage.kind, coarse)
        errors, latent = self.engine.forward(stage.kind, batch, inputs.latent, inputs.pose, copy, noise_seed, coarse)
        self.own_time.end()
        self.reporter.step(moment.position.step, self.left_out_steps)
        loss, prior = learner.loss(errors, latent, batch.weight)
        factor = learning_rate_factor(self.config, moment.before.stage_step, moment.progress)
        leaves = inputs.leaves.values()
        look = partial(self.faults.look, moment, batch, errors + prior, leaves)
        self.engine.step(loss, factor, Word(partial(self._say, look), self._hear))
        learner.update_tables(batch, inputs.leaves, factor, self.faults.stopped)
        self.interval.add(errors, prior, self.faults.stopped)
        self.stopwatch.trained(len(batch) * self.engine.world)

    def _say(self, look: Callable[[Tensor], Tensor], norm: Tensor) -> Tensor:
        """Whether the step is not finite here, and whether the run is to end."""
        wish = torch.full_like(norm, float(self.leads and self.stop_request.seen()))
        return torch.stack([look(norm), wish])

    def _hear(self, sums: Tensor) -> Tensor:
        bad, votes = sums
        self.stop_vote.count(votes)
        return self.faults.settle(bad)

    def _report(self, moment: Moment, epoch: int) -> None:
        """Tell of the interval that ends here, and begin another; of one whose steps were all left out is no word."""
        if self.interval.is_empty:
            return
        record = self._make_record(moment, epoch)
        self.interval = Interval(self.engine.device)
        log = self.log
        self.retry.run(lambda: log.append(record) if log else None)
        # After the record: a crash in between repeats the record, the other way round it would be lost.
        due = self.position.step % self.config.checkpoint_every_steps == 0
        self.reporter.report(record, self._write_checkpoint() if due else None)
        self.stopwatch.restart()

    def _make_record(self, moment: Moment, epoch: int) -> TrainingRecord:
        learner, stage, position = self.learner, moment.stage, moment.position
        errors, prior, count = sum_over_ranks(self.interval.totals).tolist()
        slowness = self._compare_ranks()
        return TrainingRecord(
            stage=stage.kind,
            epoch=epoch,
            epochs=stage.epochs,
            coarse=learner.is_coarse(stage, moment.epoch),
            step=position.step,
            steps=position.step - position.stage_step + moment.steps,
            loss=errors / count,
            prior=prior / count,
            learning_rate_factor=learning_rate_factor(
                self.config, position.stage_step, position.stage_step / moment.steps
            ),
            active_points=learner.active_points,
            residual_outside=learner.residual_outside,
            noise_departure=self.interval.noise_departure,
            memory_gib=memory_gib(self.engine.device),
            workers=self.engine.world,
            slowness=slowness,
            checkpoint_seconds=self.interval.checkpoint_seconds,
            **asdict(self.interval.found),
            **asdict(self._measure_pace()),
        )

    def _compare_ranks(self) -> float:
        """Slowness of this rank; who straggles is told to those who follow the run."""
        slowness = compare_ranks(self.own_time.take_median())
        for notice in self.stragglers.look(slowness) if self.leads else ():
            # Worth no retry: nothing depends on it.
            with suppress(OSError, *client_errors()):
                add_notice(self.working.home, notice)
        return slowness[self.engine.rank]

    def _measure_pace(self) -> Pace:
        pace = self.stopwatch.measure()
        before = self.log.seconds_before if self.log else 0.0
        return replace(pace, seconds=pace.seconds + before)

    def _write_checkpoint(self) -> Path:
        self._refuse_not_finite()
        self.checkpointed_step = self.position.step
        began, log = time.monotonic(), self.log
        self.retry.run(lambda: log.send() if log else None)
        folder = write_checkpoint(
            self.working,
            self.position,
            leader=self.leads,
            save_engine=self.engine.save,
            learned=self.learner.state,
            keep=self.config.keep_checkpoints,
            retry=self.retry,
        )
        # Not before: until there is a checkpoint, a run that starts again starts from its first mask.
        self.retry.run(self._draw_occupancy)
        self.drawn_points = self.learner.active_points
        self.interval.checkpoint_seconds = time.monotonic() - began
        return folder

    def _refuse_not_finite(self) -> None:
        name = take_from_leader(name_what_is_not_finite(self.learner.state()) if self.leads else None)
        if name is not None:
            raise TrainingError(
                f"step {self.position.step}: {name} is not finite; no checkpoint was written of it, "
                "those before are whole: lower training.learning_rates and --resume"
            )

    def _draw_occupancy(self) -> None:
        if self.leads and self.drawn_points != self.learner.active_points:
            pixel_size = self.learner.objectives.pixel_size_angstrom
            self.working.send(write_occupancy(self.working.folder, self.learner.mask, pixel_size).name)


def particles_per_rank(training: TrainingConfig, world: int, particles: int) -> int:
    """Batch of one rank: its share of the global batch, rounded down where the workers do not divide it.

    Raises
    ------
    ConfigError
        If the global batch is smaller than the number of workers, or exceeds the particles.
    """
    size = training.global_batch_size
    if size == "auto":
        raise ConfigError("training.global_batch_size: auto is settled when a run is prepared; name a number here")
    if size < world:
        raise ConfigError(
            f"training.global_batch_size: {size} leaves nothing for some of {world} workers; raise it, or set it to "
            "auto"
        )
    if size > particles:
        raise ConfigError(f"training.global_batch_size: {size} exceeds the {particles} particles to train on")
    return size // world
