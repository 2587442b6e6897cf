"""Ray Train as the process sees it that drives a run: workers, their losses, and what a failure means."""

import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pyarrow.fs
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cryoformer_dist.config.cluster import ClusterConfig, WorkersConfig
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.errors import ClusterError, CryoFormerError, RayProcessLostWarning, TrainingError
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.orchestration.failing_nodes import LeaveOutFailingNodes
from cryoformer_dist.orchestration.following import OnRecord, follow_run
from cryoformer_dist.orchestration.missing_nodes import telling_of_missing_nodes
from cryoformer_dist.orchestration.resources import refuse_too_many_workers
from cryoformer_dist.orchestration.worker import WorkerArguments, run_worker
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.runs.layout import RAY_RECORDS
from cryoformer_dist.storage.places import Place
from cryoformer_dist.storage.working_folder import WorkingFolder


def train_with_ray(
    working: WorkingFolder,
    config: RunConfig,
    cluster: ClusterConfig,
    memory: WorkerMemory,
    on_record: OnRecord,
    on_stage: StagedProgress = silent,
    on_notice: Callable[[str], None] = lambda text: None,
) -> None:
    """Train a prepared run with Ray Train workers on the Ray that is up.

    Parameters
    ----------
    working
        Run directory, its home visible to every node.
    config
        As the run directory holds it.
    cluster
        Workers and the losses to survive.
    memory
        Of a worker.
    on_record
        Called in this process for each new record.
    on_stage
        Called in this process with (stage, done, in all) of the stages before and after training.
    on_notice
        Called in this process with what happens to nodes, and whom training waits for.

    Raises
    ------
    ClusterError
        If the workers do not fit the cluster, or too many are lost.
    TrainingError
        If training itself cannot go on.
    """
    refuse_too_many_workers(cluster.workers)
    with (
        follow_run(working, on_record, on_stage, elsewhere=True, on_notice=on_notice),
        telling_of_missing_nodes(working.home, cluster.workers, on_notice),
    ):
        try:
            result = _repeat_when_ray_is_hit(_plan_attempt(working, config, cluster, memory), cluster.max_failures)
        except ray.train.TrainingFailedError as error:
            raise _explain(error, working.home) from error
    if isinstance(result.return_value, CryoFormerError):
        raise result.return_value


def _plan_attempt(
    working: WorkingFolder, config: RunConfig, cluster: ClusterConfig, memory: WorkerMemory
) -> Callable[[], ray.train.Result]:
    """What makes one attempt, by Ray Train."""
    silence = 60 * cluster.workers.silence_minutes
    # One that does not even answer (a stopped process, a node without network) is lost after the same time.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(silence)
    arguments = WorkerArguments(str(working.home), config.training.threads_for(cluster.workers.cpus), silence, memory)

    def attempt() -> ray.train.Result:
        return _fit(
            TorchTrainer(
                partial(run_worker, arguments),
                # Ranks that wait for one that hangs give up a little later than that one itself.
                torch_config=TorchConfig(timeout_s=round(silence) + 60),
                scaling_config=_scale_workers(cluster.workers),
                run_config=_configure_attempt(working.home, cluster, config.training.keep_checkpoints),
            )
        )

    return attempt


def _repeat_when_ray_is_hit(attempt: Callable[[], ray.train.Result], losses: int) -> ray.train.Result:
    """Make attempts until one ends by itself.

    Ray Train goes on by itself when it loses a worker, but not when it asks one something just as that is lost, as the
    workers come or go. Workers find the newest checkpoint in any attempt.
    """
    for _ in range(losses):
        try:
            return attempt()
        except ray.train.ControllerError as error:
            if not isinstance(error.controller_failure, ray.exceptions.RayActorError):
                raise
            told = str(error.controller_failure).splitlines()[0]
            warnings.warn(
                f"Ray lost one of its own processes ({told}): training goes on from the newest checkpoint",
                RayProcessLostWarning,
                stacklevel=2,
            )
    return attempt()


def _fit(trainer: TorchTrainer) -> ray.train.Result:
    """Train, signals left to us: in the main thread Ray takes Ctrl-C, and loses what was learned since a checkpoint."""
    ended: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            ended.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            ended.set_exception(error)

    # Nobody waits for one that is left at once: it ends with its Ray.
    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    return ended.result()


def _scale_workers(workers: WorkersConfig) -> ray.train.ScalingConfig:
    return ray.train.ScalingConfig(
        num_workers=(workers.fewest, workers.most) if workers.elastic else workers.most,
        use_gpu=workers.gpus > 0,
        resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
    )


def _configure_attempt(home: Place, cluster: ClusterConfig, keep_checkpoints: int) -> ray.train.RunConfig:
    """Where Ray keeps its own records of an attempt, and what it puts up with.

    Parameters
    ----------
    home
        Run directory; Ray speaks to our object store through our client.
    cluster
        Losses of workers to survive.
    keep_checkpoints
        Pointers to checkpoints that Ray remembers.
    """
    place = home / RAY_RECORDS
    if isinstance(place, Path):
        path, system = str(place), None
    else:
        path, system = place.path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(place.fs))
    return ray.train.RunConfig(
        # Every attempt has a folder of Ray's own: re-using one would silently resume Ray's idea of the run.
        name=time.strftime("%Y%m%d-%H%M%S"),
        storage_path=path,
        storage_filesystem=system,
        failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=keep_checkpoints),
        callbacks=[LeaveOutFailingNodes(str(home), cluster.workers)],
        logging_config=ray.train.LoggingConfig(log_level="ERROR"),
    )


def _explain(error: Exception, home: Place) -> CryoFormerError:
    """What ended training: the worker's own words where it had some."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, CryoFormerError):
            return failure
    if failures:
        rank, failure = next(iter(failures.items()))
        return TrainingError(f"worker {rank} failed: {failure}\n`--resume` goes on from the last checkpoint in {home}")
    return ClusterError(f"training stopped: {error}\n`--resume` goes on from the last checkpoint in {home}")
