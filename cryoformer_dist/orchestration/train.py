"""Ray Train around the training loop: workers, restarts, and word of what they do."""

import faulthandler
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from cryoformer_dist.config.cluster import ClusterConfig, LocalCluster, WorkersConfig
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import BatchSource, local_batches, resident_batches
from cryoformer_dist.data.dataset import ray_batches
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointNotWrittenError, ClusterError, ConfigError, CryoFormerError, TrainingError
from cryoformer_dist.orchestration.preflight import at_nodes, on_nodes
from cryoformer_dist.orchestration.prometheus import Publish, publishing
from cryoformer_dist.runs.directory import load_run, open_run_directory, selected_rows
from cryoformer_dist.runs.layout import TRAINING_LOG
from cryoformer_dist.runs.training_log import TrainingRecord, read_training_log
from cryoformer_dist.storage.places import Place, client_errors
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.machine import WorkerMemory, measure_worker_memory, set_threads, worker_threads
from cryoformer_dist.training.reporting import Reporter
from cryoformer_dist.training.worker import join_world_of_one, train_rank

_POLL_SECONDS = 0.5
_FETCH_SECONDS = 5.0
OnRecord = Callable[[TrainingRecord], None]


class RayReporter:
    """Hands records to Ray Train; a checkpoint is reported as a pointer to where it already lies.

    Parameters
    ----------
    run
        Run directory on storage that every node sees.
    silence_seconds
        A worker that is not heard of for so long writes down where it hangs and ends itself, to be replaced.
    publish
        Shows a record to those who watch the cluster.
    """

    def __init__(self, run: Path, silence_seconds: float, publish: Publish) -> None:
        self._run, self._silence, self._publish = run, silence_seconds, publish
        self.alive()

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        """See `Reporter`."""
        self.alive()
        self._publish(record)
        if checkpoint is None:
            ray.train.report(asdict(record))
            return
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"checkpoint": str(checkpoint.relative_to(self._run))}
            (Path(folder) / "pointer.json").write_text(json.dumps(pointer))
            ray.train.report(asdict(record), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def alive(self) -> None:
        """See `Reporter`."""
        faulthandler.dump_traceback_later(self._silence, exit=True)


class SilentReporter:
    """For runs whose records in ``metrics.jsonl`` are word enough."""

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        """See `Reporter`."""

    def alive(self) -> None:
        """See `Reporter`."""


def train_with_ray(run: WorkingFolder, cluster: ClusterConfig, on_record: OnRecord) -> None:
    """Train a prepared run with Ray Train workers on the Ray that is up.

    Parameters
    ----------
    run
        Run directory, its home visible to every node.
    cluster
        Workers and the losses to survive.
    on_record
        Called in this process for each new report.

    Raises
    ------
    ClusterError
        If the workers do not fit the cluster, or too many are lost.
    TrainingError
        If training itself cannot go on.
    """
    config, _ = load_run(run.folder)
    _check_resources(cluster.workers)
    workers = cluster.workers
    silence = 60 * workers.silence_minutes
    # One that does not even answer (a stopped process, a node without network) is lost after the same time.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(silence)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "run": str(run.home),
            "loader": config.dataset.loader,
            "threads": worker_threads(config, workers.cpus),
            "silence_seconds": silence,
        },
        # Ranks that wait for one that hangs give up a little later than that one itself.
        torch_config=TorchConfig(timeout_s=round(silence) + 60),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.elastic else workers.most,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            # Every attempt has a folder of Ray's own: re-using one would silently resume Ray's idea of the run.
            name=f"{time.strftime('%Y%m%d-%H%M%S')}",
            **_ray_storage(run.home / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.training.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    with _following(run, on_record, elsewhere=True):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _in_our_words(error, run.home) from error
    if isinstance(result.return_value, CryoFormerError):
        raise result.return_value


def train_locally(run: WorkingFolder, on_record: OnRecord) -> None:
    """Train a prepared run in this process, without Ray."""
    config, _ = load_run(run.folder)
    with _following(run, on_record):
        threads = config.training.threads_per_worker or torch.get_num_threads()
        train_here(run, SilentReporter(), threads, torch.cuda.is_available())


def train_here(run: WorkingFolder, reporter: Reporter, threads: int, on_gpu: bool) -> None:
    """Train a prepared run in this thread, with so many CPU threads below it, telling a reporter."""
    config, _ = load_run(run.folder)
    loader = config.dataset.loader
    set_threads(threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    join_world_of_one(device)
    train_rank(run, reporter, _loader("local" if loader == "ray" else loader, config, device), device)


def _worker(arguments: dict[str, Any]) -> CryoFormerError | None:
    """Ray Train calls this in every worker, again after each restart; returns what no restart would fix."""
    set_threads(arguments["threads"])
    device = ray.train.torch.get_device()
    try:
        rank = ray.train.get_context().get_world_rank()
        with open_run_directory(arguments["run"]) as run, publishing(run.folder.name, rank) as publish:
            loader = _loader(arguments["loader"], load_run(run.folder)[0], device)
            train_rank(run, RayReporter(run.folder, arguments["silence_seconds"], publish), loader, device)
    except (ConfigError, TrainingError, CheckpointNotWrittenError) as error:
        # All ranks meet these together. Raised, Ray would start the workers again, to meet them again.
        return error
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def _loader(name: str, config: RunConfig, device: torch.device) -> Callable[[ParticleStore], BatchSource]:
    """The configuration's ``dataset.loader``."""
    if name == "resident":
        return lambda store: resident_batches(store, selected_rows(config, store), device)
    return ray_batches if name == "ray" else local_batches


def measure_local_memory() -> WorkerMemory:
    """Memory for training in this process."""
    return measure_worker_memory(on_gpu=torch.cuda.is_available())


def measure_cluster_memory(cluster: ClusterConfig) -> WorkerMemory:
    """Memory of a worker on the Ray that is up, as the node has it that has least.

    Raises
    ------
    ClusterError
        If the workers do not fit the cluster, or a node does not answer.
    """
    workers = cluster.workers
    _check_resources(workers)
    workers_per_device = count_workers_per_device(workers, workers.most)
    if isinstance(cluster, LocalCluster):
        return measure_worker_memory(workers.gpus > 0, workers_per_device, workers.fewest)
    return find_smallest_memory(workers, workers_per_device)


def find_smallest_memory(workers: WorkersConfig, workers_per_device: int) -> WorkerMemory:
    """Memory of a worker where there is least: this process may be on a node without GPUs, or a small one.

    Parameters
    ----------
    workers
        Some node holds at least one.
    workers_per_device
        See `measure_worker_memory`.
    """

    def look(nodes: list[dict[str, Any]]) -> list[WorkerMemory]:
        large = [node for node in nodes if _holds_one(node["Resources"], workers)]
        return on_nodes(large, _measure_memory_there, workers.gpus > 0, workers_per_device, workers.fewest)

    return min(at_nodes(look), key=lambda memory: memory.bytes)


def _holds_one(resources: dict[str, float], workers: WorkersConfig) -> bool:
    return resources.get("CPU", 0) >= workers.cpus and resources.get("GPU", 0) >= workers.gpus


def _measure_memory_there(_: dict[str, Any], on_gpu: bool, workers_per_device: int, workers: int) -> WorkerMemory:
    return measure_worker_memory(on_gpu, workers_per_device, workers)


def count_workers_per_device(workers: WorkersConfig, count: int) -> int:
    """How many of so many workers may find themselves on one device, or without GPUs on one node."""
    if workers.gpus:
        return max(1, int(1 / workers.gpus))
    # Ray packs: a node gets as many as its CPUs hold.
    most = max(int(node["Resources"].get("CPU", 0) / workers.cpus) for node in ray.nodes() if node["Alive"])
    return min(count, max(1, most))


def _check_resources(workers: WorkersConfig) -> None:
    """Refuse what would wait for ever."""
    available = ray.cluster_resources()
    needed = workers.fewest * workers.cpus
    if needed > available.get("CPU", 0):
        raise ClusterError(
            f"workers: {workers.fewest} x {workers.cpus} CPUs are asked for, the cluster has "
            f"{available.get('CPU', 0):g}; lower workers.count or workers.cpus"
        )
    if workers.fewest * workers.gpus > available.get("GPU", 0):
        raise ClusterError(
            f"workers: {workers.fewest} x {workers.gpus:g} GPUs are asked for, the cluster has "
            f"{available.get('GPU', 0):g}; lower workers.count or workers.gpus"
        )


def _ray_storage(place: Place) -> dict[str, Any]:
    """Where Ray keeps its own records of an attempt; it speaks to our object store through our client."""
    if isinstance(place, Path):
        return {"storage_path": str(place)}
    system = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(place.fs))
    return {"storage_path": place.path, "storage_filesystem": system}


def _in_our_words(error: Exception, run: Place) -> CryoFormerError:
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, CryoFormerError):
            return failure
    if failures:
        rank, failure = next(iter(failures.items()))
        return TrainingError(f"worker {rank} failed: {failure}\n`--resume` goes on from the last checkpoint in {run}")
    return ClusterError(f"training stopped: {error}\n`--resume` goes on from the last checkpoint in {run}")


@contextmanager
def _following(run: WorkingFolder, on_record: OnRecord, elsewhere: bool = False) -> Iterator[None]:
    """Tell of every record that the leader adds to ``metrics.jsonl`` while training runs.

    Parameters
    ----------
    elsewhere
        Whether the leader is another process, with a working copy of its own.
    """
    stop = threading.Event()
    # Looked at before the thread starts: what comes in between is new.
    before = max((record.step for record in read_training_log(run.folder)), default=-1)
    pause = _FETCH_SECONDS if elsewhere and run.is_copy else _POLL_SECONDS

    def records() -> list[TrainingRecord]:
        # While storage is away there is no news; that it is away is for the leader to say.
        with suppress(OSError, *client_errors()):
            if elsewhere:
                run.fetch(TRAINING_LOG)
            return read_training_log(run.folder)
        return []

    def follow() -> None:
        told = before
        while True:
            last_look = stop.is_set()
            for record in records():
                if record.step > told:
                    told = record.step
                    on_record(record)
            if last_look:
                return
            stop.wait(pause)

    thread = threading.Thread(target=follow, name="follow-metrics")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
