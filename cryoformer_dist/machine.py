"""The memory and the threads that a training worker finds on its machine."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

# Left to the rest of the machine, and to what no plan foresees.
_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Where a run's workers live.

    Attributes
    ----------
    bytes
        Memory that one worker may use: of its GPU, or its share of what its machine has free.
    workers
        Training workers in all, or the fewest where their number may change: they take the largest batches.
    on_gpu
        Whether ``bytes`` are a GPU's.
    """

    bytes: int
    workers: int = 1
    on_gpu: bool = False


def measure_worker_memory(on_gpu: bool, workers_per_device: int = 1, workers: int = 1) -> WorkerMemory:
    """Memory of a worker that would run in this process.

    Parameters
    ----------
    on_gpu
        Whether it trains on the GPU.
    workers_per_device
        Workers on the same GPU, or, without one, on the same machine.
    workers
        See `WorkerMemory`.
    """
    free = torch.cuda.mem_get_info()[0] if on_gpu else free_bytes()
    return WorkerMemory(int(_SHARE * free / workers_per_device), workers, on_gpu)


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB"


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Bound this process's CPU threads: workers that each take the whole machine slow one another down many times."""
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)


def free_bytes(system: Path = Path("/")) -> int:
    """Main memory that processes may still take: what the machine has, or what is left of a container's limit."""
    return min([_machine_free(system), *_container_free(system)])


def _machine_free(system: Path) -> int:
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
    except OSError:
        # Not Linux: nothing tells what is free.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kibibytes) * 1024


def _container_free(system: Path) -> list[int]:
    """What the limits of this process's control group and of those above it leave (cgroup 1 or 2)."""
    try:
        groups = [line.split(":", 2) for line in (system / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        if controllers == "":
            root, limit, usage = system / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = system / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.strip("/")
        # Inside a container the path may be that of the host: its root is then the group itself.
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                found += _left_in(group, limit, usage)
    return found


def _left_in(group: Path, limit: str, usage: str) -> list[int]:
    try:
        largest, used = (group / limit).read_text().strip(), int((group / usage).read_text())
    except (OSError, ValueError):
        return []
    if largest == "max":
        return []
    return [max(0, int(largest) - used + _reclaimable(group))]


def _reclaimable(group: Path) -> int:
    """File pages that give way when memory is asked for, and so are free."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
