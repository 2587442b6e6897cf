import pytest

from cryoformer_dist.config.cluster import ClusterFile
from cryoformer_dist.config.loading import parse_config, parse_yaml
from cryoformer_dist.errors import ConfigError

SLURM = "provider: slurm\nstorage: /shared/runs\ncpus_per_node: 8\n"
KUBERAY = "provider: kuberay\nimage: i\n"


def _mistakes(text: str) -> list[str]:
    """Keys that a file's complaint names, in its order."""
    with pytest.raises(ConfigError) as raised:
        parse_config(parse_yaml(text, "file"), ClusterFile, "file")
    return [line.strip().partition(":")[0] for line in str(raised.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("provider: ray-up\n", ["cloud"]),
        ("provider: ray-up\ncloud: aws\n", ["region", "head_node", "worker_node", "ssh_user"]),
        (
            "provider: ray-up\ncloud: gcp\nnodes: 0\n",
            ["region", "zone", "project", "head_node", "worker_node", "nodes", "ssh_user"],
        ),
        ("provider: ray-up\ncloud: azure\nregion: r\nssh_user: u\n", ["project", "head_node", "worker_node"]),
        ("provider: ray-up\ncloud: on-premise\n", ["head_ip", "ssh_user"]),
        ("provider: slurm\ntime: tomorrow\nport: 80\npartitoin: gpu\n", ["cpus_per_node", "time", "port", "partitoin"]),
        (f"{SLURM}time: 24:00:00\n", ["time"]),
        (f"{SLURM}port: 16379\ndashboard_port: 10002\n", ["port", "dashboard_port"]),
        (f"{KUBERAY}storage: /shared/runs\n", ["volume_claim"]),
        (f"{KUBERAY}storage: /data/runs\nvolume_claim: c\n", ["mount"]),
        (f"{KUBERAY}environment: {{AWS_SECRET_ACCESS_KEY: x}}\n", ["environment", "volume_claim"]),
    ],
)
def test_every_mistake_of_a_cluster_file_is_told_at_once(text: str, keys: list[str]) -> None:
    assert _mistakes(text) == keys


@pytest.mark.parametrize(
    "text",
    [
        "provider: ray-up\nconfig: own.yaml\n",
        "provider: ray-up\ncloud: on-premise\nhead_ip: a\nssh_user: u\n",
        f"{SLURM}time: 1-00:00:00\n",
        f"{KUBERAY}storage: s3://bucket/runs\n",
        f"{KUBERAY}storage: /shared/runs\nvolume_claim: c\n",
    ],
)
def test_a_cluster_file_with_what_its_kind_needs_is_taken(text: str) -> None:
    parse_config(parse_yaml(text, "file"), ClusterFile, "file")
