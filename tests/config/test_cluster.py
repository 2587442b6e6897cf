from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cryoformer_dist.config.cluster import (
    ClusterFile,
    ExistingCluster,
    KubeRayCluster,
    LocalCluster,
    RayUpCluster,
    SlurmCluster,
    WorkersConfig,
)
from cryoformer_dist.config.loading import dump_config, load_cluster, parse_config
from cryoformer_dist.errors import ConfigError

KINDS: dict[type[BaseModel], dict[str, object]] = {
    LocalCluster: {},
    ExistingCluster: {"provider": "existing", "address": "http://head:8265"},
    RayUpCluster: {"provider": "ray-up", "cloud": "on-premise", "head_ip": "10.0.0.1", "ssh_user": "me"},
    SlurmCluster: {"provider": "slurm", "cpus_per_node": 8},
    KubeRayCluster: {"provider": "kuberay", "image": "i", "volume_claim": "c", "storage": "/shared/runs"},
}


def _told(values: dict[str, object]) -> dict[str, str]:
    """Dotted key to complaint."""
    with pytest.raises(ConfigError) as error:
        parse_config(values, ClusterFile, "cluster.yaml")
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"cluster.yaml: {len(lines)} mistake")
    return dict(line.strip().split(": ", 1) for line in lines)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_provider_names_the_kind_and_a_file_survives_being_sent(kind: type[BaseModel], tmp_path: Path) -> None:
    cluster = parse_config(KINDS[kind], ClusterFile, "cluster.yaml").root
    assert type(cluster) is kind
    path = tmp_path / "cluster.yaml"
    path.write_text(dump_config(cluster))
    assert load_cluster(path) == cluster


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_is_closed_and_frozen(kind: type[BaseModel]) -> None:
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["frozen"]


def test_an_unknown_provider_is_told_with_those_there_are() -> None:
    assert _told({"provider": "locl"}) == {
        "(file)": "provider: no 'locl' among 'local', 'existing', 'ray-up', 'slurm', 'kuberay'"
    }


def test_a_wrong_file_gives_every_mistake_at_once() -> None:
    values = {"provider": "slurm", "nodes": 0, "time": "tomorrow", "partitoin": "gpu", "workers": {"count": "3..1"}}
    told = _told(values)
    assert set(told) == {"nodes", "time", "partitoin", "workers.count", "cpus_per_node"}
    assert told["partitoin"] == "no such key; did you mean partition?"
    assert told["cpus_per_node"] == "is required"
    assert "1..3" in told["workers.count"]


@pytest.mark.parametrize(
    ("cloud", "missing"),
    [
        ("aws", {"region", "head_node", "worker_node", "ssh_user"}),
        ("gcp", {"region", "zone", "project", "head_node", "worker_node", "ssh_user"}),
        ("on-premise", {"head_ip", "ssh_user"}),
    ],
)
def test_each_cloud_says_all_it_needs(cloud: str, missing: set[str]) -> None:
    assert set(_told({"provider": "ray-up", "cloud": cloud})) == missing


def test_a_cluster_file_of_ray_s_own_needs_none_of_it() -> None:
    assert parse_config({"provider": "ray-up", "config": "ray.yaml"}, ClusterFile, "f").root.config == "ray.yaml"
    assert set(_told({"provider": "ray-up"})) == {"cloud"}


def test_pods_must_see_the_storage() -> None:
    assert set(_told({"provider": "kuberay"})) == {"image", "volume_claim"}
    assert parse_config({"provider": "kuberay", "image": "i", "storage": "s3://b/runs"}, ClusterFile, "f")


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "http://", "head/x:1"])
def test_an_address_that_cannot_be_reached_is_refused(address: str) -> None:
    assert "HOST:6379" in _told({"provider": "existing", "address": address})["address"]


@pytest.mark.parametrize(("address", "served"), [("http://h:8265", True), ("h:6379", False), ("auto", False)])
def test_an_address_says_whether_jobs_are_submitted_there(address: str, served: bool) -> None:
    cluster = parse_config({"provider": "existing", "address": address}, ClusterFile, "f").root
    assert cluster.has_job_server is served


@pytest.mark.parametrize(
    "environment",
    [{"A B": "1"}, {"A;rm -rf": "1"}, {"1A": "1"}, {"A\n": "1"}, {"A": "1\nrm -rf /"}, {"A": "1\0"}],
    ids=repr,
)
def test_variables_have_names_and_values_of_one_line(environment: dict[str, str]) -> None:
    assert list(_told({"environment": environment})) == ["environment"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition", "gpu\n#SBATCH --uid=0"),
        ("account", "a\rb"),
        ("options", ["--mem=1G\nrm -rf /"]),
        ("options", ["rm -rf /"]),
        ("storage", "/shared\n/runs"),
        ("python", "python\n"),
        ("setup", ["export WANDB_API_KEY=abc"]),
        ("options", ["--export=HF_TOKEN=abc"]),
    ],
)
def test_nothing_in_a_slurm_script_is_more_than_it_seems(key: str, value: Any) -> None:
    assert list(_told({"provider": "slurm", "cpus_per_node": 4, key: value})) == [key]


def test_a_site_s_lines_may_be_many_and_name_where_secrets_lie() -> None:
    setup = ["module load cuda\nsource /shared/venv/bin/activate", "export HF_TOKEN=$(cat ~/token)"]
    environment = {"RAY_AUTH_TOKEN_PATH": "/home/me/token", "NCCL_SOCKET_IFNAME": "ib0", "TOKENIZERS_PARALLELISM": "0"}
    values = {"provider": "slurm", "cpus_per_node": 4, "setup": setup, "environment": environment}
    cluster = parse_config(values, ClusterFile, "f").root
    assert (cluster.setup, cluster.environment) == (setup, environment)


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "db_password", "WANDB_API_KEY", "PGPASS", "SSH_PRIVATE_KEY", "MY_PAT"],
)
def test_secrets_do_not_belong_in_the_file(name: str) -> None:
    told = _told({"environment": {name: "do-not-print-me", "OMP_NUM_THREADS": "1"}})
    assert name in told["environment"]
    assert "OMP" not in told["environment"]
    assert "do-not-print-me" not in str(told)


@pytest.mark.parametrize(("count", "fewest", "most"), [(2, 2, 2), ("1..3", 1, 3), ("2..16", 2, 16)])
def test_workers_are_a_number_or_a_range(count: int | str, fewest: int, most: int) -> None:
    workers = WorkersConfig(count=count)
    assert (workers.fewest, workers.most, workers.elastic) == (fewest, most, fewest < most)


@pytest.mark.parametrize("count", [0, "3..1", "2..2", "0..2", "two", "1-3"])
def test_no_other_count_is_taken(count: int | str) -> None:
    assert "workers.count" in _told({"workers": {"count": count}})


def test_a_cluster_file_names_a_run_or_a_sweep() -> None:
    assert "names only one of them" in _told({"run": "run.yaml", "sweep": "sweep.yaml"})["sweep"]
    assert parse_config({"sweep": "sweep.yaml"}, ClusterFile, "f").root.sweep == "sweep.yaml"
