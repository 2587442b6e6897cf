"""Nodes on which workers fail again and again: who is left out."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.orchestration.nodes import list_nodes
from cryoformer_dist.orchestration.resources import count_room
from cryoformer_dist.runs.notices import add_notice
from cryoformer_dist.storage.places import client_errors, place_at

_FAILURES = 2
_NODE_LABEL = "ray.io/node-id"
# What ranks say whose partner is gone.
_ECHOES = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "timed out waiting")


def find_culprits(failures: Mapping[int, Exception]) -> list[int]:
    """Ranks that failed by themselves: those that are gone, else those that do not only complain of another's end."""
    gone = [rank for rank, error in failures.items() if isinstance(error, WorkerHealthCheckFailedError | RayError)]
    return gone or [rank for rank, error in failures.items() if not any(echo in str(error).lower() for echo in _ECHOES)]


class LeaveOutFailingNodes(WorkerGroupCallback, ControllerCallback):
    """Counts failures by node, in Ray Train's controller, and has workers started elsewhere after the second.

    A node is left out if it alone failed, both times, and the others hold the workers. What is done is said in the run
    directory (`runs.notices`).

    Parameters
    ----------
    home
        Run directory.
    workers
        What each asks for.
    """

    def __init__(self, home: str, workers: WorkersConfig) -> None:
        self._home, self._workers = home, workers
        self._nodes_of_ranks: dict[int, str] = {}
        self._failures: Counter[str] = Counter()
        self._hosts: dict[str, str] = {}
        self._told: set[str] = set()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Learn where each rank is."""
        for worker in worker_group.get_workers():
            place = worker.metadata
            self._nodes_of_ranks[worker.distributed_context.world_rank] = place.node_id
            self._hosts[place.node_id] = f"{place.hostname} ({place.node_ip})"

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Count a failure of one node; several at once have a cause that is none of theirs."""
        failures = worker_group_status.errors
        nodes = {self._nodes_of_ranks[rank] for rank in find_culprits(failures) if rank in self._nodes_of_ranks}
        if failures:
            # Once for each start of the workers.
            self._nodes_of_ranks = {}
        if len(nodes) == 1:
            self._failures.update(nodes)

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """Nodes that workers may be started on, as Ray selects them by label."""
        nodes = list_nodes()
        failing = [node.number for node in nodes if self._failures[node.number] >= _FAILURES]
        if not failing:
            return None
        room = sum(count_room(node, self._workers) for node in nodes if node.number not in failing)
        enough = room >= num_workers
        for number in failing:
            self._tell(number, "it is left out" if enough else f"it is used again: the others hold {room} workers only")
        return {_NODE_LABEL: f"!in({','.join(failing)})"} if enough else None

    def _tell(self, number: str, what: str) -> None:
        self._say(f"node {self._hosts[number]} failed {self._failures[number]} times; {what}")

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            with suppress(OSError, *client_errors()):
                add_notice(place_at(self._home), text)
