import contextlib
import os
import signal
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cryoformer_dist.errors import ClusterError, RayStartsAgainWarning
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


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The tries of a Ray that does not come up in time, by their options."""
    tries: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        tries.append(options)
        raise Exception("The current node timed out during startup. This could happen.\nMore.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    return tries


def test_a_ray_that_is_late_is_tried_once_more_in_another_folder(busy: list[dict[str, Any]]) -> None:
    with (
        pytest.warns(RayStartsAgainWarning, match=r"timed out during startup.*load .* on .* cores.*once more"),
        pytest.raises(ClusterError, match=r"twice; wait until other programs have ended, or .*--local") as late,
        running_ray(),
    ):
        pytest.fail("there is no Ray to run in")
    assert "\n" not in str(late.value)
    assert len(busy) == len({options["_temp_dir"] for options in busy}) == 2


def test_the_second_try_may_do(busy: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    never = ray.init

    def init(**options: Any) -> Any:
        if not busy:
            never(**options)
        return type("Context", (), {"dashboard_url": None})

    monkeypatch.setattr(ray, "init", init)
    with contextlib.ExitStack() as using:
        with pytest.warns(RayStartsAgainWarning):
            url = using.enter_context(running_ray())
        assert url is None
        assert len(busy) == 1


def test_nobody_else_gets_at_a_ray_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with running_ray(cpus=1):
        (node,) = ray.nodes()
        inside = Path(node["RayletSocketName"])
        (ours,) = (folder for folder in inside.parents if folder.parent == Path("/tmp"))
        assert stat.S_IMODE(ours.stat().st_mode) == 0o700
        assert ours.stat().st_uid == os.getuid()
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in processes
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        # Ray's own would end a stopped run with a trace of C++.
        assert signal.getsignal(signal.SIGTERM) is before
    assert not ours.exists()
