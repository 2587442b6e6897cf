"""A cluster of several raylets on this machine, started by hand as an administrator would."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_HEAD_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RayNodes:
    """What is up: the head first."""

    folder: Path
    port: int
    dashboard_port: int
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _started: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def job_server(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def start_head(self, cpus: int) -> None:
        options = ["--head", f"--port={self.port}", "--dashboard-host=127.0.0.1", f"--temp-dir={self.folder / 'r'}"]
        self._start([*options, f"--dashboard-port={self.dashboard_port}", f"--num-cpus={cpus}"])
        self._wait_for_job_server()

    def start_node(self, cpus: int) -> subprocess.Popen[bytes]:
        """One more, once it is up: two that start on one machine at the same time hinder one another."""
        process = self._start([f"--address={self.address}", f"--num-cpus={cpus}"])
        log = self.folder / f"raylet-{self._started - 1}.log"
        end = time.monotonic() + _HEAD_SECONDS
        while "will now block" not in log.read_text():
            if time.monotonic() > end or process.poll() is not None:
                raise TimeoutError(f"a raylet did not come up: {log.read_text()}")
            time.sleep(0.2)
        return process

    def kill_node(self, process: subprocess.Popen[bytes]) -> None:
        """The raylet and all below it, at once, as when a machine loses its power."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.processes.remove(process)

    def stop(self) -> None:
        for process in reversed(self.processes):
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _start(self, options: list[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block", "--disable-usage-stats"]
        log = self.folder / f"raylet-{self._started}.log"
        self._started += 1
        with log.open("w") as output:
            process = subprocess.Popen(
                # Its usual port may be held by another Ray: the job server then finds no agent to start jobs.
                [*command, f"--object-store-memory={128 * 2**20}", f"--dashboard-agent-listen-port={free_port()}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def _wait_for_job_server(self) -> None:
        request = urllib.request.Request(
            f"{self.job_server}/api/version", headers={"Authorization": f"Bearer {self.token_file.read_text()}"}
        )
        end = time.monotonic() + _HEAD_SECONDS
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(request, timeout=5).close()
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.5)
            else:
                return
        raise TimeoutError(f"no job server within {_HEAD_SECONDS} s; see {self.folder}")


@contextmanager
def ray_nodes(nodes: int, cpus: int, head_cpus: int = 0) -> Iterator[RayNodes]:
    """A head and so many nodes, with a token of their own."""
    folder = Path(tempfile.mkdtemp(prefix="cfr_", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1"}
    environment["RAY_worker_niceness"] = "0"
    cluster = RayNodes(folder, free_port(), free_port(), environment)
    try:
        cluster.start_head(head_cpus)
        for _ in range(nodes):
            cluster.start_node(cpus)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
