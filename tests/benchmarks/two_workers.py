"""Two workers of one thread against one, through `TorchEngine` and gloo. Wall time: the machine must be quiet."""

import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from gauges import interleaved
from speed_report import Table
from training_step import PAPER, SMALL, Network, TrainingStep

_NETWORKS = {network.name: network for network in (SMALL, PAPER)}


def workers_table(device: torch.device, quick: bool) -> Table:
    """Images a second of one worker, and of two with a batch each."""
    table = Table("Two workers against one")
    if device.type == "cuda":
        table.notes.append("Skipped: for CPUs only.")
        return table
    for network in (SMALL,) if quick else (SMALL, PAPER):
        table.rows += _compared(network, *((16, 2, 1, 1) if quick else (64, 16, 2, 3)))
    table.notes.append("Wall time: two workers need two idle cores. CPU ms is per image and worker, waiting left out.")
    return table


def _compared(network: Network, box: int, particles: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        crews = {count: _Crew(count, network.name, box, particles, Path(scratch) / str(count)) for count in (1, 2)}
        cpu: dict[int, list[float]] = {1: [], 2: []}

        def sample(count: int) -> float:
            wall, busy = crews[count].steps(steps)
            cpu[count].append(busy)
            return wall

        seconds = interleaved({str(count): lambda count=count: sample(count) for count in crews}, rounds)
        for crew in crews.values():
            crew.dismiss()
    images = steps * particles
    rates = {count: count * images / seconds[str(count)] for count in crews}
    return [
        {
            "network": network.name,
            "workers": count,
            "images/s": rates[count],
            "x one": rates[count] / rates[1],
            "CPU ms": 1e3 * sorted(cpu[count])[len(cpu[count]) // 2] / images,
        }
        for count in crews
    ]


class _Crew:
    """Workers that train one network together whenever they are asked to."""

    def __init__(self, count: int, network: str, box: int, particles: int, meeting_point: Path) -> None:
        context = torch.multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self._pipes = [ours for ours, _ in pipes]
        arguments = [(rank, count, str(meeting_point), network, box, particles) for rank in range(count)]
        self._workers = [
            context.Process(target=_work, args=(pipe, *rest), daemon=True)
            for (_, pipe), rest in zip(pipes, arguments, strict=True)
        ]
        for worker in self._workers:
            worker.start()
        # A first step apart: it allocates and fills caches.
        self.steps(1)

    def steps(self, number: int) -> tuple[float, float]:
        """Wall seconds until the slowest is done, and the CPU seconds of the busiest."""
        for pipe in self._pipes:
            pipe.send(number)
        answers = [pipe.recv() for pipe in self._pipes]
        return max(wall for wall, _ in answers), max(busy for _, busy in answers)

    def dismiss(self) -> None:
        for pipe in self._pipes:
            pipe.send(0)
        for worker in self._workers:
            worker.join()


def _work(pipe: Connection, rank: int, count: int, meeting_point: str, network: str, box: int, particles: int) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=count)
    step = TrainingStep(_NETWORKS[network], box, particles, "10 %", torch.device("cpu"))
    while number := pipe.recv():
        torch.distributed.barrier()
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(number):
            step()
        pipe.send((time.perf_counter() - start, time.process_time() - busy))
    torch.distributed.destroy_process_group()
