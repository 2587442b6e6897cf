"""Trains one run file with batches of several sizes over equal passes, and prints how well each learned; run by hand.

Everything on one thread. Trainings that are done are not done again: a second call, of one seed say, adds to the table.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from cryoformer_dist.analysis.results import score_run_quickly
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.machine import measure_worker_memory
from cryoformer_dist.orchestration.config_files import read_run_file
from cryoformer_dist.orchestration.worker import SilentReporter, train_alone
from cryoformer_dist.runs.directory import is_prepared, load_run
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.preparation import prepare_like, prepare_run

FIXED = ("training.engine=torch", "training.threads_per_worker=1", "dataset.loader=local")


def train(config_file: Path, overrides: list[str], work: Path, batch: int, seed: int) -> float:
    """Difference-map correlation of a training; what runs of a seed begin with is made once."""
    changes = [*overrides, f"training.global_batch_size={batch}", f"training.seed={seed}"]
    config = read_run_file(config_file, [*FIXED, *changes])
    store, memory = ParticleStore.open(config.dataset.store), measure_worker_memory(on_gpu=False)
    prepared, run = work / f"prepared-{seed}", work / f"batch-{batch}-seed-{seed}"
    if not is_prepared(prepared):
        prepare_run(config, store, prepared, resume=False, memory=memory)
    if not is_prepared(run):
        prepare_like(config, store, run, prepared, memory)
    train_alone(WorkingFolder.on_disk(run), load_run(run)[0], store, SilentReporter(), 1, on_gpu=False)
    return score_run_quickly(run).difference_map_correlation


def table(scores: dict[str, dict[str, float]]) -> str:
    """A line per batch, a column per seed; Markdown."""
    seeds = sorted({seed for found in scores.values() for seed in found})
    lines = [["batch", *(f"seed {seed}" for seed in seeds), "mean"], ["---"] * (len(seeds) + 2)]
    for batch in sorted(scores, key=int):
        found = scores[batch]
        cells = [f"{found[seed]:.3f}" if seed in found else "" for seed in seeds]
        lines.append([batch, *cells, f"{statistics.fmean(found.values()):.3f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/demo.yaml"))
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the run file")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = given.work / "scores.json"
    scores: dict[str, dict[str, float]] = json.loads(results.read_text()) if results.is_file() else {}
    for seed in given.seeds:
        for batch in given.batches:
            found = scores.setdefault(str(batch), {})
            if str(seed) not in found:
                found[str(seed)] = train(given.config, given.set, given.work, batch, seed)
                results.write_text(json.dumps(scores, indent=1))
                print(f"batch {batch}, seed {seed}: dCC {found[str(seed)]:.3f}", flush=True)
    print(table(scores))


if __name__ == "__main__":
    main()
