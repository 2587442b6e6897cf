from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private.label_utils import validate_label_selector
from ray.exceptions import RayActorError

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.orchestration import failing_nodes
from cryoformer_dist.orchestration.failing_nodes import LeaveOutFailingNodes, find_culprits
from cryoformer_dist.orchestration.nodes import Node
from cryoformer_dist.runs.notices import read_notices

GONE, ECHO = RayActorError(), RuntimeError("[gloo] Connection closed by peer")


def test_who_only_lost_a_partner_is_no_culprit() -> None:
    assert find_culprits({0: ECHO, 1: GONE}) == [1]
    assert find_culprits({0: ECHO, 1: ValueError("CUDA error: uncorrectable ECC error")}) == [1]
    assert find_culprits({0: ECHO, 1: ECHO}) == []


@pytest.fixture
def leaving_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LeaveOutFailingNodes:
    """Three nodes, a, b and c, of two CPUs each."""
    monkeypatch.setattr(
        failing_nodes, "list_nodes", lambda: [Node(name, f"10.0.0.{name}", 2, 0, name) for name in "abc"]
    )
    return LeaveOutFailingNodes(str(tmp_path), WorkersConfig(count=2, cpus=0.9))


def _worker(rank: int, node: str, address: str) -> SimpleNamespace:
    return SimpleNamespace(
        distributed_context=SimpleNamespace(world_rank=rank),
        metadata=SimpleNamespace(node_id=node, hostname=f"host-{node}", node_ip=address),
    )


def _fail(callback: LeaveOutFailingNodes, nodes: str, failures: dict[int, Exception]) -> None:
    """Workers start, the first on the first of the nodes, and fail."""
    workers = [_worker(rank, node, "10.0.0.1") for rank, node in enumerate(nodes)]
    callback.after_worker_group_start(SimpleNamespace(get_workers=lambda: workers))
    callback.after_worker_group_poll_status(SimpleNamespace(errors={}))
    # Asked again before the workers are taken down, Ray says the same again.
    for _ in range(2):
        callback.after_worker_group_poll_status(SimpleNamespace(errors=failures))


def _select(callback: LeaveOutFailingNodes, workers: int) -> dict[str, str] | None:
    return callback.on_controller_start_worker_group(scaling_config=None, num_workers=workers)


def test_a_node_that_fails_twice_is_left_out_and_named(leaving_out: LeaveOutFailingNodes, tmp_path: Path) -> None:
    _fail(leaving_out, "ab", {0: ECHO, 1: GONE})
    assert _select(leaving_out, 2) is None
    _fail(leaving_out, "bc", {0: GONE})
    selector = _select(leaving_out, 2)
    assert selector == {"ray.io/node-id": "!in(b)"}
    assert validate_label_selector(selector) is None
    assert _select(leaving_out, 2) == selector
    assert read_notices(tmp_path) == ["node host-b (10.0.0.1) failed 2 times; it is left out"]


def test_a_node_without_which_workers_do_not_fit_stays(leaving_out: LeaveOutFailingNodes, tmp_path: Path) -> None:
    for _ in range(2):
        _fail(leaving_out, "a", {0: GONE})
    assert _select(leaving_out, 5) is None
    assert _select(leaving_out, 4) == {"ray.io/node-id": "!in(a)"}
    assert [line.partition("; ")[2] for line in read_notices(tmp_path)] == [
        "it is used again: the others hold 4 workers only",
        "it is left out",
    ]


def test_nodes_that_fail_together_are_not_to_blame(leaving_out: LeaveOutFailingNodes) -> None:
    for _ in range(3):
        _fail(leaving_out, "ab", {0: GONE, 1: GONE})
    assert _select(leaving_out, 2) is None
