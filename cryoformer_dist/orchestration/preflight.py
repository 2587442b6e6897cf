"""Before a run starts on nodes that others set up: whether all see the storage and hold the same program."""

import platform
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ray

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.data.store import ParticleStore, is_complete
from cryoformer_dist.errors import ClusterError, StoreError
from cryoformer_dist.orchestration.nodes import Node, repeat_while_nodes_die, run_on_nodes
from cryoformer_dist.storage.places import Place, client_errors, make_folder, place_at, remove_folder
from cryoformer_dist.versions import decisive_versions

_JOINING_SECONDS = 120


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
    return repeat_while_nodes_die(lambda nodes: _examine_all(nodes, storage, store))


def _examine_all(nodes: list[Node], storage: str, store: str) -> list[NodeReport]:
    meeting = place_at(storage) / f".preflight-{uuid.uuid4().hex}"
    try:
        reports = run_on_nodes(nodes, _examine, str(meeting), store)
        problems = [problem for report in reports for problem in report.problems]
        unseen = run_on_nodes(nodes, _count_unseen, str(meeting), [node.number for node in nodes])
    finally:
        remove_folder(meeting)
    for report, missing in zip(reports, unseen, strict=True):
        if missing and not report.problems:
            problems.append(
                f"{report.host}: storage {storage} is not the same folder here as on {missing} other nodes; mount it "
                "on every node, or use s3://"
            )
    problems += _find_disagreements(reports)
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


def _examine(node: Node, meeting: str, store: str) -> NodeReport:
    """One node's report; leaves a file of its own at the meeting place."""
    import torch

    host = f"{socket.gethostname()} ({node.address})"
    problems = []
    try:
        make_folder(place_at(meeting))
        (place_at(meeting) / node.number).write_text(node.number)
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
    if gpus < node.gpus:
        problems.append(
            f"{host}: Ray hands out {node.gpus:g} GPUs, torch sees {gpus}; run `cryoformer-dist doctor` there"
        )
    versions = {"python": platform.python_version(), **decisive_versions()}
    return NodeReport(host, versions, gpus, node.gpus, fingerprint, tuple(problems))


def _count_unseen(_: Node, meeting: str, nodes: Sequence[str]) -> int:
    """How many nodes' files this one does not see, or sees other text in."""
    return sum(not _holds(place_at(meeting) / other, other) for other in nodes)


def _holds(path: Place, text: str) -> bool:
    try:
        return path.read_text() == text
    except (OSError, *client_errors()):  # type: ignore[misc]
        return False


def _find_disagreements(reports: Sequence[NodeReport]) -> Iterator[str]:
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
