from pathlib import Path

import pytest

from cryoformer_dist.machine import free_bytes, measure_worker_memory

MIB = 2**20


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {800 * 1024} kB\n"}
V2 = {"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/memory.max": "max\n"}
V2 |= {
    f"sys/fs/cgroup/job/{name}": text
    for name, text in {
        "memory.max": str(500 * MIB),
        "memory.current": str(300 * MIB),
        "memory.stat": f"anon 1\ninactive_file {50 * MIB}\n",
    }.items()
}
V1 = {"proc/self/cgroup": "9:cpu:/\n4:cpuset,memory:/host/path\n"}
V1 |= {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(400 * MIB)}
V1 |= {"sys/fs/cgroup/memory/memory.usage_in_bytes": str(100 * MIB)}
UNLIMITED = V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}


@pytest.mark.parametrize(
    ("files", "mebibytes"),
    [({}, 800), (V2, 250), (V1, 300), (UNLIMITED, 800), ({"proc/self/cgroup": "0::/\n"}, 800)],
    ids=["machine", "cgroup 2", "cgroup 1 in a container", "cgroup 1 without limit", "cgroup 2 without limit"],
)
def test_free_memory_is_the_least_of_machine_and_containers(
    tmp_path: Path, files: dict[str, str], mebibytes: int
) -> None:
    assert free_bytes(_write(tmp_path, MACHINE | files)) == mebibytes * MIB


def test_workers_share_what_is_free() -> None:
    alone, four = (
        measure_worker_memory(on_gpu=False),
        measure_worker_memory(on_gpu=False, workers_per_device=4, workers=8),
    )
    assert four.bytes == pytest.approx(alone.bytes / 4, rel=0.2)
    assert four.workers == 8
