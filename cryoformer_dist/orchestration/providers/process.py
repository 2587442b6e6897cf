"""A process of this machine: for a Ray that starts with it, or one that it attaches to."""

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

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

_POLL_SECONDS = 0.2
# Ray and its workers are given so long to end in order.
_GRACE_SECONDS = 60
# The shell in brackets outlives the driver to say how it ended, also to one who asks much later. The shell around it
# ends at once: nobody has to wait for its child.
_APART = '( "$@"; echo $? > exit ) > log 2>&1 < /dev/null & echo $!'


class ProcessProvider:
    """Runs the driver as a process of its own, which outlives the terminal."""

    def preview(self, request: RunRequest) -> str:
        """See `Provider`."""
        folder = _choose_folder(request)
        parts = [f"# {folder / name}\n{text}" for name, text in request.files.items()]
        command = shlex.join(request.make_command(str(folder), sys.executable))
        return "\n".join([*parts, f"# on this machine, with --detach as a process of its own\n{command}"])

    def submit(self, request: RunRequest) -> Handle:
        """See `Provider`."""
        folder = write_files(request)
        (folder / "log").touch(mode=0o600)
        command = ["sh", "-c", _APART, "sh", *request.make_command(str(folder), sys.executable)]
        number = run_program(command, "starting the driver", cwd=folder, start_new_session=True)
        return _describe(int(number), folder)

    def follow(self, handle: Handle) -> Iterator[str]:
        """See `Provider`."""
        log = Path(handle["folder"]) / "log"
        if not log.is_file():
            yield f"this launch prints to the terminal it was started in (process {handle['pid']})"
            return
        with log.open() as stream:
            line = ""
            while True:
                # Asked before reading: what is written until then is all there is.
                ended = self.ask_state(handle).ended
                while part := stream.readline():
                    line += part
                    if line.endswith("\n"):
                        yield line.rstrip("\n")
                        line = ""
                if ended:
                    if line:
                        yield line
                    return
                time.sleep(_POLL_SECONDS)

    def ask_state(self, handle: Handle) -> JobState:
        """See `Provider`."""
        said = Path(handle["folder"]) / "exit"
        if said.is_file() and (text := said.read_text().strip()):
            return judge_exit(int(text))
        return JobState("running") if _find_process(handle) else JobState("stopped")

    def stop(self, handle: Handle) -> None:
        """See `Provider`."""
        process = _find_process(handle)
        if process is None:
            raise ClusterError(f"process {handle['pid']} has ended already")
        group = [process, *process.children(recursive=True)]
        # One with a log is a shell with a session of its own, the driver behind it.
        if (Path(handle["folder"]) / "log").is_file():
            os.killpg(os.getpgid(process.pid), signal.SIGTERM)
        else:
            process.terminate()
        _, alive = psutil.wait_procs(group, timeout=_GRACE_SECONDS)
        for left in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


def write_files(request: RunRequest) -> Path:
    """A launch's files in a folder of this machine, in place of those of an earlier launch of its name."""
    folder = _choose_folder(request)
    for leftover in ("exit", "log"):
        (folder / leftover).unlink(missing_ok=True)
    write_private_files(folder, request.files)
    return folder


def register_this_process(request: RunRequest) -> Handle:
    """The handle of a launch that this very process carries out."""
    return _describe(os.getpid(), write_files(request))


def write_exit_code(handle: Handle, code: int) -> None:
    """Say how this very process ends."""
    (Path(handle["folder"]) / "exit").write_text(str(code))


def _choose_folder(request: RunRequest) -> Path:
    return find_launch_folder() / request.name


def _describe(pid: int, folder: Path) -> Handle:
    # Numbers of processes are used again; with the time of its start it is this one.
    return {"pid": str(pid), "started": str(psutil.Process(pid).create_time()), "folder": str(folder)}


def _find_process(handle: Handle) -> psutil.Process | None:
    """The process, if it is still there."""
    try:
        process = psutil.Process(int(handle["pid"]))
        same = str(process.create_time()) == handle["started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None
