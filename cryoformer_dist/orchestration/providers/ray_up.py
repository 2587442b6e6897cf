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
from typing import Any, Literal

from cryoformer_dist.config.cluster import RayUpCluster
from cryoformer_dist.config.loading import dump_yaml
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.launch_registry import launch_folder
from cryoformer_dist.orchestration.launch_spec import Handle, JobState, LaunchSpec, output_of
from cryoformer_dist.orchestration.providers.on_head import ANSWER, LINE
from cryoformer_dist.orchestration.providers.ray_up_config import exported, node_count, ray_config, with_token

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
# Clouds take minutes to start a node, and its setup may install torch.
_NODE_SECONDS = 1800
_POLL_SECONDS = 5.0
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

    def preview(self, spec: LaunchSpec) -> str:
        """See `Provider`."""
        values = ray_config(self._config)
        place = _Place(values["cluster_name"])
        parts = [f"# {place.file}\n{self._text(values, place)}"]
        parts += [f"# {place.remote}/{spec.name}/{name} on the head\n{text}" for name, text in spec.files.items()]
        parts += [f"$ ray up --yes {place.file}", f"# job on the head\n{' '.join(self._command(spec, place))}"]
        return "\n".join(parts)

    def submit(self, spec: LaunchSpec) -> Handle:
        """Bring the cluster up if it is not, wait for its nodes, and start the job.

        Raises
        ------
        ClusterError
            If nodes do not come up, or the cluster that is up was made from another file.
        """
        values = ray_config(self._config)
        place = _Place(values["cluster_name"])
        handle = {"ray": str(place.file), "job": f"{spec.name}-{time.strftime('%Y%m%d-%H%M%S')}"}
        self._bring_up(place, self._text(values, place), node_count(values), handle)
        request = {
            "job": handle["job"],
            "command": self._command(spec, place),
            "environment": spec.cluster.environment,
        }
        folder = launch_folder() / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {**spec.files, "request.json": json.dumps(request)}.items():
            (folder / name).write_text(text)
        there = f"{place.remote}/{spec.name}/"
        output_of([*_RAY, "rsync-up", handle["ray"], f"{folder}/", there], "copying the run's files to the head")
        self._ask(handle, "submit", f"{there}request.json")
        return handle

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of the job's log; after its end the cluster is taken down, unless it is to stay."""
        read = 0
        while not self._remembered(handle):
            # Asked first: what is written until then is all there is.
            state = self.state(handle)
            # A connection that broke starts again from the first line.
            for line in itertools.islice(self._tail(handle), read, None):
                read += 1
                yield line
            if state.ended:
                yield from self._take_down(handle)
                return
            time.sleep(_POLL_SECONDS)
        yield f"the cluster of job {handle['job']} was taken down, and its log with it"

    def state(self, handle: Handle) -> JobState:
        """See `Provider`."""
        if remembered := self._remembered(handle):
            return remembered
        try:
            told = self._ask(handle, "state", handle["job"])
        except ClusterError as error:
            # Ray's launcher on a cluster that was taken down.
            if "Head node of cluster" in str(error):
                return JobState("lost")
            raise
        return JobState(_WORDS[told["status"]], told["exit_code"])

    def stop(self, handle: Handle) -> None:
        """End the job, and take the cluster down unless it is to stay."""
        self._ask(handle, "stop", handle["job"])
        while not self.state(handle).ended:
            time.sleep(_POLL_SECONDS)
        for _ in self._take_down(handle):
            pass

    def _bring_up(self, place: "_Place", text: str, nodes: int, handle: Handle) -> None:
        before = place.file.read_text() if place.file.is_file() else None
        if before is not None and self._answers(handle):
            if before != text:
                raise ClusterError(
                    f"cluster {place.name} is up, made from another file; `ray down {place.file}` first, then launch"
                )
        else:
            place.write(text)
            output_of([*_RAY, "up", "--yes", str(place.file)], "bringing the cluster up")
        # `ray up` is content when the command that starts Ray was sent; whether Ray runs, Ray must say.
        found = self._ask(handle, "nodes", str(nodes), str(_NODE_SECONDS))["nodes"]
        if found < nodes:
            raise ClusterError(
                f"{found} of {nodes} nodes are up after {_NODE_SECONDS // 60} min; `ray monitor {place.file}` says "
                f"why, `ray down {place.file}` ends those that are"
            )

    def _answers(self, handle: Handle) -> bool:
        """Whether Ray is up on the head: no reply of any kind is that of a cluster to be brought up."""
        with contextlib.suppress(ClusterError):
            return bool(self._ask(handle, "nodes", "1", "0"))
        return False

    def _text(self, values: dict[str, Any], place: "_Place") -> str:
        return dump_yaml(with_token(values, place.token, f"{place.remote}/{place.name}.token"))

    def _command(self, spec: LaunchSpec, place: "_Place") -> list[str]:
        return spec.command(f"{place.remote}/{spec.name}", self._config.python)

    def _ask(self, handle: Handle, *words: str) -> dict[str, Any]:
        """The answer of `on_head`."""
        told = output_of(self._exec(handle, *words), f"asking the head ({words[0]})", stdin=subprocess.DEVNULL)
        answers = [line.partition(ANSWER)[2] for line in told.splitlines() if ANSWER in line]
        if not answers:
            raise ClusterError(f"the head did not answer ({words[0]}): {' '.join(told.splitlines()[-3:])}")
        found: dict[str, Any] = json.loads(answers[-1])
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
        place = _Place(Path(handle["ray"]).parent.name)
        asked = shlex.join([self._config.python, "-m", "cryoformer_dist.orchestration.providers.on_head", *words])
        return [*_RAY, "exec", handle["ray"], f"{exported(f'{place.remote}/{place.name}.token')} {asked}"]

    def _take_down(self, handle: Handle) -> Iterator[str]:
        if self._config.keep_up:
            return
        told = self._ask(handle, "state", handle["job"])
        if told["others"]:
            yield f"the cluster stays up: {told['others']} other jobs are at work there"
            return
        # The job's end is known to the cluster only, which goes.
        kept = _memory(handle)
        kept.write_text(json.dumps({"word": _WORDS[told["status"]], "exit_code": told["exit_code"]}))
        output_of([*_RAY, "down", "--yes", handle["ray"]], "taking the cluster down")

    def _remembered(self, handle: Handle) -> JobState | None:
        kept = _memory(handle)
        return JobState(**json.loads(kept.read_text())) if kept.is_file() else None


class _Place:
    """Where a cluster's files are, here and on its nodes."""

    remote = "~/.cryoformer-dist"

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = launch_folder().parent / "clusters" / name
        self.file = self.folder / "ray.yaml"
        self.token = self.folder / "token"

    def write(self, text: str) -> None:
        """Write Ray's file, and a token unless the cluster has one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(text)
        if not self.token.is_file():
            with open(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))


def _memory(handle: Handle) -> Path:
    return Path(handle["ray"]).with_name(f"{handle['job']}.json")
