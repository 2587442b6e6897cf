import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryoformer_dist.config.cluster import RayUpCluster
from cryoformer_dist.config.loading import parse_yaml
from cryoformer_dist.errors import ClusterError, ConfigError
from cryoformer_dist.orchestration.providers import ray_up
from cryoformer_dist.orchestration.providers.provider import JobState
from cryoformer_dist.orchestration.providers.ray_up import RayUpProvider
from cryoformer_dist.orchestration.providers.ray_up_config import add_token, count_nodes, make_ray_config
from cryoformer_dist.orchestration.request import RunRequest

MakeRequest = Callable[..., RunRequest]
Programs = Callable[..., Path]
CLOUDS: dict[str, dict[str, Any]] = {
    "aws": {
        "region": "us-west-2",
        "head_node": {"InstanceType": "m5.2xlarge"},
        "worker_node": {"InstanceType": "g5.xlarge"},
    },
    "gcp": {
        "region": "us-west1",
        "zone": "us-west1-a",
        "project": "cryo-1",
        "head_node": {"machineType": "n1-standard-8"},
        "worker_node": {"machineType": "n1-standard-8"},
    },
    "azure": {
        "region": "westus2",
        "project": "cryo",
        "head_node": {"azure_arm_parameters": {"vmSize": "Standard_D8s_v3"}},
        "worker_node": {"azure_arm_parameters": {"vmSize": "Standard_NC4as_T4_v3"}},
    },
    "on-premise": {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]},
}


def _config(cloud: str = "on-premise", **keys: Any) -> RayUpCluster:
    base = {"storage": "s3://bucket/runs", "ssh_user": "ubuntu", "nodes": 2, **CLOUDS[cloud]}
    return RayUpCluster(provider="ray-up", cloud=cloud, **{**base, **keys})


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs) -> Path:
    """A cluster of one stand-in for `ray`; the folder holds what it was told."""
    monkeypatch.setattr(ray_up, "_RAY", (str(programs("ray.py", "ray-stand-in") / "ray-stand-in"),))
    monkeypatch.setattr(ray_up, "_POLL_SECONDS", 0.0)
    folder = tmp_path / "ray"
    folder.mkdir()
    (folder / "nodes").write_text("3")
    monkeypatch.setenv("RAY_STAND_IN", str(folder))
    return folder


def _calls(known: Path) -> list[str]:
    return [line.split()[0] for line in (known / "calls").read_text().splitlines()]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_s_own_schema_takes_the_file_of_every_cloud(cloud: str, tmp_path: Path) -> None:
    config = _config(cloud, image="registry.example/cryoformer-dist:0.1", setup=["pip install cryoformer-dist"])
    values = add_token(make_ray_config(config), tmp_path / "token", "~/token")
    # It is Ray's launcher that reads it: nothing of it may be left to a default that installs or opens something.
    assert values["setup_commands"] == ["pip install cryoformer-dist"]
    assert "--dashboard-host=127.0.0.1" in values["head_start_ray_commands"][0]
    assert count_nodes(values) == 3
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in values[key]:
            assert command.startswith("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/token ")
            assert "ray stop" not in command
            # The autoscaler that knows machines of one's own.
            assert ("RAY_enable_autoscaler_v2=0; " in command) == (cloud == "on-premise")


def test_the_token_s_text_is_in_no_file_but_its_own(known: Path, state_folder: Path, make_request: MakeRequest) -> None:
    config = _config()
    provider = RayUpProvider(config)
    handle = provider.submit(make_request(config))
    place = Path(handle["ray"]).parent
    token = (place / "token").read_text()
    assert len(token) == 64
    assert stat.S_IMODE((place / "token").stat().st_mode) == 0o600
    holders = [path for path in [*state_folder.rglob("*"), *known.rglob("*")] if path.is_file()]
    assert [path for path in holders if token in path.read_text()] == [place / "token"]
    mounts = parse_yaml(Path(handle["ray"]).read_text(), "ray.yaml")["file_mounts"]
    assert list(mounts.values()) == [str(place / "token")]


def test_a_file_of_ray_s_own_keeps_its_words_and_gains_the_token(tmp_path: Path, make_request: MakeRequest) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "cluster_name: mine\nprovider: {type: local, head_ip: a, worker_ips: [b]}\nauth: {ssh_user: me}\n"
        "file_mounts: {/data: /data}\n"
    )
    config = _config(config=str(own))
    preview = RayUpProvider(config).preview(make_request(config))
    values = parse_yaml(preview.partition("\n# ~/")[0], "preview")
    assert values["auth"] == {"ssh_user": "me"}
    assert values["file_mounts"].keys() == {"/data", "~/.cryoformer-dist/mine.token"}
    assert [command.rpartition("; ")[2][:9] for command in values["head_start_ray_commands"]] == [
        "ray stop",
        "ray start",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("provider: {type: local, head_ip: a, worker_ips: []}\nauth: {ssh_user: me}\n", "cluster_name"),
        ("cluster_name: a\nprovider: {type: local}\nauth: {ssh_user: me}\n", "own.yaml: Ray refuses"),
        (
            "cluster_name: a\nprovider: {type: aws, region: r}\nmax_worker: 3\n",
            "max_worker",
        ),
        ("cluster_name: a\n", "provider"),
    ],
)
def test_what_ray_would_refuse_is_refused_before_anything_starts(text: str, complaint: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        make_ray_config(_config(config=str(own)))


def test_files_of_different_places_name_different_clusters() -> None:
    names = {make_ray_config(_config(cloud))["cluster_name"] for cloud in CLOUDS}
    names.add(make_ray_config(_config(head_ip="10.0.0.9"))["cluster_name"])
    assert len(names) == len(CLOUDS) + 1
    assert make_ray_config(_config(nodes=1))["cluster_name"] in names


def test_a_run_is_brought_to_the_head_and_followed_each_line_once(known: Path, make_request: MakeRequest) -> None:
    config = _config(environment={"NCCL_DEBUG": "WARN"}, python="/opt/bin/python")
    provider = RayUpProvider(config)
    handle = provider.submit(make_request(config))
    assert _calls(known) == ["up", "exec", "rsync-up", "exec"]
    assert {path.name for path in (known / "head").iterdir()} == {"cluster.yaml", "run.yaml", "job.json"}
    job = json.loads((known / "job").read_text())
    assert job["environment"] == {"NCCL_DEBUG": "WARN"}
    assert job["command"][0] == "/opt/bin/python"
    assert job["command"][4:6] == [f"~/.cryoformer-dist/arm_1/{name}.yaml" for name in ("cluster", "run")]
    assert list(provider.follow(handle)) == ["one", "", "three"]
    assert provider.ask_state(handle) == JobState("failed", 2)


def test_a_cluster_that_is_up_serves_the_next_run(known: Path, make_request: MakeRequest) -> None:
    config = _config()
    provider = RayUpProvider(config)
    provider.submit(make_request(config))
    provider.submit(make_request(config, name="arm_2"))
    assert _calls(known).count("up") == 1
    changed = _config(setup=["pip install more"])
    with pytest.raises(ClusterError, match="made from another file; `ray down"):
        RayUpProvider(changed).submit(make_request(changed, name="arm_3"))


def test_nodes_that_do_not_come_up_are_counted_not_believed(known: Path, make_request: MakeRequest) -> None:
    (known / "nodes").write_text("1")
    config = _config()
    with pytest.raises(ClusterError, match="1 of 3 nodes are up"):
        RayUpProvider(config).submit(make_request(config))


def test_a_cluster_not_to_be_kept_goes_with_its_run_and_the_end_is_remembered(
    known: Path, make_request: MakeRequest
) -> None:
    config = _config(keep_up=False)
    provider = RayUpProvider(config)
    handle = provider.submit(make_request(config))
    assert list(provider.follow(handle)) == ["one", "", "three"]
    # The head's Ray is ended by the nodes' own Python: what `ray` means to a login there is not known.
    *_, stopped, down = (known / "calls").read_text().splitlines()
    assert stopped.startswith("exec ")
    assert stopped.endswith("-m ray.scripts.scripts stop")
    assert down.startswith("down ")
    assert provider.ask_state(handle) == JobState("failed", 2)
    assert list(provider.follow(handle)) == [f"the cluster of job {handle['job']} was taken down, and its log with it"]


def test_a_run_whose_cluster_was_taken_down_by_hand_is_lost(known: Path, make_request: MakeRequest) -> None:
    config = _config()
    provider = RayUpProvider(config)
    handle = provider.submit(make_request(config))
    (known / "up").unlink()
    assert provider.ask_state(handle) == JobState("lost")


def test_a_cluster_where_others_work_is_left_to_them(known: Path, make_request: MakeRequest) -> None:
    config = _config(keep_up=False)
    provider = RayUpProvider(config)
    handle = provider.submit(make_request(config))
    (known / "others").touch()
    provider.stop(handle)
    assert provider.ask_state(handle) == JobState("stopped")
    assert "down" not in _calls(known)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs) -> Iterator[Path]:
    """A host for `ssh` and `rsync`: this machine, with a home and a place for Ray's files of its own."""
    programs("ssh.py", "ssh", "rsync")
    home = tmp_path / "home"
    home.mkdir()
    place = tempfile.mkdtemp(prefix="cf_", dir="/tmp")
    ports = {"6379": _free_port(), "8265": _free_port()}
    monkeypatch.setenv(
        "SSH_STAND_IN", json.dumps({"home": str(home), "ports": ports, "log": str(tmp_path / "ssh.log")})
    )
    monkeypatch.setenv("RAY_TMPDIR", place)
    # Of the test's own cluster; what the one by ssh uses comes from its file.
    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    mine = [int(line.split()[0]) for line in listed.splitlines() if place in line]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in mine:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, number)
        time.sleep(3)


@pytest.mark.slow
def test_a_host_reached_by_ssh_becomes_a_cluster_and_runs_the_spec(
    host: Path, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = host / "driver.py"
    program.write_text(
        "import os, pathlib, sys, ray\nray.init(log_to_driver=False, logging_level='ERROR')\n"
        "print('driver sees', len(ray.nodes()), 'nodes', os.environ['WORD'])\n"
        "print(pathlib.Path(sys.argv[1]).read_text().splitlines()[0])\nraise SystemExit(2)\n"
    )
    monkeypatch.setattr(
        RunRequest, "make_command", lambda self, folder, python: [python, str(program), f"{folder}/run.yaml"]
    )
    monkeypatch.setattr(ray_up, "_NODE_SECONDS", 60)
    config = _config(head_ip="127.0.0.1", worker_ips=[], python=sys.executable, environment={"WORD": "two words"})
    provider = RayUpProvider(config)
    handle = provider.submit(make_request(config))
    lines = list(provider.follow(handle))
    assert lines[-2:] == ["driver sees 1 nodes two words", "name: arm_1"]
    assert provider.ask_state(handle) == JobState("failed", 2)
    monkeypatch.setattr(RunRequest, "make_command", lambda self, folder, python: ["sleep", "600"])
    second = provider.submit(make_request(config, name="arm_2"))
    provider.stop(second)
    assert provider.ask_state(second) == JobState("stopped")
    assert provider.ask_state({**second, "job": "unheard-of"}) == JobState("lost")
    log = (host / "ssh.log").read_text()
    assert log.count("start --disable-usage-stats") == 1
    token = (Path(handle["ray"]).parent / "token").read_text()
    assert token not in log
