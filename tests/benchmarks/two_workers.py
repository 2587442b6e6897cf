"""Two workers of one thread against one, through gloo and either engine. Wall time: the machine must be quiet.

Beside them two that train apart and exchange nothing: what the machine gives two programs at once is the limit. Two
virtual processors may be two threads of one core.
"""

import os
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
from training_step import PAPER, SMALL, EngineName, Network, TrainingStep

_NETWORKS = {network.name: network for network in (SMALL, PAPER)}


def workers_table(device: torch.device, quick: bool) -> Table:
    """Images a second of one worker, of two with a batch each, and of two that know nothing of one another."""
    table = Table("Two workers against one")
    if device.type == "cuda":
        table.notes.append("Skipped: for CPUs only.")
        return table
    engines: tuple[EngineName, ...] = ("torch", "deepspeed")
    for engine in engines[:1] if quick else engines:
        for network in (SMALL,) if quick else (SMALL, PAPER):
            table.rows += _compared(engine, network, *((16, 2, 1, 1) if quick else (64, 16, 2, 3)))
    table.notes.append("Wall time: two workers need two idle cores. CPU ms is per image and worker, waiting left out.")
    return table


def _compared(
    engine: EngineName, network: Network, box: int, particles: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        crews = {
            "1": _Crew(1, True, engine, network.name, box, particles, Path(scratch) / "one"),
            "2": _Crew(2, True, engine, network.name, box, particles, Path(scratch) / "two"),
            "2 apart": _Crew(2, False, engine, network.name, box, particles, Path(scratch) / "apart"),
        }
        cpu: dict[str, list[float]] = {name: [] for name in crews}

        def sample(name: str) -> float:
            wall, busy = crews[name].steps(steps)
            cpu[name].append(busy)
            return wall

        seconds = interleaved({name: lambda name=name: sample(name) for name in crews}, rounds)
        for crew in crews.values():
            crew.dismiss()
    images = steps * particles
    rates = {name: crew.size * images / seconds[name] for name, crew in crews.items()}
    return [
        {
            "engine": engine,
            "network": network.name,
            "workers": name,
            "images/s": rates[name],
            "x one": rates[name] / rates["1"],
            "x two apart": rates[name] / rates["2 apart"],
            "CPU ms": 1e3 * sorted(cpu[name])[len(cpu[name]) // 2] / images,
        }
        for name in crews
    ]


class _Crew:
    """Workers that train one network together, or one each, whenever they are asked to."""

    def __init__(
        self,
        count: int,
        together: bool,
        engine: EngineName,
        network: str,
        box: int,
        particles: int,
        meeting_point: Path,
    ) -> None:
        self.size = count
        context = torch.multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self._pipes = [ours for ours, _ in pipes]
        meetings = [
            (rank, count, str(meeting_point)) if together else (0, 1, f"{meeting_point}-{rank}")
            for rank in range(count)
        ]
        arguments = [(*meeting, engine, network, box, particles) for meeting in meetings]
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


def _work(
    pipe: Connection,
    rank: int,
    world: int,
    meeting_point: str,
    engine: EngineName,
    network: str,
    box: int,
    particles: int,
) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    # DeepSpeed asks for it.
    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=world)
    step = TrainingStep(_NETWORKS[network], box, particles, "10 %", torch.device("cpu"), engine)
    while number := pipe.recv():
        torch.distributed.barrier()
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(number):
            step()
        pipe.send((time.perf_counter() - start, time.process_time() - busy))
    torch.distributed.destroy_process_group()
