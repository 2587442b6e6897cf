from pathlib import Path
from typing import Any

import pytest
import ray

from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.cluster import running_ray


def _refusing(seen: dict[str, Any]) -> Any:
    def init(**options: Any) -> None:
        seen.update(options)
        raise ValueError("port is taken")

    return init


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a Ray that never starts was asked for."""
    seen: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", _refusing(seen))
    return seen


def test_a_ray_that_does_not_start_is_one_error_and_leaves_no_folder(asked: dict[str, Any]) -> None:
    with pytest.raises(ClusterError, match="port is taken"), running_ray():
        pytest.fail("there is no Ray to run in")
    assert not Path(asked["_temp_dir"]).exists()


def test_without_a_port_ray_looks_for_a_free_one(asked: dict[str, Any]) -> None:
    with pytest.raises(ClusterError), running_ray(dashboard=("127.0.0.1", None)):
        pytest.fail("there is no Ray to run in")
    assert asked["include_dashboard"]
    assert "dashboard_port" not in asked


def test_a_port_asked_for_is_the_one_taken(asked: dict[str, Any]) -> None:
    with pytest.raises(ClusterError), running_ray(dashboard=("127.0.0.1", 9000)):
        pytest.fail("there is no Ray to run in")
    assert (asked["dashboard_host"], asked["dashboard_port"]) == ("127.0.0.1", 9000)
