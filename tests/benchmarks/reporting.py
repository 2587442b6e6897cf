"""What reports cost a training under Ray Train, beside the same training without them; run by hand.

The step is a stand-in that sleeps; all around it is the trainer's own. Both trainings take turns in the same workers.
Wall time: the machine must be quiet.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.tiny_runs import PARTICLES, tiny_config, write_set

from cryoformer_dist.data.batch import ParticleBatch, local_batches
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.orchestration.prometheus import publishing
from cryoformer_dist.orchestration.worker import RayReporter, SilentReporter
from cryoformer_dist.ranks import rank_and_world, sum_over_ranks
from cryoformer_dist.runs.directory import load_run, selected_rows
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.engine import TorchEngine, Word
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.particles import RankParticles
from cryoformer_dist.training.preparation import prepare_run
from cryoformer_dist.training.reporting import Reporter
from cryoformer_dist.training.trainer import Trainer, particles_per_rank

CPU = torch.device("cpu")
SILENT, REPORTING = "without", "with reports"
NEVER = 10**9


class SleepingEngine(TorchEngine):
    """Takes as long as it is told, and learns nothing."""

    step_seconds = 0.0

    def forward(self, stage: str, batch: ParticleBatch, latent: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        time.sleep(self.step_seconds)
        return batch.images.new_ones(len(batch)), latent

    def step(self, loss: Tensor, learning_rate_factor: float, word: Word | None = None) -> None:
        if word is not None:
            word.hear(sum_over_ranks(word.say(torch.zeros(()))))


def train(run: Path, step_seconds: float, reporter: Reporter) -> float:
    """Steps a second of a whole training in a prepared run directory, from the first to the last."""
    config, manifest = load_run(run)
    store, (rank, world) = ParticleStore.open(manifest.store), rank_and_world()
    rows = selected_rows(config, store)
    size = particles_per_rank(config.training, world, len(rows))
    learner = Learner.from_run(config, store, run, CPU)
    engine = SleepingEngine(learner.objectives, config.training, CPU)
    engine.step_seconds = step_seconds
    batches = local_batches(store, CPU)
    particles = RankParticles(rows, store.shard_size, batches, batches, size, rank, world, reporter.alive)
    trainer = Trainer(learner, engine, particles, reporter, WorkingFolder.on_disk(run), WorkerMemory(2**40))
    start = time.perf_counter()
    trainer.train()
    return trainer.position.step / (time.perf_counter() - start)


def work(folder: Path, rounds: int, step_seconds: float) -> dict[str, list[float]]:
    """One worker's part: both trainings by turns."""
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {SILENT: [], REPORTING: []}
    for turn in range(rounds):
        rates[SILENT].append(train(folder / f"silent-{turn}", step_seconds, SilentReporter()))
        run = folder / f"reporting-{turn}"
        with publishing(run.name, ray.train.get_context().get_world_rank()) as publish:
            rates[REPORTING].append(train(run, step_seconds, RayReporter(run, 600.0, publish)))
    return rates


def prepare(folder: Path, rounds: int, steps: int, workers: int) -> None:
    """Run directories of all turns."""
    store = write_set(folder)
    size = 2 * workers
    epochs = max(1, round(steps * size / PARTICLES))
    # Nothing but steps, reports and checkpoints: no table moves, no mask grows.
    common = {"training.global_batch_size": size, "training.epochs": epochs, "training.freeze_latent_epochs": NEVER}
    for name, report, checkpoint in (("silent", NEVER, NEVER), ("reporting", 50, 250)):
        pace = {"training.report_every_steps": report, "training.checkpoint_every_steps": checkpoint}
        for turn in range(rounds):
            config = tiny_config(store, common | pace)
            prepare_run(config, ParticleStore.open(store), folder / f"{name}-{turn}", resume=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
    parser.add_argument("--milliseconds", type=float, default=5.0, help="that a step takes")
    parser.add_argument("--output", type=Path, help="JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, given.rounds, given.steps, given.workers)
        paths = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)])
        ray.init(
            num_cpus=given.workers + 1,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
            include_dashboard=False,
            log_to_driver=False,
        )
        trainer = TorchTrainer(
            partial(work, folder, given.rounds, given.milliseconds / 1e3),
            scaling_config=ray.train.ScalingConfig(num_workers=given.workers),
            run_config=ray.train.RunConfig(name="ray", storage_path=scratch),
        )
        rates = trainer.fit().return_value
        ray.shutdown()
    cost = 1 - statistics.median(rates[REPORTING]) / statistics.median(rates[SILENT])
    for name, found in rates.items():
        print(f"{name:12}  {'  '.join(f'{rate:6.1f}' for rate in found)}  steps/s")
    print(f"reports and checkpoints cost {cost:.1%} of the step rate")
    if given.output:
        given.output.write_text(json.dumps({"steps_per_second": rates, "cost": cost}, indent=1))


if __name__ == "__main__":
    main()
