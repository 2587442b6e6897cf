"""A node: namespaces for its network, host name, mounts and processes, and how to run programs in it."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_in_a_box.requirements import PATH

_FIRST_PROCESS = Path(__file__).with_name("first_process.py")
REPOSITORY = Path(__file__).resolve().parents[2]
HOME = Path(pwd.getpwuid(0).pw_dir)
"""Of root, on every node its own."""
# What a machine has for itself. Programs and libraries are this machine's.
_PRIVATE = ("/tmp", "/run", str(HOME))
_SECONDS = 30


@dataclass
class Node:
    """One machine of the cluster.

    Attributes
    ----------
    name, address
        By which the others reach it.
    folder
        Its own files, on this machine's disk.
    shared
        A folder that it sees at the same path as all others and this machine.
    etc
        Folders and files that replace some of this machine's ``/etc``, by name.
    """

    name: str
    address: str
    folder: Path
    shared: Path
    etc: dict[str, Path]
    _unshare: "subprocess.Popen[str] | None" = field(default=None, repr=False)
    _programs: list["subprocess.Popen[str]"] = field(default_factory=list, repr=False)

    @property
    def is_up(self) -> bool:
        return self._unshare is not None

    @property
    def first_process(self) -> int:
        """Its number as this machine counts."""
        assert self._unshare is not None, f"{self.name} is down"
        return int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text())

    def start(self) -> None:
        """Make its namespaces, with an empty file system and no network as yet."""
        private = {place: self.folder / place.strip("/") for place in _PRIVATE}
        for folder in private.values():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        private |= {f"/etc/{name}": path for name, path in self.etc.items()}
        described = {
            "name": self.name,
            "private": {place: str(folder) for place, folder in private.items()},
            "carried": sorted({str(REPOSITORY), sys.prefix, sys.base_prefix, str(self.shared)}),
            "shared": str(self.shared),
        }
        # --kill-child: the first process ends with unshare, and all others with it.
        namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        log = self.folder / "first_process.log"
        with log.open("w") as complaints:
            self._unshare = subprocess.Popen(
                ["unshare", *namespaces, sys.executable, "-S", "-E", str(_FIRST_PROCESS), json.dumps(described)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env={"PATH": PATH},
                start_new_session=True,
            )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "ready\n":
            self._unshare = None
            raise RuntimeError(f"{self.name} did not come up: {log.read_text()}")

    def kill(self) -> None:
        """End all it runs at once, as when a machine loses its power."""
        if self._unshare is None:
            return
        # The kernel tells of the first process's end when all others have ended, and unshare waits for it.
        os.kill(self.first_process, signal.SIGKILL)
        unshare, self._unshare = self._unshare, None
        for process in [*self._programs, unshare]:
            process.wait(timeout=_SECONDS)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._programs.clear()

    def run(self, *command: str, seconds: float = _SECONDS, environment: dict[str, str] | None = None) -> str:
        """What a program here says, once it has ended well."""
        done = self.attempt(*command, seconds=seconds, environment=environment)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def attempt(
        self, *command: str, seconds: float = _SECONDS, environment: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """As `run`, however it ends."""
        return subprocess.run(
            self._enter(command),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
        )

    def begin(self, *command: str, log: Path, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        """A program that goes on by itself, what it says in a file; it ends with the node."""
        with log.open("a") as output:
            program = subprocess.Popen(
                self._enter(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment(environment),
                start_new_session=True,
            )
        self._programs.append(program)
        return program

    def _enter(self, command: tuple[str, ...]) -> list[str]:
        namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid", f"--wd={HOME}"]
        return ["nsenter", f"--target={self.first_process}", *namespaces, "--", *command]

    def _environment(self, more: dict[str, str] | None) -> dict[str, str]:
        """As after a login: nothing of what this machine's user has set."""
        programs = f"{Path(sys.executable).parent}:{PATH}"
        base = {"PATH": programs, "HOME": str(HOME), "USER": "root", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        base |= {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        return base | (more or {})


def inner_number(process: "subprocess.Popen[Any]") -> int:
    """The program that `Node.begin` started, by this machine's count: what it returned only entered the node."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def send(process: "subprocess.Popen[Any]", number: signal.Signals) -> None:
    """Signal a program that `Node.begin` started."""
    os.kill(inner_number(process), number)
