"""The file that Ray's own cluster launcher reads: generated from ours, or the user's, with a token for the cluster."""

import copy
import getpass
import hashlib
import logging
from pathlib import Path
from typing import Any

from click import ClickException
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from cryoformer_dist.config.cluster import RayUpCluster
from cryoformer_dist.config.loading import parse_yaml
from cryoformer_dist.errors import ConfigError

HEAD_PORT, DASHBOARD_PORT = 6379, 8265
# What `ray up` reads: free YAML, of its own schema.
RayConfig = dict[str, Any]


def make_ray_config(config: RayUpCluster) -> RayConfig:
    """Ray's cluster configuration, without a token as yet.

    Parameters
    ----------
    config
        Of the cluster; its ``config``, when given, names a readable file.

    Raises
    ------
    ConfigError
        If there is none, or Ray's own schema refuses it.
    """
    if config.config is None:
        values, where = _generate(config), "the file generated for `ray up`"
    else:
        path = Path(config.config)
        if not path.is_file():
            raise ConfigError(f"config: {path}: no such file")
        values, where = parse_yaml(path.read_text(), str(path)), str(path)
        if "cluster_name" not in values:
            raise ConfigError(f"{path}: cluster_name is required; Ray's default would meet the cluster of anybody else")
    _prepare(values, where)
    return values


def add_token(values: RayConfig, token: Path, remote: str) -> RayConfig:
    """The same, with a token file copied to every node and all that starts Ray there told to use it.

    Parameters
    ----------
    values
        Ray's cluster configuration.
    token
        The file here; only its path is written.
    remote
        Where the nodes have it.
    """
    changed = dict(values)
    changed["file_mounts"] = {**values.get("file_mounts", {}), remote: str(token)}
    prepared = _prepare(values, "cluster configuration")
    # Ray's second autoscaler, its default, takes the head of one's own machines for one that is down, and starts none
    first = "export RAY_enable_autoscaler_v2=0; " if prepared["provider"]["type"] == "local" else ""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        changed[key] = [f"{export_token(remote)} {first}{command}" for command in prepared[key]]
    return changed


def export_token(remote: str) -> str:
    """Shell text that tells Ray's programs of the token and of the job server."""
    return (
        f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={remote} "
        f"RAY_API_SERVER_ADDRESS=http://127.0.0.1:{DASHBOARD_PORT};"
    )


def count_nodes(values: RayConfig) -> int:
    """Nodes that the cluster has from the start, its head among them."""
    types = _prepare(values, "cluster configuration")["available_node_types"].values()
    return 1 + sum(int(kind["min_workers"]) for kind in types)


def _generate(config: RayUpCluster) -> RayConfig:
    ray = f"ulimit -n 65536; {config.python} -m ray.scripts.scripts start --disable-usage-stats"
    values: RayConfig = {
        "cluster_name": _name_cluster(config),
        "provider": _describe_provider(config),
        "auth": {"ssh_user": config.ssh_user},
        # Replaces Ray's default, which installs a nightly Ray.
        "setup_commands": config.setup,
        # Without the `ray stop` of Ray's default: on shared machines it would end other work of the same user.
        "head_start_ray_commands": [
            f"{ray} --head --port={HEAD_PORT} --autoscaling-config=~/ray_bootstrap_config.yaml "
            f"--dashboard-host=127.0.0.1 --dashboard-port={DASHBOARD_PORT}"
        ],
        "worker_start_ray_commands": [f"{ray} --address=$RAY_HEAD_IP:{HEAD_PORT}"],
    }
    if config.ssh_private_key:
        values["auth"]["ssh_private_key"] = config.ssh_private_key
    if config.image:
        values["docker"] = {"image": config.image, "container_name": "cryoformer-dist", "pull_before_run": True}
    if config.cloud == "on-premise":
        return values
    # What a node has, Ray finds when it starts there.
    head = {"node_config": config.head_node, "resources": {}, "min_workers": 0, "max_workers": 0}
    worker = {
        "node_config": config.worker_node,
        "resources": {},
        "min_workers": config.nodes,
        "max_workers": config.nodes,
    }
    types = {"head_node_type": "head", "available_node_types": {"head": head, "worker": worker}}
    return {**values, "max_workers": config.nodes, **types}


def _describe_provider(config: RayUpCluster) -> RayConfig:
    if config.cloud == "aws":
        # Ended, not just stopped: a stopped node's disc goes on costing.
        zone = {"availability_zone": config.zone} if config.zone else {}
        return {"type": "aws", "region": config.region, **zone, "cache_stopped_nodes": False}
    if config.cloud == "gcp":
        return {
            "type": "gcp",
            "region": config.region,
            "availability_zone": config.zone,
            "project_id": config.project,
        }
    if config.cloud == "azure":
        return {
            "type": "azure",
            "location": config.region,
            "resource_group": config.project,
            "cache_stopped_nodes": False,
        }
    return {"type": "local", "head_ip": config.head_ip, "worker_ips": config.worker_ips}


def _name_cluster(config: RayUpCluster) -> str:
    """The same for all launches of a file, another one for other places: clouds find nodes again by it."""
    place = (config.cloud, config.region, config.project, config.head_ip)
    return f"cryoformer-{getpass.getuser()}-{hashlib.sha256(repr(place).encode()).hexdigest()[:6]}"


def _prepare(values: RayConfig, where: str) -> RayConfig:
    """Ray's defaults filled in, and Ray's schema passed."""
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        prepared: RayConfig = prepare_config(copy.deepcopy(values))
        validate_config(prepared)
    except ValidationError as error:
        raise ConfigError(f"{where}: Ray refuses {error.json_path.removeprefix('$.')}: {error.message}") from error
    except (ClickException, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f"{where}: Ray refuses it: {type(error).__name__} {error}") from error
    return prepared
