"""CPU seconds of training, epoch by epoch, of this process or of a child; kept beside the snapshots."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.5


class CpuClock:
    """``clock.jsonl`` of a folder: CPU seconds spent until an epoch was finished, over all attempts.

    Work that was lost (an epoch that was killed half-way) is not counted: its epoch is timed when it is done again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "clock.jsonl"

    def read(self) -> dict[int, float]:
        """CPU seconds at the end of each finished epoch."""
        if not self._path.is_file():
            return {}
        records = [json.loads(line) for line in self._path.read_text().splitlines()]
        return {record["epoch"]: record["cpu_seconds"] for record in records}

    def spent(self) -> float:
        return max(self.read().values(), default=0.0)

    def append(self, epoch: int, cpu_seconds: float) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as stream:
            stream.write(json.dumps({"epoch": epoch, "cpu_seconds": round(cpu_seconds, 2)}) + "\n")


def one_thread() -> dict[str, str]:
    """Environment of a child that may use one CPU."""
    bound = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return os.environ | dict.fromkeys(bound, "1") | {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}


def run_timed(command: list[str], log: Path, clock: CpuClock, finished: Callable[[], set[int]]) -> None:
    """Run a child to its end, noting its CPU seconds whenever ``finished`` names a new epoch; Linux only.

    Raises
    ------
    RuntimeError
        If the child fails: its output is in the log.
    """
    before, known = clock.spent(), finished()
    with log.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=one_thread())
    try:
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            spent = usage.ru_utime + usage.ru_stime if ended else _cpu_seconds(process.pid)
            for epoch in sorted(finished() - known):
                clock.append(epoch, before + spent)
                known.add(epoch)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            time.sleep(_POLL_SECONDS)
    finally:
        if process.returncode is None:
            process.terminate()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}: see {log}")


def _cpu_seconds(pid: int) -> float:
    """User and system time of a living process and of the children it has waited for."""
    # The name in parentheses may hold blanks; the fields after it do not.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
