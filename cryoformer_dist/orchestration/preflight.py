"""Before a run starts on nodes that others set up: whether all see the storage and hold the same program."""

import platform
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.data.store import ParticleStore, is_complete
from cryoformer_dist.errors import ClusterError, StoreError
from cryoformer_dist.storage.places import Place, client_errors, make_folder, place_at, remove_folder
from cryoformer_dist.versions import decisive_versions

_NODE_SECONDS = 300
_JOINING_SECONDS = 120
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What was found on a node.

    Attributes
    ----------
    host
        Name and address.
    versions
        Of Python and of the packages that must agree.
    gpus
        CUDA devices that torch sees there.
    gpus_promised
        GPUs that Ray hands out there.
    fingerprint
        Of the store, as read there; ``None`` when it is not there yet.
    problems
        What is wrong, in words.
    """

    host: str
    versions: dict[str, str]
    gpus: int
    gpus_promised: float
    fingerprint: str | None
    problems: tuple[str, ...]


def preflight(storage: str, store: str) -> list[NodeReport]:
    """Look at every node of the Ray that is up.

    Parameters
    ----------
    storage
        Where run directories go: every node writes there and reads what the others wrote.
    store
        Particle store; it may be absent as yet.

    Raises
    ------
    ClusterError
        With all that is wrong, node by node.
    """
    return at_nodes(lambda nodes: _look(nodes, storage, store))


def at_nodes(look: Callable[[list[dict[str, Any]]], T]) -> T:
    """What a look at the nodes that are up gives, after another one when a node has died under it."""
    while True:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        try:
            return look(nodes)
        except ClusterError:
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            if {node["NodeID"] for node in nodes} <= alive:
                raise


def _look(nodes: list[dict[str, Any]], storage: str, store: str) -> list[NodeReport]:
    meeting = place_at(storage) / f".preflight-{uuid.uuid4().hex}"
    try:
        reports = on_nodes(nodes, _examine, str(meeting), store)
        problems = [problem for report in reports for problem in report.problems]
        unseen = on_nodes(nodes, _unseen_there, str(meeting), [node["NodeID"] for node in nodes])
    finally:
        remove_folder(meeting)
    for report, missing in zip(reports, unseen, strict=True):
        if missing and not report.problems:
            problems.append(
                f"{report.host}: storage {storage} is not the same folder here as on {missing} other nodes; mount it "
                "on every node, or use s3://"
            )
    problems += _disagreements(reports)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ClusterError(f"the cluster is not ready, nothing was started:\n{lines}")
    return reports


def wait_for_nodes(workers: WorkersConfig, say: Callable[[str], None]) -> None:
    """Give nodes that are still joining some time, when the cluster does not hold the workers yet.

    Whether it is large enough in the end is for others to say.
    """
    end = time.monotonic() + _JOINING_SECONDS
    told = False
    while time.monotonic() < end:
        present = ray.cluster_resources()
        needed = {"CPU": workers.fewest * workers.cpus, "GPU": workers.fewest * workers.gpus}
        short = [
            f"{present.get(kind, 0):g} of {count:g} {kind}s"
            for kind, count in needed.items()
            if present.get(kind, 0) < count
        ]
        if not short:
            return
        if not told:
            say(f"nodes          waiting up to {_JOINING_SECONDS} s for more to join: {', '.join(short)}")
            told = True
        time.sleep(1)


def on_nodes(nodes: Sequence[dict[str, Any]], function: Any, *arguments: Any) -> list[Any]:
    """A function's results on nodes, all at once, given what Ray says of each.

    Raises
    ------
    ClusterError
        If a node does not answer.
    """
    # A process that has asked a GPU for its memory keeps a part of it until it ends, so none is used twice.
    task = ray.remote(num_cpus=0, max_retries=1, max_calls=1)(function)
    running = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            node, *arguments
        )
        for node in nodes
    ]
    try:
        return ray.get(running, timeout=_NODE_SECONDS)
    except RayError as error:
        raise ClusterError(
            f"a node did not answer ({type(error).__name__}: {str(error).splitlines()[0]}); is cryoformer-dist "
            "installed in the Python that Ray was started with there?"
        ) from error


def _examine(node: dict[str, Any], meeting: str, store: str) -> NodeReport:
    """One node's report; leaves a file of its own at the meeting place."""
    import torch

    host = f"{socket.gethostname()} ({node['NodeManagerAddress']})"
    number, gpus_promised = node["NodeID"], node["Resources"].get("GPU", 0)
    problems = []
    try:
        make_folder(place_at(meeting))
        (place_at(meeting) / number).write_text(number)
    except (OSError, *client_errors()) as error:  # type: ignore[misc]
        problems.append(
            f"{host}: storage {place_at(meeting).parent} cannot be written ({error}); mount it writable there"
        )
    fingerprint = None
    try:
        if is_complete(place_at(store)):
            fingerprint = ParticleStore.open(store).fingerprint
    except StoreError as error:
        problems.append(f"{host}: {error}")
    gpus = torch.cuda.device_count()
    if gpus < gpus_promised:
        problems.append(
            f"{host}: Ray hands out {gpus_promised:g} GPUs, torch sees {gpus}; run `cryoformer-dist doctor` there"
        )
    versions = {"python": platform.python_version(), **decisive_versions()}
    return NodeReport(host, versions, gpus, gpus_promised, fingerprint, tuple(problems))


def _unseen_there(_: dict[str, Any], meeting: str, nodes: Sequence[str]) -> int:
    """How many nodes' files this one does not see, or sees other text in."""
    return sum(not _reads(place_at(meeting) / other, other) for other in nodes)


def _reads(path: Place, text: str) -> bool:
    try:
        return path.read_text() == text
    except (OSError, *client_errors()):  # type: ignore[misc]
        return False


def _disagreements(reports: Sequence[NodeReport]) -> Iterator[str]:
    """Where a node's versions or its view of the store differ from what most nodes have."""
    for name in reports[0].versions:
        usual = Counter(report.versions[name] for report in reports).most_common(1)[0][0]
        for report in reports:
            if report.versions[name] != usual:
                yield f"{report.host}: {name} {report.versions[name]}, {usual} elsewhere; install the same everywhere"
    usual_store = Counter(report.fingerprint for report in reports).most_common(1)[0][0]
    for report in reports:
        if report.fingerprint != usual_store:
            seen = "another store" if report.fingerprint else "no store"
            yield f"{report.host}: sees {seen} at dataset.store; put it where every node reads the same"
