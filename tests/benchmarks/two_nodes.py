"""Two nodes of one worker each against one node, with a network between them. Wall time: the machine must be quiet.

The nodes are namespaces of this machine, joined by a link with a delay and a rate (`cluster_in_a_box`); beside them two
that train apart and exchange nothing, the machine's limit. As root:
``PYTHONPATH=.:tests:tests/benchmarks python tests/benchmarks/two_nodes.py``.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed
from cluster_in_a_box.box import Box, cluster_in_a_box
from cluster_in_a_box.node import REPOSITORY
from cluster_in_a_box.requirements import find_obstacle
from speed_report import Table
from training_step import DEFAULT, TrainingStep

_PORT = 29500
_SECONDS = 600
_ROOMS = ":".join(str(REPOSITORY / place) for place in ("", "tests", "tests/benchmarks"))


def measure(box: Box, crew: int, together: bool, settings: argparse.Namespace) -> dict[str, float]:
    """Images a second of one worker on each of the first nodes, and the share of its time that it spends exchanging."""
    meeting = f"tcp://{box.nodes[0].address}:{_PORT}" if together and crew > 1 else ""
    sizes = [str(settings.particles), str(settings.steps), str(settings.rounds)]
    logs = [box.shared / f"worker-{rank}.json" for rank in range(crew)]
    workers = []
    for rank, log in enumerate(logs):
        log.unlink(missing_ok=True)
        program = ["python", str(Path(__file__).resolve()), "--work", str(rank), str(crew), meeting, *sizes]
        workers.append(box.nodes[rank].begin(*program, log=log, environment={"PYTHONPATH": _ROOMS}))
    for worker, log in zip(workers, logs, strict=True):
        if worker.wait(timeout=_SECONDS) != 0:
            raise RuntimeError(log.read_text())
    told = [json.loads(log.read_text().splitlines()[-1]) for log in logs]
    # The slower one ends a round.
    seconds = median(map(max, zip(*(each["seconds"] for each in told), strict=True)))
    return {
        "images/s": crew * settings.particles * settings.steps / seconds,
        "exchange %": 100 * max(each["exchange_share"] for each in told),
        "gradients MB": told[0]["gradients_mb"],
    }


def work(rank: int, world: int, meeting: str, particles: int, steps: int, rounds: int) -> dict[str, Any]:
    """Train, on a node, and tell how long rounds of steps took."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if meeting:
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    sent: list[int] = []
    waited: list[float] = []
    original = torch.distributed.all_reduce

    def timed(values: torch.Tensor, *rest: Any, **options: Any) -> Any:
        start = time.perf_counter()
        done = original(values, *rest, **options)
        waited.append(time.perf_counter() - start)
        sent.append(values.nbytes)
        return done

    torch.distributed.all_reduce = timed
    step = TrainingStep(DEFAULT, 64, particles, "10 %", torch.device("cpu"))
    step()
    waited.clear()
    seconds = []
    for _ in range(rounds):
        if meeting:
            torch.distributed.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "exchange_share": sum(waited) / sum(seconds),
        "gradients_mb": max(sent, default=0) / 1e6,
    }


def compare(settings: argparse.Namespace) -> Table:
    """One node, two apart, two on an undelayed link, two on a slow one."""
    table = Table("Two nodes against one, default network, 64 px")
    with cluster_in_a_box() as box:
        found = {"one": measure(box, 1, False, settings), "two apart": measure(box, 2, False, settings)}
        found["two, undelayed"] = measure(box, 2, True, settings)
        for node in box.nodes:
            box.network.slow_down(node, settings.delay_ms, settings.gbit)
        found[f"two, {settings.delay_ms:g} ms each way, {settings.gbit:g} Gbit/s"] = measure(box, 2, True, settings)
    one = found["one"]["images/s"]
    for name, values in found.items():
        row: dict[str, Any] = {"nodes": name, **values, "x one": values["images/s"] / one}
        table.rows.append(row)
    return table


def main() -> None:
    """Read the command line and print the table."""
    if sys.argv[1:2] == ["--work"]:
        rank, world, meeting, *sizes = sys.argv[2:]
        print(json.dumps(work(int(rank), int(world), meeting, *map(int, sizes))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=float, default=0.5, help="one way: a ping takes twice as long")
    parser.add_argument("--gbit", type=float, default=1.0, help="rate of the link, Gbit/s")
    parser.add_argument("--particles", type=int, default=16, help="of a worker in a step")
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    parser.add_argument("--rounds", type=int, default=5, help="the median is told")
    settings = parser.parse_args()
    if obstacle := find_obstacle():
        raise SystemExit(obstacle)
    print(compare(settings).markdown())


if __name__ == "__main__":
    main()
