"""A Ray to run in: the one that is up, the one at an address, or a quiet one of our own on this machine."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

_OBJECT_STORE_BYTES = 512 * 2**20


@contextmanager
def running_ray(
    cpus: int | None = None, dashboard: tuple[str, int] | None = None, address: str | None = None
) -> Iterator[str | None]:
    """Have Ray for a while; one that was up already is used and left up.

    Parameters
    ----------
    cpus
        CPUs of a Ray of our own; those of the machine when ``None``.
    dashboard
        Host and port of a dashboard, when one is wanted.
    address
        Of a running cluster; ``RAY_ADDRESS`` when ``None``.

    Yields
    ------
    url
        Of the dashboard, if there is one.
    """
    if ray.is_initialized():
        yield None
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS", "local")
    folder = None
    if address == "local":
        # Ray puts sockets below this folder, and their paths must stay under 107 characters.
        folder = tempfile.mkdtemp(prefix="cf_", dir="/tmp")
        options |= {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder}
        options |= {"include_dashboard": dashboard is not None}
        if dashboard is not None:
            options |= {"dashboard_host": dashboard[0], "dashboard_port": dashboard[1]}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        context = ray.init(address=address, **options)
        url = context.dashboard_url
        yield f"http://{url}" if url else None
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
