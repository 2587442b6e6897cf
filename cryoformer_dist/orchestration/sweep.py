"""The whole way of a sweep: one store, many trials, one report."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune

from cryoformer_dist.analysis.results import find_truth_beside
from cryoformer_dist.analysis.sweep_report import write_sweep_report
from cryoformer_dist.config.cluster import ClusterConfig, LocalCluster, WorkersConfig
from cryoformer_dist.config.loading import dump_config, load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.config.trials import Trial, plan_trials
from cryoformer_dist.data.store import ParticleStore, is_complete
from cryoformer_dist.errors import ClusterError, ConfigError
from cryoformer_dist.orchestration.cluster import use_ray
from cryoformer_dist.orchestration.config_files import read_run_file
from cryoformer_dist.orchestration.display import Display
from cryoformer_dist.orchestration.pipeline import ensure_store
from cryoformer_dist.orchestration.resources import count_workers_per_device
from cryoformer_dist.orchestration.trial import run_trial
from cryoformer_dist.orchestration.tuning import (
    OptunaProposals,
    SweepLog,
    describe_trial,
    load_optuna,
    make_scheduler,
)
from cryoformer_dist.runs.layout import RAY_RECORDS, SWEEP
from cryoformer_dist.runs.sweep import is_sweep, read_result, read_trials
from cryoformer_dist.runs.trial import (
    folder_of_trial,
    forget_outcome,
    read_outcome,
    read_trial,
    trial_folders,
    write_trial,
)
from cryoformer_dist.storage.places import place_at, placed_from

_TUNE_ENVIRONMENT = {
    # Ours is the table, and the records; Tune's would need TensorBoard.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Trials name their files by whole paths.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The newer one greets even when it is to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A sweep to be made.

    Attributes
    ----------
    sweep
        Sweep configuration, its storage resolved.
    base
        Run that all trials start from, its paths resolved.
    trials
        Those known before; none with ``search: optuna``.
    cluster
        Where it happens.
    resume
        Go on with the sweep that is there.
    retry_failed
        Have trials go on that had failed.
    """

    sweep: SweepConfig
    base: RunConfig
    trials: tuple[Trial, ...]
    cluster: ClusterConfig
    resume: bool = False
    retry_failed: bool = False

    @property
    def folder(self) -> Path:
        """Of the sweep."""
        return Path(self.sweep.storage) / self.sweep.name


def read_sweep_request(
    path: Path,
    overrides: list[str],
    cluster: ClusterConfig | None = None,
    resume: bool = False,
    retry_failed: bool = False,
) -> SweepRequest:
    """A sweep file and its run file, checked on their own and together.

    Parameters
    ----------
    path
        Sweep file.
    overrides
        ``dotted.key=value`` for the sweep file.
    cluster
        Where to run, its paths resolved; its storage and workers are then the sweep's. This machine when ``None``.
    resume, retry_failed
        See `SweepRequest`.

    Raises
    ------
    ConfigError
        With every mistake of both files.
    BackendUnavailableError
        If Optuna is asked for and not installed.
    """
    sweep = load_config(path, SweepConfig, overrides)
    folder = path.resolve().parent
    sweep = sweep.model_copy(
        update={"run": placed_from(folder, sweep.run), "storage": placed_from(folder, sweep.storage)}
    )
    base = read_run_file(Path(sweep.run), [])
    if cluster is None:
        cluster = LocalCluster(storage=sweep.storage, workers=sweep.workers, max_failures=sweep.max_failures)
    else:
        told = {"storage": cluster.storage, "workers": cluster.workers, "max_failures": cluster.max_failures}
        sweep = sweep.model_copy(update=told)
    sweep = SweepConfig.model_validate(sweep.model_dump())
    if not isinstance(place_at(sweep.storage), Path):
        raise ConfigError(f"{path}: storage: {sweep.storage}: sweeps are kept in folders only; stores may be on s3://")
    _refuse_without_truth(sweep, base, path)
    trials = plan_trials(sweep, base, str(path))
    if sweep.search == "optuna":
        load_optuna()
    return SweepRequest(sweep, base, tuple(trials), cluster, resume, retry_failed)


def carry_out_sweep(request: SweepRequest, display: Display) -> Path:
    """Make the sweep and return its report.

    Raises
    ------
    ClusterError
        If a trial does not fit the cluster, or the sweep was interrupted: nothing of what was finished is lost.
    ConfigError
        If the folder holds a sweep and ``resume`` is not asked for, or the one there is another.
    """
    _lay_out(request)
    with use_ray(request.cluster) as dashboard:
        if dashboard:
            display.say(f"Ray dashboard  {dashboard}")
        elif request.sweep.scheduler.kind != "none":
            # Nobody else frees what a trial with workers of its own held when a scheduler ends it.
            raise ClusterError("a scheduler that ends trials needs Ray's dashboard: start Ray with it")
        slots = count_trials_at_once(request.sweep)
        ensure_store(request.base, display, parallel=True)
        display.say(f"trials         {_count_trials(request)}, {slots} at a time")
        _tune(request, slots, display)
    report = write_sweep_report(request.folder)
    left = [folder.name for folder in trial_folders(request.folder) if read_outcome(folder) is None]
    if left:
        raise ClusterError(
            f"{len(left)} trials have not ended, {left[0]} among them; `--resume` goes on with them. So far: {report}"
        )
    return report


def count_trials_at_once(sweep: SweepConfig) -> int:
    """How many trials the Ray that is up holds, at most as many as the sweep allows.

    Raises
    ------
    ClusterError
        If not even one fits: it would wait for ever.
    """
    workers = sweep.workers
    found = ray.cluster_resources()
    cpus = workers.most * workers.cpus
    fit = int(found.get("CPU", 0) / cpus + 1e-9)
    if workers.gpus:
        fit = min(fit, int(found.get("GPU", 0) / (workers.most * workers.gpus) + 1e-9))
    if not fit:
        raise ClusterError(
            f"workers: a trial needs {cpus:g} CPUs and {workers.most * workers.gpus:g} GPUs, the cluster has "
            f"{found.get('CPU', 0):g} and {found.get('GPU', 0):g}; lower workers.count, workers.cpus or workers.gpus"
        )
    return min(fit, sweep.concurrent or fit)


def _tune(request: SweepRequest, slots: int, display: Display) -> None:
    """Have Ray Tune run every trial that has not ended."""
    os.environ.update(_TUNE_ENVIRONMENT)
    sweep, folder = request.sweep, request.folder
    trials = [(folder_of_trial(folder, trial.name), trial.parameters) for trial in request.trials]
    waiting = [describe_trial(place, values) for place, values in trials if read_outcome(place) is None]
    searched = sweep.search == "optuna"
    if not searched and not waiting:
        return
    past = [result for result in read_trials(folder) if result.state in ("finished", "stopped")]
    shared = {"workers_per_device": count_workers_per_device(sweep.workers, slots * sweep.workers.most)}
    tuner = tune.Tuner(
        tune.with_resources(run_trial, _reserve(sweep.workers)),
        param_space=shared if searched else {**shared, "trial": tune.grid_search(waiting)},
        tune_config=tune.TuneConfig(
            # The schedulers and searchers that ask for them were told themselves.
            scheduler=make_scheduler(sweep, request.base.training.epochs, past),
            search_alg=OptunaProposals(sweep, request.base, folder) if searched else None,
            num_samples=-1 if searched else 1,
            max_concurrent_trials=slots,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            # Tune's own files, which nobody reads: a sweep that goes on reads the trials' folders.
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(folder / RAY_RECORDS),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[SweepLog(sweep.metric, display.say)],
            verbose=0,
        ),
    )
    tuner.fit()


def _reserve(workers: WorkersConfig) -> dict[str, float]:
    """What Tune sets aside for a trial's process; one that drives workers of its own must hold none of their CPUs."""
    if workers.most > 1:
        return {"node:__internal_head__": 0.001}
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})


def _lay_out(request: SweepRequest) -> None:
    """Write the sweep and every trial that is known."""
    folder = request.folder
    if is_sweep(folder) and not request.resume:
        raise ConfigError(f"{folder}: holds a sweep already; --resume goes on with it, --set name=NAME starts another")
    for trial in request.trials:
        place = folder_of_trial(folder, trial.name)
        if place in trial_folders(folder) and read_trial(place).config != trial.config:
            raise ConfigError(f"{place}: was begun with other values; resume with those, or --set name=NAME")
    for trial in request.trials:
        place = folder_of_trial(folder, trial.name)
        if place not in trial_folders(folder):
            write_trial(place, trial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SWEEP).write_text(dump_config(request.sweep))
    if request.retry_failed:
        for place in trial_folders(folder):
            if read_result(place).state == "failed":
                forget_outcome(place)


def _count_trials(request: SweepRequest) -> str:
    ended = sum(read_outcome(folder) is not None for folder in trial_folders(request.folder))
    count = len(request.trials) or request.sweep.samples
    return f"{count}" + (f", {ended} of them ended before" if ended else "")


def _refuse_without_truth(sweep: SweepConfig, base: RunConfig, path: Path) -> None:
    store = place_at(base.dataset.store)
    if sweep.metric == "loss" or base.dataset.simulate is not None or not is_complete(store):
        return
    source = Path(ParticleStore.open(store).attributes.source.path)
    if find_truth_beside(source) is None:
        raise ConfigError(f"{path}: metric: {sweep.metric} needs a truth, and there is none beside {source}; take loss")
