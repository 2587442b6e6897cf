import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.orchestration import missing_nodes
from cryoformer_dist.orchestration.missing_nodes import MissingNodes, telling_of_missing_nodes
from cryoformer_dist.orchestration.nodes import Node
from cryoformer_dist.runs.waiting import read_waiting

ONE, TWO = Node("a", "10.0.0.1", 0.9, 0, "host-a"), Node("b", "10.0.0.2", 0.9, 0, "host-b")
# The same machine with a new Ray.
TWO_AGAIN = Node("c", "10.0.0.2", 0.9, 0, "host-b")


def test_a_run_waits_while_its_fewest_workers_do_not_fit_and_for_the_nodes_that_are_gone() -> None:
    missing = MissingNodes(WorkersConfig(count=2))
    assert missing.look([ONE, TWO]) == ""
    told = missing.look([ONE])
    assert "for room for 2 workers: the nodes that are up hold 1; gone: host-b (10.0.0.2)" in told
    assert "FEWEST..MOST" in told
    assert missing.waited_seconds > 0
    # Since when does not move while it waits.
    assert missing.look([ONE]) == told
    assert missing.look([ONE, TWO_AGAIN]) == ""
    assert missing.waited_seconds == 0


def test_an_elastic_run_waits_below_its_fewest_workers_only() -> None:
    missing = MissingNodes(WorkersConfig(count="1..2"))
    assert missing.look([ONE, TWO]) == ""
    assert missing.look([ONE]) == ""
    assert "for room for 1 workers: the nodes that are up hold 0; gone: host-a (10.0.0.1), host-b" in missing.look([])


def test_nodes_without_room_do_not_help() -> None:
    head = Node("h", "10.0.0.9", 0.0, 0, "head")
    assert "the nodes that are up hold 0; it goes on" in MissingNodes(WorkersConfig(count=1)).look([head])


def _wait(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_is_told_at_once_and_again_and_kept_in_the_run_directory_until_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, said = [ONE], list[str]()
    monkeypatch.setattr(missing_nodes, "list_nodes", lambda: list(up))
    monkeypatch.setattr(missing_nodes, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(missing_nodes, "_TELL_SECONDS", 0.05)
    with telling_of_missing_nodes(tmp_path, WorkersConfig(count=2), said.append):
        _wait(lambda: len(said) == 3)
        assert len(set(said)) == 1
        assert read_waiting(tmp_path) == said[0]
        up.append(TWO)
        _wait(lambda: said[-1].startswith("training goes on: there is room again"))
        assert read_waiting(tmp_path) == ""
        up.clear()
        _wait(lambda: read_waiting(tmp_path) != "")
    # Nobody is asked any more.
    assert read_waiting(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
