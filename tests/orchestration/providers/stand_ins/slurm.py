"""Stand-in for Slurm's commands: jobs run here at once, their nodes are addresses of loopback.

Called as ``slurm.py COMMAND ARGUMENTS``; what it knows of jobs lies in the folder SLURM_STAND_IN.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

KNOWN = Path(os.environ["SLURM_STAND_IN"])
KILL_WAIT_SECONDS = 3.0


def option(arguments: list[str], name: str, default: str = "") -> str:
    return next((word.partition("=")[2] for word in arguments if word.startswith(f"--{name}=")), default)


def keep(job: str, word: str, code: str = "0:0") -> None:
    temporary = KNOWN / f"{job}.tmp"
    temporary.write_text(f"JobId={job} JobState={word} Reason=None ExitCode={code}\n")
    temporary.replace(KNOWN / f"{job}.state")


def sbatch(arguments: list[str]) -> None:
    # Unlike those of other tests on this machine.
    job = str(os.getpid())
    keep(job, "PENDING")
    with open(KNOWN / f"{job}.runner", "w") as output:
        subprocess.Popen(
            [sys.executable, __file__, "run", job, arguments[-1]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    print(job)


def run(arguments: list[str]) -> None:
    job, script = arguments
    options = re.findall(r"^#SBATCH (\S+)", Path(script).read_text(), re.MULTILINE)
    nodes = int(option(options, "nodes"))
    environment = {
        **os.environ,
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": ",".join(f"127.0.0.{number + 1}" for number in range(nodes)),
    }
    starts = 0
    while True:
        keep(job, "RUNNING")
        if starts:
            environment["SLURM_RESTART_COUNT"] = str(starts)
        with open(option(options, "output").replace("%j", job), "a") as log:
            batch = subprocess.Popen(
                ["bash", script],
                cwd=option(options, "chdir"),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (KNOWN / f"{job}.pid").write_text(str(batch.pid))
        code = batch.wait()
        sweep(job)
        again = KNOWN / f"{job}.requeue"
        if not again.exists():
            break
        again.unlink()
        starts += 1
        keep(job, "PENDING")
        time.sleep(float(os.environ.get("SLURM_STAND_IN_QUEUE_SECONDS", "0")))
    if (KNOWN / f"{job}.cancelled").exists():
        keep(job, "CANCELLED", "0:15")
    else:
        keep(job, "FAILED" if code else "COMPLETED", f"{max(code, 0)}:{max(-code, 0)}")


def sweep(job: str) -> None:
    """End what a job left behind, as Slurm does, and write it down."""
    mark = f"SLURM_JOB_ID={job}\0".encode()
    with open(KNOWN / "left_behind", "a") as left:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    left.write((process / "cmdline").read_text().replace("\0", " ") + "\n")
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                # Ended meanwhile, or another user's.
                continue


def srun(arguments: list[str]) -> None:
    first = next(place for place, word in enumerate(arguments) if not word.startswith("--"))
    options, command = arguments[:first], arguments[first:]
    with open(KNOWN / "steps", "a") as steps:
        # A program's text has lines of its own.
        steps.write(" ".join(" ".join(arguments).split()) + "\n")
    tasks = [subprocess.Popen(command) for _ in range(int(option(options, "ntasks", "1")))]

    def forward(number: int, _: object) -> None:
        for task in tasks:
            task.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    sys.exit(max(task.wait() for task in tasks))


def scontrol(arguments: list[str]) -> None:
    if arguments[:2] == ["show", "hostnames"]:
        print(arguments[2].replace(",", "\n"))
    elif arguments[0] == "requeue":
        (KNOWN / f"{arguments[1]}.requeue").touch()
    else:
        state = KNOWN / f"{arguments[-1]}.state"
        if not state.exists():
            sys.exit("slurm_load_jobs error: Invalid job id specified")
        print(state.read_text(), end="")


def sacct(arguments: list[str]) -> None:
    kept = KNOWN / "sacct"
    if not kept.exists():
        sys.exit("Slurm accounting storage is disabled")
    print(kept.read_text(), end="")


def scancel(arguments: list[str]) -> None:
    (KNOWN / f"{arguments[0]}.cancelled").touch()
    batch = int((KNOWN / f"{arguments[0]}.pid").read_text())
    os.kill(batch, signal.SIGTERM)
    subprocess.Popen(
        ["sh", "-c", f"sleep {KILL_WAIT_SECONDS}; kill -KILL -{batch}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


if __name__ == "__main__":
    {"sbatch": sbatch, "run": run, "srun": srun, "scontrol": scontrol, "sacct": sacct, "scancel": scancel}[sys.argv[1]](
        sys.argv[2:]
    )
