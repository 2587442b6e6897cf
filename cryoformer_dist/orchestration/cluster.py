"""A Ray to run in: one that is up, or a quiet one of our own on this machine."""

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil
import ray
from ray._private import ray_constants

from cryoformer_dist.config.cluster import ClusterConfig, ExistingCluster, LocalCluster
from cryoformer_dist.errors import ClusterError, RayStartsAgainWarning
from cryoformer_dist.machine import usable_cores
from cryoformer_dist.orchestration.environment import find_token, list_worker_variables, make_token

_OBJECT_STORE_BYTES = 512 * 2**20
# How Ray's processes are told what `ray_constants.ENABLE_RAY_CLUSTER` says in this one.
_CLUSTERS_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# What `ray.init` takes, by its names.
RayOptions = dict[str, Any]


def use_ray(cluster: ClusterConfig) -> AbstractContextManager[str | None]:
    """The Ray of a cluster, for the process that drives a run: see `running_ray`.

    A job finds the address of its cluster in ``RAY_ADDRESS``.
    """
    if isinstance(cluster, LocalCluster):
        dashboard = (cluster.dashboard_host, cluster.dashboard_port)
        return running_ray(address="local", dashboard=dashboard, open_ports=cluster.open_ports)
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
    open_ports: bool = False,
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
    open_ports
        Whether other machines reach the ports of a Ray of our own, its metrics among them.

    Yields
    ------
    url
        Of the dashboard, if there is one.

    Raises
    ------
    ClusterError
        If Ray refuses the options, as it does a dashboard port that is taken, does not start in time, twice, or there
        is none at the address.
    """
    if ray.is_initialized():
        yield None
        return
    address = address or os.environ.get("RAY_ADDRESS", "local")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    own = address == "local"
    using = _own_ray(cpus, dashboard, open_ports) if own else _joined_ray(address, environment)
    with using as url:
        yield f"http://{url}" if url else None


@contextmanager
def _joined_ray(address: str, environment: dict[str, str] | None) -> Iterator[str | None]:
    options: RayOptions = {}
    if environment is not None:
        options = {"runtime_env": {"env_vars": list_worker_variables() | environment}}
    try:
        url = _initialise(address, options)
    except ConnectionError as error:
        raise ClusterError(f"no Ray answers at {address} ({error}); is it up, and is this a node of it?") from error
    try:
        yield url
    finally:
        ray.shutdown()


@contextmanager
def _own_ray(cpus: int | None, dashboard: tuple[str, int | None] | None, open_ports: bool) -> Iterator[str | None]:
    make_token()
    options: RayOptions = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    if dashboard is not None:
        host, port = dashboard
        options |= {"include_dashboard": True, "dashboard_host": host}
        options |= {} if port is None else {"dashboard_port": port}
    # Ray lets everybody into its own folder, and nobody gets through this one. Short: below it Ray puts sockets, whose
    # paths must stay under 107 characters.
    folder = tempfile.mkdtemp(prefix="cf_", dir="/tmp")
    try:
        with _listening_here(open_ports):
            yield _start(options, folder)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _listening_here(open_ports: bool) -> Iterator[None]:
    """Have all of Ray listen on loopback only, as it does on systems on which it knows no clusters."""
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_CLUSTERS_VARIABLE)
    ray_constants.ENABLE_RAY_CLUSTER = open_ports
    os.environ[_CLUSTERS_VARIABLE] = str(int(open_ports))
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        os.environ.pop(_CLUSTERS_VARIABLE)
        if before[1] is not None:
            os.environ[_CLUSTERS_VARIABLE] = before[1]


def _start(options: RayOptions, folder: str) -> str | None:
    """Start Ray, once more if it does not come up: its own patience is short where a machine is busy."""
    others = set(psutil.Process().children())
    try:
        return _initialise("local", options | {"_temp_dir": f"{folder}/1"})
    except ClusterError:
        raise
    except Exception as error:  # noqa: BLE001 - Ray that gives up raises a plain one
        warnings.warn(f"{_describe_failure(error)}; it is tried once more", RayStartsAgainWarning, stacklevel=2)
    ray.shutdown()
    # What came up of it would keep the second try from the machine.
    for left in set(psutil.Process().children()) - others:
        left.kill()
    try:
        return _initialise("local", options | {"_temp_dir": f"{folder}/2"})
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(
            f"{_describe_failure(error)}, twice; wait until other programs have ended, or train without Ray: "
            "`cryoformer-dist train RUN.yaml --local`"
        ) from error


def _describe_failure(error: Exception) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
    return f"Ray did not start in time ({said}; load {os.getloadavg()[0]:.1f} on {usable_cores()} cores)"


def _initialise(address: str, options: RayOptions) -> str | None:
    """Connect this process to Ray; returns where its dashboard listens, if it has one."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ValueError as error:
        raise ClusterError(f"Ray did not start: {error}") from error
    finally:
        # Ray's own prints a trace of C++ and ends the process.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return context.dashboard_url
