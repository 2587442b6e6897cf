"""Slurm's accounting on the controller's node: slurmdbd, on a MariaDB of its own."""

import time
from collections.abc import Callable
from pathlib import Path

from cluster_in_a_box.node import Node

_CONFIGURATION = """\
DbdHost={control}
AuthType=auth/munge
SlurmUser=root
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""
# The controller forgets a job soon after its end, and accounting has to be asked.
_OF_THE_CONTROLLER = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={control}
MinJobAge=5
"""
_SECONDS = 60


def describe_accounting(control: Node, slurm_folder: Path) -> str:
    """Lines of Slurm's configuration; that of slurmdbd is written beside it."""
    path = slurm_folder / "slurmdbd.conf"
    path.touch(mode=0o600)
    path.write_text(_CONFIGURATION.format(control=control.name))
    return _OF_THE_CONTROLLER.format(control=control.name)


def start_accounting(control: Node) -> None:
    """Bring up what keeps records of jobs; munge must be up, and the controller comes after it."""
    control.run("mkdir", "/run/mysql", "/run/mysqld")
    database = control.folder / "mariadbd.log"
    # Nobody but this node reaches it: it needs no users, and so no tables of them.
    kept = ["--no-defaults", "--user=root", "--datadir=/run/mysql", "--skip-grant-tables", "--skip-networking"]
    small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--socket=/run/mysqld/mysqld.sock"]
    control.begin("mariadbd", *kept, *small, log=database)
    _wait(database, lambda: (control.folder / "run" / "mysqld" / "mysqld.sock").is_socket())
    keeper = control.folder / "slurmdbd.log"
    control.begin("slurmdbd", "-D", log=keeper)
    # Jobs of a cluster that it does not know are not kept.
    _wait(keeper, lambda: control.attempt("sacctmgr", "--immediate", "add", "cluster", "box").returncode == 0)


def _wait(log: Path, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not up within {_SECONDS} s: {log.read_text()}")
        time.sleep(0.2)
