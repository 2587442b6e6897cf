"""A Slurm cluster: one batch job that starts Ray on its nodes, makes the run, and ends both."""

import re
import shlex
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from cryoformer_dist.config.cluster import SlurmCluster
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.launch_record import find_launch_folder
from cryoformer_dist.orchestration.providers.provider import (
    Handle,
    JobState,
    judge_exit,
    run_program,
    write_private_files,
)
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.runs.layout import LAUNCH

# Slurm's words; every other one (FAILED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, ...) is a failure.
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_LOG_SECONDS, _STATE_SECONDS = 1.0, 10.0


class SlurmProvider:
    """Submits, follows and ends the batch job of a launch.

    Parameters
    ----------
    config
        Its storage, when a folder, is one that the nodes see.
    """

    def __init__(self, config: SlurmCluster) -> None:
        self._config = config

    def preview(self, request: RunRequest) -> str:
        """The three files and the command; see `Provider`."""
        folder = _choose_folder(request)
        texts = [f"# {folder / name}\n{text}" for name, text in self._make_files(request, folder).items()]
        return "\n".join([*texts, f"$ {shlex.join(_make_command(folder))}"])

    def submit(self, request: RunRequest) -> Handle:
        """Write the files to shared storage and hand the script to ``sbatch``.

        Raises
        ------
        ClusterError
            If Slurm refuses the job; its reason is in the message.
        """
        folder = _choose_folder(request)
        write_private_files(folder, self._make_files(request, folder))
        # The number, and on some sites the name of the cluster after a semicolon.
        job = run_program(_make_command(folder), "submitting the job").strip().split(";")[0]
        if not job.isdigit():
            raise ClusterError(f"sbatch answered {job!r} instead of a job number; is sbatch a wrapper of this site?")
        return {"job": job, "log": str(folder / f"job-{job}.log")}

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of the job's log as they come; first, and after each return to the queue, that it waits there."""
        log = _GrowingFile(Path(handle["log"]))
        waiting = False
        while True:
            word, _, reason = _ask(handle["job"])
            # After the question: what was written before the end is not missed.
            yield from log.read_lines()
            if word not in _PENDING | _RUNNING:
                break
            if word in _PENDING and not waiting:
                yield f"Slurm job {handle['job']} waits in the queue ({reason or word})"
            waiting = word in _PENDING
            next_question = time.monotonic() + _STATE_SECONDS
            while time.monotonic() < next_question:
                yield from log.read_lines()
                time.sleep(_LOG_SECONDS)
        yield from log.read_rest()
        if word not in ("COMPLETED", "FAILED"):
            yield f"Slurm job {handle['job']} ended: {word}"

    def ask_state(self, handle: Handle) -> JobState:
        """How the job is doing, in Slurm's words; see `JobState`."""
        word, code, _ = _ask(handle["job"])
        if word in _PENDING:
            return JobState("pending")
        if word in _RUNNING:
            return JobState("running")
        if word == "COMPLETED":
            return JobState("succeeded", 0)
        if word in ("CANCELLED", "LOST"):
            return JobState("stopped" if word == "CANCELLED" else "lost")
        return judge_exit(code) if code else JobState("failed")

    def stop(self, handle: Handle) -> None:
        """Cancel the job, waiting or running."""
        run_program(["scancel", handle["job"]], "cancelling the job")

    def _make_files(self, request: RunRequest, folder: Path) -> dict[str, str]:
        return {**request.files, "job.sbatch": write_job_script(self._config, request, str(folder))}


def write_job_script(config: SlurmCluster, request: RunRequest, folder: str) -> str:
    """The batch script: options, the site's own lines, settings, and what is done with them.

    Parameters
    ----------
    config
        Of the Slurm cluster.
    request
        What the job makes.
    folder
        Where its files lie and logs go; every node sees it.
    """
    options = [
        f"--job-name={request.name}",
        f"--chdir={folder}",
        f"--output={folder}/job-%j.log",
        "--open-mode=append",
        f"--nodes={config.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={config.cpus_per_node}",
        *([f"--gpus-per-node={config.gpus_per_node}"] if config.gpus_per_node else []),
        f"--time={config.time}",
        *([f"--partition={config.partition}"] if config.partition else []),
        *([f"--account={config.account}"] if config.account else []),
        # A run that can shrink goes on without a lost node; one that cannot needs another in its place.
        *(["--no-kill"] if config.workers.elastic else []),
        *(["--requeue", "--signal=B:USR1@120"] if config.requeue else ["--no-requeue"]),
        *config.options,
    ]
    settings = {
        "python": config.python,
        "port": str(config.port),
        "dashboard_port": str(config.dashboard_port),
        "cpus": str(config.cpus_per_node),
        "gpus": str(config.gpus_per_node),
        "folder": folder,
    }
    lines = [
        "#!/bin/bash",
        f"# cryoformer-dist, run {request.name}: Ray on every node, the driver on the first; all ends with the job.",
        *(f"#SBATCH {shlex.quote(option) if ' ' in option else option}" for option in options),
        "",
        *config.setup,
        # Where Ray's nodes speak to one another, it binds its metrics to every interface, or to none.
        *([] if config.open_ports else ["export RAY_enable_metrics_collection=0"]),
        *(f"export {name}={shlex.quote(value)}" for name, value in config.environment.items()),
        *(f"{name}={shlex.quote(value)}" for name, value in settings.items()),
        f"command=({shlex.join(request.make_command(folder, config.python))})",
        "",
    ]
    return "\n".join(lines) + (files("cryoformer_dist.orchestration.providers") / "slurm_job.sh").read_text()


def _choose_folder(request: RunRequest) -> Path:
    """Where the nodes find the launch's files: in its run directory, or at home when runs go to an object store."""
    if "://" in request.cluster.storage:
        return find_launch_folder() / request.name
    return Path(request.cluster.storage) / request.name / LAUNCH


def _make_command(folder: Path) -> list[str]:
    return ["sbatch", "--parsable", str(folder / "job.sbatch")]


def _ask(job: str) -> tuple[str, int, str]:
    """Slurm's word for a job's state (or LOST), the batch script's exit code, and the reason it waits.

    The controller knows what waits, runs, or has just ended; accounting, where the site keeps any, knows the rest. Not
    the other way round: accounting learns of things late.
    """
    try:
        told = run_program(["scontrol", "show", "job", "--oneliner", job], "asking for the job")
    except ClusterError as error:
        if "Invalid job id" not in str(error):
            raise
        return _ask_accounting(job)
    found = dict(re.findall(r"(JobState|ExitCode|Reason)=(\S+)", told))
    return found["JobState"], _read_exit_code(found["ExitCode"]), found.get("Reason", "").replace("None", "")


def _ask_accounting(job: str) -> tuple[str, int, str]:
    columns = ["--noheader", "--parsable2", "--allocations", "--format=State,ExitCode"]
    try:
        told = run_program(["sacct", "--jobs", job, *columns], "asking for the job").strip()
    except ClusterError as error:
        if "accounting storage is disabled" not in str(error):
            raise
        told = ""
    if not told:
        return "LOST", 0, ""
    word, code = told.splitlines()[-1].split("|")
    # As in "CANCELLED by 1000".
    return word.split()[0], _read_exit_code(code), ""


def _read_exit_code(text: str) -> int:
    """Of ``CODE:SIGNAL``, as a shell would tell it."""
    code, signal = map(int, text.split(":"))
    return 128 + signal if signal else code


class _GrowingFile:
    """Lines of a file that another machine appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def read_lines(self) -> list[str]:
        """Whole lines written since the last call; none while the file is not there yet."""
        # Only up to the last line end: the rest may stop in the middle of a letter.
        whole, end, _ = self._read_on().rpartition(b"\n")
        self._read += len(whole) + len(end)
        return whole.decode(errors="replace").split("\n") if end else []

    def read_rest(self) -> list[str]:
        """What is left at the end, the last line whether it was finished or not."""
        lines = self.read_lines()
        last = self._read_on().decode(errors="replace")
        return [*lines, last] if last else lines

    def _read_on(self) -> bytes:
        if not self._path.is_file():
            return b""
        with self._path.open("rb") as file:
            file.seek(self._read)
            return file.read()
