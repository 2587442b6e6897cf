from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from support.tiny_runs import tiny_config
from support.training_records import training_record

from cryoformer_dist.config.cluster import ExistingCluster, LocalCluster, WorkersConfig
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ClusterError, StoreError, TrainingError
from cryoformer_dist.orchestration import train
from cryoformer_dist.runs.training_log import TrainingLog, TrainingRecord, read_training_log
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.machine import WorkerMemory, measure_worker_memory
from cryoformer_dist.training.preparation import prepare_run


def _cluster(**workers: Any) -> LocalCluster:
    return LocalCluster(workers=WorkersConfig(**workers))


@pytest.mark.parametrize(
    ("workers", "fits"),
    [
        ({"count": 2, "cpus": 0.9}, True),
        ({"count": 2, "cpus": 1}, True),
        ({"count": 2, "cpus": 1.1}, False),
        ({"count": 1, "cpus": 1.9, "gpus": 1}, True),
        ({"count": 2, "cpus": 0.5, "gpus": 1}, False),
        ({"count": 1, "cpus": 0.5, "gpus": 0.5}, True),
    ],
)
def test_workers_that_would_wait_for_ever_are_refused(
    workers: dict[str, Any], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    if fits:
        train._check_resources(_cluster(**workers).workers)
    else:
        with pytest.raises(ClusterError, match=r"lower workers\.count or workers\."):
            train._check_resources(_cluster(**workers).workers)


def _worker_failure(*causes: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("message", dict(enumerate(causes)))


def test_what_a_worker_said_in_our_words_is_passed_on(tmp_path: Path) -> None:
    ours = StoreError("s.zarr: chunk 3 is damaged; copy it again")
    ours.__cause__ = ValueError("checksum")
    assert train._in_our_words(_worker_failure(RuntimeError("connection closed by peer"), ours), tmp_path) is ours


def test_any_other_loss_of_a_worker_says_how_to_go_on(tmp_path: Path) -> None:
    told = train._in_our_words(_worker_failure(MemoryError("out of memory")), tmp_path)
    assert isinstance(told, TrainingError)
    assert "worker 0 failed" in str(told)
    assert "--resume" in str(told)
    controller = train._in_our_words(ray.train.ControllerError(RuntimeError("no node")), tmp_path)
    assert isinstance(controller, ClusterError)
    assert "--resume" in str(controller)


def test_every_new_record_is_told_once_and_old_ones_not(tmp_path: Path) -> None:
    metrics = TrainingLog(WorkingFolder.on_disk(tmp_path), 0)
    metrics.append(training_record(step=2, seconds=1.0))
    told: list[int] = []
    with train._following(WorkingFolder.on_disk(tmp_path), lambda record: told.append(record.step)):
        metrics.append(training_record(step=4, seconds=2.0))
        metrics.append(training_record(step=6, seconds=3.0))
    assert told == [4, 6]


def test_following_ends_with_an_error_too(tmp_path: Path) -> None:
    import threading

    def fail() -> None:
        with train._following(WorkingFolder.on_disk(tmp_path), lambda record: None):
            raise TrainingError("stopped")

    with pytest.raises(TrainingError, match="stopped"):
        fail()
    assert "follow-metrics" not in {thread.name for thread in threading.enumerate()}


def test_training_without_ray_tells_every_report(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The process group and denormal numbers are the command line's own process's business.
    monkeypatch.setattr(train, "join_world_of_one", lambda device: None)
    monkeypatch.setattr(train, "set_threads", lambda count: None)
    prepare_run(tiny_config(tiny_store), ParticleStore.open(tiny_store), tmp_path, resume=False)
    told: list[TrainingRecord] = []
    train.train_locally(WorkingFolder.on_disk(tmp_path), told.append)
    assert told == read_training_log(tmp_path)
    assert told[-1].step == told[-1].steps == 11
    assert not ray.is_initialized()


def test_workers_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}] * 2)
    memory = train.measure_cluster_memory(_cluster(count=2, cpus=0.9))
    assert (memory.workers, memory.on_gpu) == (2, False)
    assert memory.bytes == pytest.approx(measure_worker_memory(on_gpu=False).bytes / 2, rel=0.3)


def test_on_a_cluster_a_worker_has_the_memory_of_the_smallest_node_that_could_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A head without GPUs, which drives, and two nodes with.
    kinds = [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}]
    nodes = [{"NodeID": f"id{k}", "Alive": True, "Resources": kind} for k, kind in enumerate(kinds)]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 24.0, "GPU": 8.0})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    gib = {"id1": 80, "id2": 40}

    def on_nodes(
        asked: list[dict[str, Any]], function: Any, on_gpu: bool, workers_per_device: int, workers: int
    ) -> list[WorkerMemory]:
        return [WorkerMemory(gib[node["NodeID"]] * 2**30 // workers_per_device, workers, on_gpu) for node in asked]

    monkeypatch.setattr(train, "on_nodes", on_nodes)
    cluster = ExistingCluster(
        provider="existing", address="auto", storage="/nowhere", workers=WorkersConfig(count=8, gpus=1)
    )
    assert train.measure_cluster_memory(cluster) == WorkerMemory(40 * 2**30, 8, on_gpu=True)
    # The batch is shared out among those that are left.
    elastic = cluster.model_copy(update={"workers": WorkersConfig(count="2..8", gpus=1)})
    assert train.measure_cluster_memory(elastic) == WorkerMemory(40 * 2**30, 2, on_gpu=True)


def test_resident_images_train_to_the_same_losses(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "join_world_of_one", lambda device: None)
    monkeypatch.setattr(train, "set_threads", lambda count: None)
    losses = []
    for name in ("local", "resident"):
        changes = {"dataset.loader": name, "training.epochs": 1}
        prepare_run(tiny_config(tiny_store, changes), ParticleStore.open(tiny_store), tmp_path / name, resume=False)
        train.train_locally(WorkingFolder.on_disk(tmp_path / name), lambda record: None)
        losses.append([record.loss for record in read_training_log(tmp_path / name)])
    assert losses[0] == losses[1]
