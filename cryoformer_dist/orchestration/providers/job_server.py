"""The job server of a Ray that others started."""

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from ray.job_submission import JobStatus, JobSubmissionClient

from cryoformer_dist.config.cluster import ExistingCluster
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.environment import find_token, list_worker_variables
from cryoformer_dist.orchestration.providers.provider import Handle, JobState, judge_exit
from cryoformer_dist.orchestration.request import RunRequest

_AGENT_SECONDS = 60
_WORDS: dict[JobStatus, Literal["pending", "running", "succeeded", "failed", "stopped"]] = {
    JobStatus.PENDING: "pending",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


class JobServerProvider:
    """Submits the driver as a Ray job.

    Parameters
    ----------
    cluster
        With the address of its job server.
    """

    def __init__(self, cluster: ExistingCluster) -> None:
        self._cluster = cluster

    def preview(self, request: RunRequest) -> str:
        """See `Provider`."""
        parts = [f"# {name}, sent with the job\n{text}" for name, text in request.files.items()]
        return "\n".join([*parts, f"# job at {self._cluster.address}\n{self._write_entrypoint(request)}"])

    def submit(self, request: RunRequest) -> Handle:
        """See `Provider`."""
        number = f"{request.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        environment = (
            list_worker_variables() | {"RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"]} | self._cluster.environment
        )
        client = self._connect()
        with tempfile.TemporaryDirectory() as folder:
            for name, text in request.files.items():
                (Path(folder) / name).write_text(text)
            submit = partial(
                client.submit_job,
                entrypoint=self._write_entrypoint(request),
                submission_id=number,
                runtime_env={"working_dir": folder, "env_vars": environment},
                metadata={"run": request.name},
                entrypoint_num_cpus=0,
            )
            self._retry_until_taken(submit)
        return {"job": number}

    def _retry_until_taken(self, submit: Callable[[], object]) -> None:
        """Hand a job over; a cluster that has just come up takes jobs some seconds after it answers."""
        end = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                submit()
            except RuntimeError as error:
                if "No available agent" in str(error) and time.monotonic() < end:
                    time.sleep(1)
                    continue
                raise ClusterError(f"{self._cluster.address} does not take the job: {error}") from error
            return

    def follow(self, handle: Handle) -> Iterator[str]:
        """See `Provider`."""
        chunks = self._connect().tail_job_logs(handle["job"])
        loop = asyncio.new_event_loop()
        rest = ""
        try:
            while True:
                try:
                    rest += loop.run_until_complete(anext(chunks))
                except StopAsyncIteration:
                    break
                *lines, rest = rest.split("\n")
                yield from lines
        finally:
            loop.run_until_complete(chunks.aclose())
            loop.close()
        if rest:
            yield rest

    def ask_state(self, handle: Handle) -> JobState:
        """See `Provider`."""
        try:
            found = self._connect().get_job_info(handle["job"])
        except RuntimeError as error:
            if "does not exist" in str(error):
                return JobState("lost")
            raise
        if found.status == JobStatus.FAILED and found.driver_exit_code:
            return judge_exit(found.driver_exit_code)
        return JobState(_WORDS[found.status], found.driver_exit_code)

    def stop(self, handle: Handle) -> None:
        """See `Provider`."""
        self._connect().stop_job(handle["job"])

    def _write_entrypoint(self, request: RunRequest) -> str:
        return shlex.join(request.make_command(".", self._cluster.python))

    def _connect(self) -> JobSubmissionClient:
        find_token(self._cluster.token_file)
        try:
            client = JobSubmissionClient(self._cluster.address)
        except (ConnectionError, RuntimeError) as error:
            raise ClusterError(
                f"address: no job server of Ray answers at {self._cluster.address} ({str(error).splitlines()[0]}); is "
                "the cluster up, the port forwarded, the token its own (token_file)?"
            ) from error
        # It sets its own level when it is made.
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return client
