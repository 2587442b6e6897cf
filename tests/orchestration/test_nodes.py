import pytest
import ray

from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.nodes import Node, list_nodes, repeat_while_nodes_die


def test_only_nodes_that_are_up_are_listed_with_what_ray_hands_out_there(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "NodeManagerHostname": "one"}
    up = {**place, "Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9}}
    monkeypatch.setattr(ray, "nodes", lambda: [up, {"NodeID": "b", "Alive": False}])
    assert list_nodes() == [Node("a", "10.0.0.1", 2.0, 0.0, "one")]


def test_a_node_that_dies_while_it_is_looked_at_is_none_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = [
        {
            "NodeID": f"id{k}",
            "NodeManagerAddress": f"10.0.0.{k}",
            "NodeManagerHostname": f"host{k}",
            "Alive": True,
            "Resources": {"CPU": 2.0},
        }
        for k in range(3)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    looks: list[int] = []

    def look(nodes: list[Node]) -> int:
        looks.append(len(nodes))
        if len(looks) == 1:
            alive[1]["Alive"] = False
            raise ClusterError("a node did not answer")
        return len(nodes)

    assert repeat_while_nodes_die(look) == 2
    assert looks == [3, 2]

    def refuse(nodes: list[Node]) -> None:
        raise ClusterError("not ready")

    with pytest.raises(ClusterError, match="not ready"):
        repeat_while_nodes_die(refuse)
