"""The nodes of the Ray that is up, and functions run on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cryoformer_dist.errors import ClusterError

_ANSWER_SECONDS = 300
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, as Ray knows it.

    Attributes
    ----------
    number
        Ray's name for it.
    address
        IP address.
    cpus, gpus
        What Ray hands out there.
    host
        What it calls itself.
    """

    number: str
    address: str
    cpus: float
    gpus: float
    host: str


def list_nodes() -> list[Node]:
    """The nodes that are up."""
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["NodeManagerHostname"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def repeat_while_nodes_die(look: Callable[[list[Node]], T]) -> T:
    """What a look at the nodes that are up gives, after another one when a node has died under it."""
    while True:
        nodes = list_nodes()
        try:
            return look(nodes)
        except ClusterError:
            alive = {node.number for node in list_nodes()}
            if {node.number for node in nodes} <= alive:
                raise


def run_on_nodes(
    nodes: Sequence[Node], function: Callable[Concatenate[Node, P], T], *arguments: P.args, **named: P.kwargs
) -> list[T]:
    """A function's results on nodes, all at once; it is given the node first.

    Its processes stay: what comes next on a node, workers too, finds them with all that was imported.

    Raises
    ------
    ClusterError
        If a node does not answer.
    """
    task = ray.remote(num_cpus=0, max_retries=1)(function)
    return _gather([_place(task, node).remote(node, *arguments, **named) for node in nodes])


def measure_on_nodes(
    nodes: Sequence[Node], function: Callable[Concatenate[Node, P], T], *arguments: P.args, **named: P.kwargs
) -> list[T]:
    """As `run_on_nodes`, in processes that end: one that has asked a GPU for its memory keeps a part of it."""
    task = ray.remote(num_cpus=0, max_retries=1, max_calls=1)(function)
    return _gather([_place(task, node).remote(node, *arguments, **named) for node in nodes])


def _place(task: Any, node: Node) -> Any:
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.number, soft=False))


def _gather(running: list[Any]) -> list[Any]:
    try:
        return ray.get(running, timeout=_ANSWER_SECONDS)
    except RayError as error:
        raise ClusterError(
            f"a node did not answer ({type(error).__name__}: {str(error).splitlines()[0]}); is cryoformer-dist "
            "installed in the Python that Ray was started with there?"
        ) from error
