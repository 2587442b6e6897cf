"""What `ray exec` runs on the head of a cluster: talks to the job server there, which listens on loopback only.

Ray and ssh print around a command whatever they like; lines meant for the one who asked begin with a mark.
"""

import asyncio
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TypedDict

from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

LINE, ANSWER = "cryoformer-dist| ", "cryoformer-dist= "
_AT_WORK = (JobStatus.PENDING, JobStatus.RUNNING)


class Answer(TypedDict, total=False):
    """What is answered, by question.

    ``nodes``: how many are up. ``state``: Ray's word for the job (``None`` for one it does not know), its driver's exit
    code, and how many other jobs are at work on the cluster. To all others nothing.
    """

    nodes: int
    status: str | None
    exit_code: int | None
    others: int


def main(words: list[str]) -> None:
    """One question: ``nodes COUNT SECONDS``, ``submit FILE``, ``tail JOB``, ``state JOB`` or ``stop JOB``."""
    verb, *rest = words
    if verb == "nodes":
        answer({"nodes": _wait_for_nodes(int(rest[0]), float(rest[1]))})
    elif verb == "submit":
        _submit(Path(rest[0]).expanduser())
    elif verb == "tail":
        asyncio.run(_tail(rest[0]))
    elif verb == "state":
        answer(_examine_job(rest[0]))
    else:
        JobSubmissionClient().stop_job(rest[0])
        answer({})


def answer(values: Answer) -> None:
    """Tell the one who asked."""
    sys.stdout.write(f"{ANSWER}{json.dumps(values)}\n")


def _wait_for_nodes(count: int, seconds: float) -> int:
    """How many nodes are up, once they are so many or the time is over."""
    end = time.monotonic() + seconds
    while (found := len(list_nodes(filters=[("state", "=", "ALIVE")]))) < count and time.monotonic() < end:
        time.sleep(2)
    return found


def _submit(file: Path) -> None:
    """Start what a file beside the launch's two asks for; paths in it may begin at this user's home."""
    job = json.loads(file.read_text())
    JobSubmissionClient().submit_job(
        entrypoint=shlex.join(os.path.expanduser(word) for word in job["command"]),
        submission_id=job["job"],
        runtime_env={"env_vars": job["environment"]},
        entrypoint_num_cpus=0,
    )
    answer({})


async def _tail(job: str) -> None:
    rest = ""
    async for chunk in JobSubmissionClient().tail_job_logs(job):
        *lines, rest = (rest + chunk).split("\n")
        sys.stdout.writelines(f"{LINE}{line}\n" for line in lines)
        sys.stdout.flush()
    if rest:
        sys.stdout.write(f"{LINE}{rest}\n")
    answer({})


def _examine_job(job: str) -> Answer:
    """Ray's word, the driver's exit code, and how many other jobs are at work on the cluster."""
    jobs = JobSubmissionClient().list_jobs()
    others = sum(other.submission_id != job and other.status in _AT_WORK for other in jobs)
    found = next((other for other in jobs if other.submission_id == job), None)
    if found is None:
        return {"status": None, "exit_code": None, "others": others}
    return {"status": found.status.value, "exit_code": found.driver_exit_code, "others": others}


if __name__ == "__main__":
    main(sys.argv[1:])
