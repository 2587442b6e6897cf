"""What the Ray that is up has for a run's workers: whether they fit, and how much memory each finds."""

import ray
import torch

from cryoformer_dist.config.cluster import ClusterConfig, LocalCluster, WorkersConfig
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.machine import WorkerMemory, measure_worker_memory
from cryoformer_dist.orchestration.nodes import Node, list_nodes, measure_on_nodes, repeat_while_nodes_die


def refuse_too_many_workers(workers: WorkersConfig) -> None:
    """Refuse what would wait for ever.

    Raises
    ------
    ClusterError
        If the cluster does not hold the fewest workers that the run may have.
    """
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


def count_room(node: Node, workers: WorkersConfig) -> int:
    """Workers that a node holds."""
    by_gpus = [int(node.gpus / workers.gpus)] if workers.gpus else []
    return min(int(node.cpus / workers.cpus), *by_gpus) if by_gpus else int(node.cpus / workers.cpus)


def count_workers_per_device(workers: WorkersConfig, count: int) -> int:
    """How many of so many workers may find themselves on one device, or without GPUs on one node."""
    if workers.gpus:
        return max(1, int(1 / workers.gpus))
    # Ray packs: a node gets as many as its CPUs hold.
    most = max(int(node.cpus / workers.cpus) for node in list_nodes())
    return min(count, max(1, most))


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
    refuse_too_many_workers(workers)
    workers_per_device = count_workers_per_device(workers, workers.most)
    # A process that asks a GPU keeps a part of it: this one drives the run for as long as it takes.
    if isinstance(cluster, LocalCluster) and not workers.gpus:
        return measure_worker_memory(False, workers_per_device, workers.fewest)
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

    def look(nodes: list[Node]) -> list[WorkerMemory]:
        large = [node for node in nodes if node.cpus >= workers.cpus and node.gpus >= workers.gpus]
        return measure_on_nodes(large, _measure_there, workers.gpus > 0, workers_per_device, workers.fewest)

    return min(repeat_while_nodes_die(look), key=lambda memory: memory.bytes)


def _measure_there(_: Node, on_gpu: bool, workers_per_device: int, workers: int) -> WorkerMemory:
    return measure_worker_memory(on_gpu, workers_per_device, workers)
