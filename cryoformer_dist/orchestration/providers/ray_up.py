"""Ray's own cluster launcher: nodes of a cloud or of one's own, brought up by `ray up`, the run a job on their head."""

import contextlib
import itertools
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cryoformer_dist.config.cluster import RayUpCluster
from cryoformer_dist.config.loading import dump_yaml
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.launch_record import find_launch_folder
from cryoformer_dist.orchestration.providers.on_head import ANSWER, LINE, Answer
from cryoformer_dist.orchestration.providers.provider import (
    Handle,
    JobState,
    judge_exit,
    run_program,
    write_private_files,
)
from cryoformer_dist.orchestration.providers.ray_up_config import (
    RayConfig,
    add_token,
    count_nodes,
    export_token,
    make_ray_config,
)
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.storage.records import read_record, write_record

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
# Clouds take minutes to start a node, and its setup may install torch.
_NODE_SECONDS = 1800
_POLL_SECONDS = 5.0
_SCHEMA_VERSION = 1
_WORDS: dict[str | None, Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
    None: "lost",
}


class RayUpProvider:
    """Brings a cluster up unless it is, and runs jobs on it as Ray jobs.

    Everything goes through ssh to the head, where the job server listens on loopback only.

    Parameters
    ----------
    config
        Of the cluster, its paths absolute.
    """

    def __init__(self, config: RayUpCluster) -> None:
        self._config = config

    def preview(self, request: RunRequest) -> str:
        """See `Provider`."""
        values = make_ray_config(self._config)
        files = _ClusterFiles(values["cluster_name"])
        parts = [f"# {files.config}\n{self._write_config(values, files)}"]
        parts += [f"# {files.remote}/{request.name}/{name} on the head\n{text}" for name, text in request.files.items()]
        parts.append(f"$ ray up --yes {files.config}")
        parts.append(f"# job on the head\n{' '.join(self._make_command(request, files))}")
        return "\n".join(parts)

    def submit(self, request: RunRequest) -> Handle:
        """Bring the cluster up if it is not, wait for its nodes, and start the job.

        Raises
        ------
        ClusterError
            If nodes do not come up, or the cluster that is up was made from another file.
        """
        values = make_ray_config(self._config)
        files = _ClusterFiles(values["cluster_name"])
        handle = {"ray": str(files.config), "job": f"{request.name}-{time.strftime('%Y%m%d-%H%M%S')}"}
        self._bring_up(files, self._write_config(values, files), count_nodes(values), handle)
        job = {
            "job": handle["job"],
            "command": self._make_command(request, files),
            "environment": self._config.environment,
        }
        folder = find_launch_folder() / request.name
        write_private_files(folder, {**request.files, "job.json": json.dumps(job)})
        there = f"{files.remote}/{request.name}/"
        run_program([*_RAY, "rsync-up", handle["ray"], f"{folder}/", there], "copying the run's files to the head")
        self._ask(handle, "submit", f"{there}job.json")
        return handle

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of the job's log; after its end the cluster is taken down, unless it is to stay."""
        read = 0
        while not self._recall_end(handle):
            # Asked first: what is written until then is all there is.
            state = self.ask_state(handle)
            # A connection that broke starts again from the first line.
            for line in itertools.islice(self._tail(handle), read, None):
                read += 1
                yield line
            if state.ended:
                yield from self._take_down(handle)
                return
            time.sleep(_POLL_SECONDS)
        yield f"the cluster of job {handle['job']} was taken down, and its log with it"

    def ask_state(self, handle: Handle) -> JobState:
        """See `Provider`."""
        if remembered := self._recall_end(handle):
            return remembered
        try:
            told = self._ask(handle, "state", handle["job"])
        except ClusterError as error:
            # Ray's launcher on a cluster that was taken down.
            if "Head node of cluster" in str(error):
                return JobState("lost")
            raise
        return _judge(told)

    def stop(self, handle: Handle) -> None:
        """End the job, and take the cluster down unless it is to stay."""
        self._ask(handle, "stop", handle["job"])
        while not self.ask_state(handle).ended:
            time.sleep(_POLL_SECONDS)
        for _ in self._take_down(handle):
            pass

    def _bring_up(self, files: "_ClusterFiles", text: str, nodes: int, handle: Handle) -> None:
        before = files.config.read_text() if files.config.is_file() else None
        if before is not None and self._is_up(handle):
            if before != text:
                raise ClusterError(
                    f"cluster {files.name} is up, made from another file; `ray down {files.config}` first, then launch"
                )
        else:
            files.write(text)
            run_program([*_RAY, "up", "--yes", str(files.config)], "bringing the cluster up")
        # `ray up` is content when the command that starts Ray was sent; whether Ray runs, Ray must say.
        found = self._ask(handle, "nodes", str(nodes), str(_NODE_SECONDS))["nodes"]
        if found < nodes:
            raise ClusterError(
                f"{found} of {nodes} nodes are up after {_NODE_SECONDS // 60} min; `ray monitor {files.config}` says "
                f"why, `ray down {files.config}` ends those that are"
            )

    def _is_up(self, handle: Handle) -> bool:
        """Whether Ray is up on the head: no reply of any kind is that of a cluster to be brought up."""
        with contextlib.suppress(ClusterError):
            return bool(self._ask(handle, "nodes", "1", "0"))
        return False

    def _write_config(self, values: RayConfig, files: "_ClusterFiles") -> str:
        return dump_yaml(add_token(values, files.token, f"{files.remote}/{files.name}.token"))

    def _make_command(self, request: RunRequest, files: "_ClusterFiles") -> list[str]:
        return request.make_command(f"{files.remote}/{request.name}", self._config.python)

    def _ask(self, handle: Handle, *words: str) -> Answer:
        """The answer of `on_head`."""
        told = run_program(self._exec(handle, *words), f"asking the head ({words[0]})", stdin=subprocess.DEVNULL)
        answers = [line.partition(ANSWER)[2] for line in told.splitlines() if ANSWER in line]
        if not answers:
            raise ClusterError(f"the head did not answer ({words[0]}): {' '.join(told.splitlines()[-3:])}")
        found: Answer = json.loads(answers[-1])
        return found

    def _tail(self, handle: Handle) -> Iterator[str]:
        command = self._exec(handle, "tail", handle["job"])
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if LINE in line:
                        yield line.partition(LINE)[2].rstrip("\r\n")
            finally:
                process.terminate()

    def _exec(self, handle: Handle, *words: str) -> list[str]:
        files = _ClusterFiles(Path(handle["ray"]).parent.name)
        asked = shlex.join([self._config.python, "-m", "cryoformer_dist.orchestration.providers.on_head", *words])
        return [*_RAY, "exec", handle["ray"], f"{export_token(f'{files.remote}/{files.name}.token')} {asked}"]

    def _take_down(self, handle: Handle) -> Iterator[str]:
        if self._config.keep_up:
            return
        told = self._ask(handle, "state", handle["job"])
        if told["others"]:
            yield f"the cluster stays up: {told['others']} other jobs are at work there"
            return
        # The job's end is known to the cluster only, which goes.
        kept = _locate_end(handle)
        write_record(kept, _judge(told), _SCHEMA_VERSION)
        if self._config.cloud == "on-premise":
            # `ray down` calls `ray` by its name, and goes on in silence where a login does not find it.
            end_ray = shlex.join([self._config.python, "-m", "ray.scripts.scripts", "stop"])
            run_program([*_RAY, "exec", handle["ray"], end_ray], "ending Ray on the head", stdin=subprocess.DEVNULL)
        run_program([*_RAY, "down", "--yes", handle["ray"]], "taking the cluster down")

    def _recall_end(self, handle: Handle) -> JobState | None:
        kept = _locate_end(handle)
        return read_record(kept, JobState, _SCHEMA_VERSION, "delete it") if kept.is_file() else None


class _ClusterFiles:
    """Where a cluster's files are, here and on its nodes."""

    remote = "~/.cryoformer-dist"

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = find_launch_folder().parent / "clusters" / name
        self.config = self.folder / "ray.yaml"
        self.token = self.folder / "token"

    def write(self, text: str) -> None:
        """Write Ray's file, and a token unless the cluster has one."""
        write_private_files(self.folder, {self.config.name: text})
        if not self.token.is_file():
            with open(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))


def _judge(told: Answer) -> JobState:
    if told["status"] == "FAILED" and told["exit_code"]:
        return judge_exit(told["exit_code"])
    return JobState(_WORDS[told["status"]], told["exit_code"])


def _locate_end(handle: Handle) -> Path:
    """Where is kept how a job ended whose cluster is gone."""
    return Path(handle["ray"]).with_name(f"{handle['job']}.json")
