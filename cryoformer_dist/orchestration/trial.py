"""One trial of a sweep, in the process that Ray Tune gives it: an ordinary run directory, start to report."""

import json
import resource
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import torch
from ray import tune

from cryoformer_dist.analysis.results import make_results, score_run_quickly
from cryoformer_dist.config.cluster import LocalCluster, WorkersConfig
from cryoformer_dist.config.sweep import Scalar, SweepConfig
from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.machine import measure_worker_memory
from cryoformer_dist.orchestration.pipeline import open_posed_store
from cryoformer_dist.orchestration.ray_training import train_with_ray
from cryoformer_dist.orchestration.resources import count_workers_per_device, find_smallest_memory
from cryoformer_dist.orchestration.worker import train_alone
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.runs.directory import is_prepared, load_run, open_run_store
from cryoformer_dist.runs.layout import RAY_POINTER, SWEEP_PREPARED, TRIAL_LOCK
from cryoformer_dist.runs.scores import read_scores
from cryoformer_dist.runs.stage_progress import StageProgress
from cryoformer_dist.runs.sweep import pick_headline_scores, read_sweep
from cryoformer_dist.runs.training_log import TrainingRecord
from cryoformer_dist.runs.trial import (
    EpochSummary,
    TrialOutcome,
    append_epoch,
    epochs_of_run,
    held,
    read_epochs,
    read_outcome,
    read_trial,
    take_over,
    write_outcome,
)
from cryoformer_dist.storage.places import remove_folder
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.preparation import preparation_key, prepare_like, prepare_run


class TunedTrial(TypedDict):
    """A trial as Tune passes it around: ``folder``, and ``values`` of its parameters, which Tune may change."""

    folder: str
    values: dict[str, Scalar]


class TrialArguments(TypedDict):
    """What a trial's process is given; ``workers_per_device``: training processes of all trials that share a device."""

    trial: TunedTrial
    workers_per_device: int


def run_trial(arguments: TrialArguments) -> None:
    """Ray Tune calls this in a process of its own, again after that process was lost."""
    trial = arguments["trial"]
    folder = Path(trial["folder"])
    # A process of a sweep that was killed may not have noticed yet.
    with held(folder / TRIAL_LOCK):
        if read_outcome(folder) is not None:
            return
        try:
            _make_run(folder, trial["values"], arguments["workers_per_device"])
        except CryoFormerError as error:
            # What a user must fix, another process would not.
            write_outcome(folder, TrialOutcome("failed", str(error)))


def _make_run(folder: Path, values: dict[str, Scalar], workers_per_device: int) -> None:
    sweep = read_sweep(folder.parents[1])
    reports = EpochReports(folder, sweep)
    _prepare(folder, sweep.workers, workers_per_device)
    _take_over_when_told(folder, values)
    reports.repeat()
    _train(folder, sweep, reports)
    make_results(WorkingFolder.on_disk(folder))
    reports.finish()
    write_outcome(folder, TrialOutcome("finished"))


def _prepare(folder: Path, workers: WorkersConfig, workers_per_device: int) -> None:
    """Make the trial's run directory; what trials have in common is made once, by the first that needs it."""
    if is_prepared(folder):
        return
    config = read_trial(folder).config
    torch.set_num_threads(config.training.threads_for(workers.cpus))
    store = open_posed_store(config.dataset.store)
    # A trial of several workers is driven from the head, which may hold none of them.
    memory = (
        measure_worker_memory(workers.gpus > 0, workers_per_device)
        if workers.count == 1
        else find_smallest_memory(workers, workers_per_device)
    )
    shared = folder.parents[1] / SWEEP_PREPARED / preparation_key(config, store)
    with held(shared.with_suffix(".lock")):
        if not is_prepared(shared):
            # What a kill left of it may be another trial's configuration.
            remove_folder(shared)
            prepare_run(config, store, shared, resume=False, memory=memory)
    prepare_like(config, store, folder, shared, memory)


def _take_over_when_told(folder: Path, values: dict[str, Scalar]) -> None:
    """Population based training: go on from where another trial is, when Tune says so."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as pointer:
        donor = Path(json.loads((Path(pointer) / RAY_POINTER).read_text())["run"])
    if donor != folder:
        take_over(folder, donor, values)


def _train(folder: Path, sweep: SweepConfig, reports: "EpochReports") -> None:
    workers, working = sweep.workers, WorkingFolder.on_disk(folder)
    config, manifest = load_run(folder)
    if workers.count == 1:
        store, threads = open_run_store(manifest), config.training.threads_for(workers.cpus)
        train_alone(working, config, store, reports, threads, workers.gpus > 0)
    else:
        cluster = LocalCluster(workers=workers, max_failures=sweep.max_failures)
        memory = find_smallest_memory(workers, count_workers_per_device(workers, workers.most))
        train_with_ray(working, config, cluster, memory, lambda record: reports.look())


class EpochReports:
    """Tells Tune, and keeps in the trial's folder, what each epoch came to; a `Reporter` of training.

    Parameters
    ----------
    folder
        Trial.
    sweep
        What it is part of.
    """

    def __init__(self, folder: Path, sweep: SweepConfig) -> None:
        self._folder, self._sweep = folder, sweep
        self._known = {line["epoch"]: line for line in read_epochs(folder)}
        self._told = max(self._known, default=0)
        self._usage = _measure_usage()

    def repeat(self) -> None:
        """Tell a scheduler that compares trials epoch by epoch of those before an interruption."""
        if self._sweep.scheduler.kind in ("asha", "median"):
            for number in sorted(self._known):
                self._tell(self._known[number])

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        """See `Reporter`."""
        self.look()

    def step(self, number: int, left_out: int) -> None:
        """See `Reporter`."""

    def stage(self, progress: StageProgress) -> None:
        """See `Reporter`."""

    def alive(self) -> None:
        """See `Reporter`."""

    def look(self) -> None:
        """See whether an epoch has ended."""
        for epoch in epochs_of_run(self._folder):
            if epoch.number > self._told:
                self._told = epoch.number
                self._tell_end(epoch)

    def finish(self) -> None:
        """Tell of the last epoch, with the scores of the finished run."""
        last = epochs_of_run(self._folder)[-1]
        scores = read_scores(self._folder)
        line = self._measure(last, {} if scores is None else pick_headline_scores(scores))
        append_epoch(self._folder, line)
        self._tell(line)

    def _tell_end(self, epoch: EpochSummary) -> None:
        # The last one is told of when its results are there: a scheduler may end a trial at any word of it.
        if epoch.number == epoch.of:
            return
        line = self._measure(epoch, self._score())
        append_epoch(self._folder, line)
        self._tell(line)

    def _score(self) -> dict[str, float]:
        if self._sweep.metric == "loss" or not checkpoints(self._folder):
            return {}
        return asdict(score_run_quickly(self._folder))

    def _measure(self, epoch: EpochSummary, scores: dict[str, float]) -> dict[str, float]:
        """What an epoch came to, and what it cost."""
        before, self._usage = self._usage, _measure_usage()
        seconds, cpu_seconds = (now - then for now, then in zip(self._usage, before, strict=True))
        workers = self._sweep.workers
        if workers.most > 1:
            # Of its workers' processes this one knows what they hold.
            cpu_seconds = seconds * workers.most * workers.cpus
        return {
            "epoch": epoch.number,
            "epochs": epoch.of,
            "step": epoch.step,
            **scores,
            "loss": epoch.loss,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "gpu_seconds": seconds * workers.most * workers.gpus,
        }

    def _tell(self, line: dict[str, float]) -> None:
        metric = self._sweep.metric
        if metric not in line:
            return
        told = {"epoch": line["epoch"], "loss": line["loss"], metric: line[metric]}
        if self._sweep.scheduler.kind != "pbt":
            tune.report(told)
            return
        with tempfile.TemporaryDirectory() as pointer:
            (Path(pointer) / RAY_POINTER).write_text(json.dumps({"run": str(self._folder)}))
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(pointer))


def _measure_usage() -> tuple[float, float]:
    """Wall clock since this process started and CPU seconds it has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.time(), used.ru_utime + used.ru_stime
