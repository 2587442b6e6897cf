"""The rigid pose search against the truth of a simulated set: CPU time of one thread per image, and errors left.

    python tests/benchmarks/pose_search.py STORE [--against CHECKOUT] [--ranks 2] [--particles N] [--seeds 0 1]

With another checkout of the project both are measured in turn, in processes of their own. With ranks: the wall clock of
so many processes of one thread against that of one, and the CPU time of the busiest, which tells on a machine that
others use what the wall clock would. Loading modules and reading the store's columns is not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

OWN = Path(__file__).parents[2]
_FAR = 0.1
COLUMNS = ("checkout", "seed", "cpu_ms", "wall_ms", "mean", "median", "far", "shift", "agreement")


def measure(store_path: str, count: int | None, seed: int) -> dict[str, float]:
    """Search once in this process."""
    import numpy as np
    import torch

    from cryoformer_dist.data.store import ParticleStore
    from cryoformer_dist.initialization.pose_search import search_poses
    from cryoformer_dist.physics.pose import squared_frobenius

    torch.set_num_threads(1)
    store = ParticleStore.open(store_path)
    particles, rows = store.particles(), np.arange(count or len(store))
    with np.load(Path(store.attributes.source.path).parent / "truth" / "truth.npz") as truth:
        source = particles.source_row[rows]
        rotation, shift = (torch.from_numpy(truth[name][source]).float() for name in ("rotation", "shift_angstrom"))
    cpu, wall = time.process_time(), time.perf_counter()
    found = search_poses(store, rows, seed)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    squared = squared_frobenius(found.pose.rotation, rotation)
    return {
        "cpu_ms": 1e3 * cpu / len(rows),
        "wall_ms": 1e3 * wall / len(rows),
        "mean": float(squared.mean()),
        "median": float(squared.median()),
        "far": float((squared > _FAR).float().mean()),
        "shift": float((found.pose.shift_angstrom - shift).norm(dim=1).mean()),
        "agreement": found.agreement_found,
    }


def time_on_this_rank(store_path: str, count: int | None) -> list[float]:
    """Seconds of wall clock and of CPU that a search takes when all ranks begin together."""
    import numpy as np
    import torch.distributed

    from cryoformer_dist.data.store import ParticleStore
    from cryoformer_dist.initialization.pose_search import search_poses

    store = ParticleStore.open(store_path)
    rows = np.arange(count or len(store))
    store.particles()
    # First calls of the libraries.
    search_poses(store, rows[:64], 0)
    torch.distributed.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    search_poses(store, rows, 0)
    return [time.perf_counter() - wall, time.process_time() - cpu]


def compare_ranks(store: str, count: int | None, world: int) -> None:
    """One process and several in turn, twice."""
    sys.path.insert(0, str(OWN / "tests"))
    from support.rank_processes import run_on_ranks

    for _ in range(2):
        told = [run_on_ranks(each, time_on_this_rank, store, count) for each in (1, world)]
        for number, clock in enumerate(("wall", "CPU")):
            alone, together = (max(rank[number] for rank in ranks) for ranks in told)
            print(
                f"{clock}: 1 rank {alone:.1f} s, {world} ranks {together:.1f} s: {alone / together:.2f} times",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="a simulated store with its truth")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--ranks", type=int, help="time so many processes against one")
    parser.add_argument("--particles", type=int, help="the first so many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--once", action="store_true", help="measure the installed package once and print JSON")
    asked = parser.parse_args()
    if asked.once:
        print(json.dumps(measure(asked.store, asked.particles, asked.seeds[0])))
        return
    if asked.ranks:
        compare_ranks(asked.store, asked.particles, asked.ranks)
        return
    print(" ".join(f"{name:>10}" for name in COLUMNS))
    for seed in asked.seeds:
        for name, checkout in (("other", asked.against), ("this", OWN)):
            if checkout is not None:
                numbers = measure_apart(checkout, asked.store, asked.particles, seed)
                cells = [f"{numbers[column]:10.4f}" for column in COLUMNS[2:]]
                print(f"{name:>10} {seed:10d}", *cells, flush=True)


def measure_apart(checkout: Path, store: str, count: int | None, seed: int) -> dict[str, float]:
    """Search once in a process of its own, with the package of a checkout."""
    command = [sys.executable, __file__, store, "--once", "--seeds", str(seed)]
    command += [] if count is None else ["--particles", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    numbers: dict[str, float] = json.loads(told)
    return numbers


if __name__ == "__main__":
    main()
