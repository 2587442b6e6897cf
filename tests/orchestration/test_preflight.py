from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration import preflight as module
from cryoformer_dist.orchestration.nodes import Node
from cryoformer_dist.orchestration.preflight import NodeReport, preflight, wait_for_nodes

NODES = [
    {
        "NodeID": f"id{k}",
        "Alive": True,
        "NodeManagerAddress": f"10.0.0.{k}",
        "NodeManagerHostname": f"host{k}",
        "Resources": {},
    }
    for k in range(3)
]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Three nodes that are this process, one of them changed."""

    def set_up(change: Callable[[NodeReport], NodeReport] = lambda report: report, sees: bool = True) -> None:
        def on_every(nodes: list[Node], function: Any, *arguments: Any) -> list[Any]:
            results = [function(node, *arguments) for node in nodes]
            if function is module._examine:
                results[2] = change(results[2])
            elif not sees:
                results[2] = 2
            return results

        monkeypatch.setattr(module, "run_on_nodes", on_every)

    monkeypatch.setattr(ray, "nodes", lambda: [*NODES, {"NodeID": "dead", "Alive": False}])
    return set_up


def _refused(storage: Path, store: Path) -> list[str]:
    with pytest.raises(ClusterError, match="nothing was started") as error:
        preflight(str(storage), str(store))
    return str(error.value).splitlines()[1:]


def test_nodes_that_agree_are_reported_and_leave_nothing_behind(
    nodes: Callable[..., None], tmp_path: Path, tiny_store: Path
) -> None:
    nodes()
    reports = preflight(str(tmp_path / "runs"), str(tiny_store))
    assert len(reports) == 3
    assert len({report.fingerprint for report in reports} - {None}) == 1
    assert all(report.versions["torch"] not in ("", "not installed") for report in reports)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_store_that_is_yet_to_be_made_is_no_obstacle(nodes: Callable[..., None], tmp_path: Path) -> None:
    nodes()
    assert {report.fingerprint for report in preflight(str(tmp_path), str(tmp_path / "none.zarr"))} == {None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda report: replace(report, versions=report.versions | {"torch": "1.0"}), "torch 1.0, "),
        (lambda report: replace(report, fingerprint=None), "sees no store"),
        (lambda report: replace(report, fingerprint="other"), "sees another store"),
        (lambda report: replace(report, problems=("host: no disk",)), "no disk"),
    ],
)
def test_a_node_that_differs_is_named(
    change: Callable[[NodeReport], NodeReport],
    said: str,
    nodes: Callable[..., None],
    tmp_path: Path,
    tiny_store: Path,
) -> None:
    nodes(change)
    (line,) = _refused(tmp_path, tiny_store)
    assert said in line
    assert list(tmp_path.glob(".preflight*")) == []


def test_storage_that_is_another_folder_on_a_node_is_found(nodes: Callable[..., None], tmp_path: Path) -> None:
    nodes(sees=False)
    (line,) = _refused(tmp_path, tmp_path / "none.zarr")
    assert "not the same folder" in line
    assert "10.0.0.2" in line


def test_storage_that_cannot_be_written_and_promised_gpus_are_told_together(
    nodes: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes()
    monkeypatch.setitem(NODES[0], "Resources", {"GPU": 64.0})
    blocked = tmp_path / "a file"
    blocked.write_text("")
    lines = _refused(blocked, tmp_path / "none.zarr")
    assert sum("cannot be written" in line for line in lines) == 3
    assert sum("Ray hands out 64 GPUs" in line for line in lines) == 1


def test_nodes_that_are_still_joining_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    present = iter([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 2.0}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(present))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    said: list[str] = []
    wait_for_nodes(WorkersConfig(count=2, cpus=0.9), said.append)
    assert len(said) == 1
    assert "1 of 1.8 CPUs" in said[0]


def test_a_cluster_that_stays_small_is_waited_for_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    wait_for_nodes(WorkersConfig(count="1..3", cpus=0.9, gpus=1), lambda line: None)
    assert next(clock) < 300
