"""A Ray to run in: one that is up, or a quiet one of our own on this machine."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray

from cryoformer_dist.config.cluster import ClusterConfig, ExistingCluster, LocalCluster
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.environment import find_token, list_worker_variables, make_token

_OBJECT_STORE_BYTES = 512 * 2**20
# What `ray.init` takes, by its names.
RayOptions = dict[str, Any]


def use_ray(cluster: ClusterConfig) -> AbstractContextManager[str | None]:
    """The Ray of a cluster, for the process that drives a run: see `running_ray`.

    A job finds the address of its cluster in ``RAY_ADDRESS``.
    """
    if isinstance(cluster, LocalCluster):
        return running_ray(address="local", dashboard=(cluster.dashboard_host, cluster.dashboard_port))
    if isinstance(cluster, ExistingCluster) and not cluster.has_job_server:
        find_token(cluster.token_file)
        return running_ray(address=cluster.address, environment=cluster.environment)
    # A job: its environment came with it.
    return running_ray(address=os.environ.get("RAY_ADDRESS", "auto"))


@contextmanager
def running_ray(
    cpus: int | None = None,
    dashboard: tuple[str, int | None] | None = None,
    address: str | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[str | None]:
    """Have Ray for a while; one that was up already is used and left up.

    Parameters
    ----------
    cpus
        CPUs of a Ray of our own; those of the machine when ``None``.
    dashboard
        Host and port of a dashboard, when one is wanted; without a port, the first free one from 8265.
    address
        Of a running cluster; ``RAY_ADDRESS`` when ``None``.
    environment
        Variables of the processes on a running cluster.

    Yields
    ------
    url
        Of the dashboard, if there is one.

    Raises
    ------
    ClusterError
        If Ray refuses the options, as it does a dashboard port that is taken, or there is none at the address.
    """
    if ray.is_initialized():
        yield None
        return
    address = address or os.environ.get("RAY_ADDRESS", "local")
    folder = None
    options: RayOptions = {}
    if address == "local":
        make_token()
        # Ray puts sockets below this folder, and their paths must stay under 107 characters.
        folder = tempfile.mkdtemp(prefix="cf_", dir="/tmp")
        options = _describe_own_ray(cpus, dashboard, folder)
    elif environment is not None:
        options = {"runtime_env": {"env_vars": list_worker_variables() | environment}}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        url = _start_or_attach(address, options)
        yield f"http://{url}" if url else None
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _describe_own_ray(cpus: int | None, dashboard: tuple[str, int | None] | None, folder: str) -> RayOptions:
    options: RayOptions = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder}
    if dashboard is None:
        return options | {"include_dashboard": False}
    host, port = dashboard
    place = {"dashboard_host": host} | ({} if port is None else {"dashboard_port": port})
    return options | {"include_dashboard": True} | place


def _start_or_attach(address: str, options: RayOptions) -> str | None:
    """Connect this process to Ray; returns where its dashboard listens, if it has one."""
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ValueError as error:
        raise ClusterError(f"Ray did not start: {error}") from error
    except ConnectionError as error:
        raise ClusterError(f"no Ray answers at {address} ({error}); is it up, and is this a node of it?") from error
    return context.dashboard_url
