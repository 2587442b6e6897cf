"""The training loop, knowing neither Ray nor where it runs."""

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoformer_dist.config.schema import TrainingConfig
from cryoformer_dist.data.batch import BatchSource, ParticleBatch, on_device
from cryoformer_dist.data.order import ParticleOrder, Rows
from cryoformer_dist.errors import ConfigError, TrainingError, UndecidedLatentsWarning
from cryoformer_dist.ranks import gather_objects, gather_rows, sum_over_ranks
from cryoformer_dist.runs.checkpoint import Checkpoint, Position, write_checkpoint
from cryoformer_dist.runs.directory import write_occupancy
from cryoformer_dist.runs.training_log import TrainingLog, TrainingRecord
from cryoformer_dist.storage.retry import StorageRetry
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.engine import Engine
from cryoformer_dist.training.latent_search import search_latents
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.occupancy_refresh import refresh_occupancy, refresh_sample
from cryoformer_dist.training.reporting import Reporter, Stopwatch, memory_gib
from cryoformer_dist.training.stages import Stage, stages

# After a search that was of use: 2.0 on igg_arc_32 and adk_64, 1.1 on spike_64; after one of none: .014 on spike_32,
# 1e-4 on a rigid molecule.
_UNDECIDED_NATS = 0.1


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Particles to train on and how to get them.

    Attributes
    ----------
    rows
        Store rows, ascending.
    shard_rows
        Rows per shard of the store.
    batches
        Reads them.
    samples
        Reads some of them while ``batches`` is at work, so without a second Ray Dataset: two that wait for one CPU
        would wait for ever.
    """

    rows: Rows
    shard_rows: int
    batches: BatchSource
    samples: BatchSource


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
        raise ConfigError(f"training.global_batch_size: {size} leaves nothing for some of {world} workers; raise it")
    if size > particles:
        raise ConfigError(f"training.global_batch_size: {size} exceeds the {particles} particles to train on")
    return size // world


def run_training(
    learner: Learner,
    engine: Engine,
    data: TrainingData,
    reporter: Reporter,
    run: WorkingFolder,
    resume_from: Checkpoint | None = None,
) -> None:
    """Train through all stages, from the start or from a checkpoint, as if there had been no interruption.

    Parameters
    ----------
    learner
        Network and tables.
    engine
        Wraps ``learner.objectives``.
    data
        What to train on.
    reporter
        Told of every report and checkpoint.
    run
        Run directory; ``metrics.jsonl`` and ``checkpoints`` are written there.
    resume_from
        Where to go on.

    Raises
    ------
    TrainingError
        If the loss is not finite.
    CheckpointNotWrittenError
        If the run directory's storage is full or away for longer than ``training.storage_patience_seconds``.
    """
    position, grown = Position(), False
    if resume_from is not None:
        position = resume_from.position
        engine.load(resume_from.engine_folder)
        learner.load_table_state(resume_from.read_tables())
        grown = learner.load_occupancy_state(resume_from.read_occupancy())
    session = _Session(learner, engine, data, reporter, run, position, grown)
    for index, stage in enumerate(stages(learner.config)):
        if index < session.position.stage:
            continue
        if index > session.position.stage:
            session.position = replace(session.position, stage=index, stage_step=0, consumed=())
        session.train(stage)
    session.finish()


class _Session:
    """One attempt at a run, on one rank."""

    def __init__(
        self,
        learner: Learner,
        engine: Engine,
        data: TrainingData,
        reporter: Reporter,
        run: WorkingFolder,
        position: Position,
        grown: bool,
    ) -> None:
        self.learner, self.engine, self.data, self.reporter, self.run = learner, engine, data, reporter, run
        self.position = position
        self.training, self.seed = learner.config.training, learner.config.seed
        self.batch_size = particles_per_rank(self.training, engine.world, len(data.rows))
        self.retry = StorageRetry(run.home, self.training.storage_patience_seconds, engine.rank == 0, gather_objects)
        # The leader's exchange_alone, but all ranks wait while it cannot write.
        self.metrics: TrainingLog | None = None
        self.retry.run(self._open_metrics)
        self.stopwatch = Stopwatch()
        # Of losses, priors and particles since the last report; on the device, where adding waits for nothing.
        self.totals = torch.zeros(3, device=engine.device)
        self.checkpointed = position.step
        # Whether the last step compared low frequencies only.
        self.coarse = False
        # Of a checkpoint that no record has told of.
        self.checkpoint_seconds: float | None = None
        # Of a search that no record has told of.
        self.latent_information_nats: float | None = None
        # Whether the mask is larger than the one drawn in the run directory.
        self.grown = grown

    def _open_metrics(self) -> None:
        if self.engine.rank == 0:
            self.metrics = TrainingLog(self.run, self.position.step)

    def train(self, stage: Stage) -> None:
        """Go through what is left of a stage."""
        start = self.position
        seed = (self.seed, start.stage)
        if stage.kind == "reconstruction" and start.stage_step == 0 and self.learner.hands_poses_over:
            self._fill_pose_table(seed)
        order = ParticleOrder(self.data.rows, self.data.shard_rows, seed, stage.epochs, start.consumed)
        world = self.engine.world
        steps = start.stage_step + math.ceil(order.rows_per_rank(world) / self.batch_size)
        taken = 0
        batches = self.data.batches(order, self.engine.rank, world, self.batch_size)
        for batch in self._timed(on_device(batches, self.engine.device)):
            progress = self.position.stage_step / steps
            self._step(stage, batch, progress)
            taken += len(batch)
            before = self.position
            self.position = replace(
                self.position,
                stage_step=self.position.stage_step + 1,
                step=self.position.step + 1,
                consumed=order.after(world, taken),
            )
            if self._refresh_due(stage, before):
                self._refresh_occupancy(stage, progress * stage.epochs, seed)
            if self._search_due(stage, before, steps):
                self._search_latents(stage, progress * stage.epochs, seed)
            self._after_step(stage, batch, steps)
        if float(self.totals[2]):
            self._report(stage, stage.epochs - 1, steps)

    def _fill_pose_table(self, seed: tuple[int, int]) -> None:
        """Start the pose table where the trained encoder puts the particles, each rank its share of them."""
        for batch in self._everyone(self.data.batches, seed):
            self.learner.take_encoded_poses(batch)

    def _everyone(self, source: BatchSource, seed: tuple[int, int]) -> Iterator[ParticleBatch]:
        """Every particle once, each rank its share of them."""
        rank, world = self.engine.rank, self.engine.world
        # One epoch leaves out the rows that do not divide by the ranks: the last row again makes them divide.
        rows = np.pad(self.data.rows, (0, -len(self.data.rows) % world), mode="edge")
        order = ParticleOrder(rows, self.data.shard_rows, seed, 1, ())
        for batch in on_device(source(order, rank, world, self.batch_size), self.engine.device):
            self.reporter.alive()
            yield batch

    def _refresh_due(self, stage: Stage, before: Position) -> bool:
        """Whether the step just taken has ended an epoch after which the occupancy is looked at again."""
        every, particles = self.training.occupancy_refresh_epochs, len(self.data.rows)
        by_data = self.training.occupancy == "data" and self.learner.config.model.domain == "real"
        if stage.kind != "reconstruction" or not by_data or not every:
            return False
        passes = self.position.passes(particles)
        # After the last epoch nothing would be learned at new points.
        return passes > before.passes(particles) and passes % every == 0 and passes < stage.epochs

    def _refresh_occupancy(self, stage: Stage, epoch: float, seed: tuple[int, int]) -> None:
        """Look for density that the mask cuts off, each rank in its share of the sample."""
        order = ParticleOrder(refresh_sample(self.data.rows), self.data.shard_rows, seed, 1)
        batches = self.data.samples(order, self.engine.rank, self.engine.world, self.batch_size)
        self.grown |= refresh_occupancy(self.learner, stage, epoch, batches)

    def _search_due(self, stage: Stage, before: Position, steps: int) -> bool:
        """Whether the step just taken has ended an epoch, or the stage: all latents are looked for again."""
        if stage.kind != "reconstruction" or not self.learner.config.model.latent.searched:
            return False
        particles = len(self.data.rows)
        return self.position.stage_step == steps or self.position.passes(particles) > before.passes(particles)

    def _search_latents(self, stage: Stage, epoch: float, seed: tuple[int, int]) -> None:
        """Look for every particle's latent, each rank for those of its share."""
        everyone = self._everyone(self.data.samples, seed)
        # The last epoch is trained at the means: one more search in which maps reach less far costs nothing by then.
        passes = self.position.passes(len(self.data.rows))
        draws = None if passes >= stage.epochs - 1 else self._draws()
        found = search_latents(self.learner, stage, epoch, self.data.rows, everyone, draws)
        self.latent_information_nats = found.information_nats
        undecided = found.information_nats < _UNDECIDED_NATS
        # Maps that do not move yet would deal the first latents anew, and what those know would be lost.
        if not undecided or passes >= self.training.freeze_latent_epochs:
            self.learner.tables["latent"].values[found.row] = found.latent
        if undecided and epoch > stage.epochs - 1 and self.engine.rank == 0:
            warnings.warn(
                f"after {stage.epochs} epochs an image carries only {found.information_nats:.2g} nats about its "
                "conformation, so the maps hardly move. Either the molecule is rigid at this resolution, or its motion "
                "is too small for a search: model.latent.refinement: gradient may recover it, and some noise with it",
                UndecidedLatentsWarning,
                stacklevel=2,
            )

    def _draws(self) -> Tensor:
        """A number in [0, 1) per row, of the step exchange_alone: the same on any number of ranks, and for a resume."""
        rows = len(self.learner.tables["latent"].values)
        draws = np.random.default_rng([self.seed, self.position.step]).random(rows, dtype=np.float32)
        return torch.from_numpy(draws).to(self.engine.device)

    def finish(self) -> None:
        """Keep the last state, if the schedule has not just done so."""
        if self.checkpointed != self.position.step:
            self._checkpoint()

    def _timed(self, batches: Iterator[ParticleBatch]) -> Iterator[ParticleBatch]:
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.stopwatch.waited(time.perf_counter() - asked)
            if batch is None:
                return
            yield batch

    def _step(self, stage: Stage, batch: ParticleBatch, progress: float) -> None:
        learner, step = self.learner, self.position.step
        epoch = progress * stage.epochs
        inputs = learner.inputs(stage, batch, epoch)
        copies = len(learner.objectives.lattice.offsets_pixels)
        # Drawn from the step alone: nothing to keep for a resume. The lattice is the same on all ranks, noise is not.
        copy = int(np.random.default_rng([self.seed, step]).integers(copies))
        noise_seed = int(np.random.default_rng([self.seed, step, self.engine.rank]).integers(2**31))
        self.coarse = coarse = learner.is_coarse(stage, epoch)
        self.stopwatch.enter(stage.kind, coarse)
        errors, latent = self.engine.forward(stage.kind, batch, inputs.latent, inputs.pose, copy, noise_seed, coarse)
        loss, prior = learner.loss(errors, latent)
        self._refuse_non_finite(loss, errors, batch)
        factor = learning_rate_factor(self.training, self.position.stage_step, progress)
        self.engine.step(loss, factor)
        learner.update_tables(batch, inputs.leaves, factor)
        self.totals += torch.stack([errors.detach().sum(), prior.detach().sum(), errors.new_full((), len(batch))])
        self.stopwatch.trained(len(batch) * self.engine.world)

    def _refuse_non_finite(self, loss: Tensor, errors: Tensor, batch: ParticleBatch) -> None:
        """All ranks stop together, before any of them takes the step."""
        bad = sum_over_ranks((~torch.isfinite(loss)).float())
        if not float(bad):
            return
        rows, finite = gather_rows(batch.row, torch.isfinite(errors.detach()))
        raise TrainingError(
            f"step {self.position.step}: the loss is not finite on {int(bad)} of {self.engine.world} ranks; "
            f"store rows {rows[~finite].tolist() or 'none: the latents are to blame'}. Weights were not touched. "
            "Run `check` on the store; if it is clean, lower training.learning_rates and --resume from the last "
            "checkpoint"
        )

    def _after_step(self, stage: Stage, batch: ParticleBatch, steps: int) -> None:
        # Checkpoints are due at some of the reports: the schema sees to it.
        if self.position.step % self.training.report_every_steps == 0:
            self._report(stage, batch.epoch, steps)

    def _report(self, stage: Stage, epoch: int, steps: int) -> None:
        errors, prior, count = sum_over_ranks(self.totals).tolist()
        done_before = self.position.step - self.position.stage_step
        pace = self.stopwatch.measure()
        if self.metrics is not None:
            pace = replace(pace, seconds=pace.seconds + self.metrics.seconds_before)
        record = TrainingRecord(
            stage=stage.kind,
            epoch=epoch,
            epochs=stage.epochs,
            coarse=self.coarse,
            step=self.position.step,
            steps=done_before + steps,
            loss=errors / count,
            prior=prior / count,
            learning_rate_factor=learning_rate_factor(
                self.training, self.position.stage_step, self.position.stage_step / steps
            ),
            active_points=len(self.learner.objectives.lattice.points_pixels),
            residual_outside=self.learner.residual_outside,
            latent_information_nats=self.latent_information_nats,
            memory_gib=memory_gib(self.engine.device),
            workers=self.engine.world,
            checkpoint_seconds=self.checkpoint_seconds,
            **asdict(pace),
        )
        self.checkpoint_seconds = self.latent_information_nats = None
        metrics = self.metrics
        self.retry.run(lambda: metrics.append(record) if metrics else None)
        # After the record: a crash in between repeats the record, the other way round it would be lost.
        due = self.position.step % self.training.checkpoint_every_steps == 0
        self.reporter.report(record, self._checkpoint() if due else None)
        self.totals.zero_()
        self.stopwatch.restart()

    def _checkpoint(self) -> Path:
        self.checkpointed = self.position.step
        began = time.monotonic()
        learner, metrics = self.learner, self.metrics
        self.retry.run(lambda: metrics.send() if metrics else None)

        folder = write_checkpoint(
            self.run,
            self.position,
            leader=self.engine.rank == 0,
            save_engine=self.engine.save,
            learned=learner.state,
            keep=self.training.keep_checkpoints,
            retry=self.retry,
        )
        # Not before: until there is a checkpoint, a run that starts again starts from its first mask.
        self.retry.run(self._draw_occupancy)
        self.grown = False
        self.checkpoint_seconds = time.monotonic() - began
        return folder

    def _draw_occupancy(self) -> None:
        if self.grown and self.engine.rank == 0:
            pixel_size = self.learner.objectives.pixel_size_angstrom
            self.run.send(write_occupancy(self.run.folder, self.learner.mask, pixel_size).name)


def learning_rate_factor(training: TrainingConfig, stage_step: int, progress: float) -> float:
    """Linear warm-up, then half a cosine down to the final share."""
    warmup = min(1.0, (stage_step + 1) / max(training.warmup_steps, 1))
    floor = training.final_learning_rate
    return warmup * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
