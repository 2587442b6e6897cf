from typing import Any

import pytest
import ray

from cryoformer_dist.config.cluster import ExistingCluster, LocalCluster, WorkersConfig
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.machine import WorkerMemory, measure_worker_memory
from cryoformer_dist.orchestration import resources
from cryoformer_dist.orchestration.nodes import Node
from cryoformer_dist.orchestration.resources import measure_cluster_memory, refuse_too_many_workers


def _node(number: int, resources: dict[str, float]) -> dict[str, Any]:
    """As Ray describes one."""
    place = {"NodeID": f"id{number}", "NodeManagerAddress": "10.0.0.1", "NodeManagerHostname": "one"}
    return {**place, "Alive": True, "Resources": resources}


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
        refuse_too_many_workers(_cluster(**workers).workers)
    else:
        with pytest.raises(ClusterError, match=r"lower workers\.count or workers\."):
            refuse_too_many_workers(_cluster(**workers).workers)


def test_workers_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "nodes", lambda: [_node(k, {"CPU": 2.0}) for k in range(2)])
    memory = measure_cluster_memory(_cluster(count=2, cpus=0.9))
    assert (memory.workers, memory.on_gpu) == (2, False)
    assert memory.bytes == pytest.approx(measure_worker_memory(on_gpu=False).bytes / 2, rel=0.3)


def test_the_driver_of_a_local_cluster_asks_no_gpu_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [_node(0, {"CPU": 4.0, "GPU": 2.0})])

    def refuse(*_: object) -> None:
        raise AssertionError("the driver opened a CUDA context")

    def measure_on_nodes(asked: list[Node], function: Any, on_gpu: bool, *_: int) -> list[WorkerMemory]:
        assert on_gpu
        return [WorkerMemory(2**30, 2, on_gpu) for _ in asked]

    monkeypatch.setattr(resources, "measure_worker_memory", refuse)
    monkeypatch.setattr(resources, "measure_on_nodes", measure_on_nodes)
    assert measure_cluster_memory(_cluster(count=2, cpus=1, gpus=1)) == WorkerMemory(2**30, 2, on_gpu=True)


def test_on_a_cluster_a_worker_has_the_memory_of_the_smallest_node_that_could_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A head without GPUs, which drives, and two nodes with.
    kinds = [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}]
    nodes = [_node(k, kind) for k, kind in enumerate(kinds)]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 24.0, "GPU": 8.0})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    gib = {"id1": 80, "id2": 40}

    def measure_on_nodes(
        asked: list[Node], function: Any, on_gpu: bool, workers_per_device: int, workers: int
    ) -> list[WorkerMemory]:
        return [WorkerMemory(gib[node.number] * 2**30 // workers_per_device, workers, on_gpu) for node in asked]

    monkeypatch.setattr(resources, "measure_on_nodes", measure_on_nodes)
    cluster = ExistingCluster(
        provider="existing", address="auto", storage="/nowhere", workers=WorkersConfig(count=8, gpus=1)
    )
    assert measure_cluster_memory(cluster) == WorkerMemory(40 * 2**30, 8, on_gpu=True)
    # The batch is shared out among those that are left.
    elastic = cluster.model_copy(update={"workers": WorkersConfig(count="2..8", gpus=1)})
    assert measure_cluster_memory(elastic) == WorkerMemory(40 * 2**30, 2, on_gpu=True)
