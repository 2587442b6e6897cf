"""Whole training steps beside one another: ours on the lattice, ours along rays as in the paper, and cryoDRGN's."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cryodrgn_timings import CryoDrgn
from gauges import PeakMemory, Sample, interleaved, sampler
from roofline import Peaks
from speed_report import Table
from training_step import PAPER, PAPER_BF16, PAPER_ENCODER, SMALL, Filling, Network, TrainingStep

FILLINGS: tuple[Filling, ...] = ("sphere", "10 %", "5 %")
RAYS = "rays"
# Its defaults, and a network of the size that suits small boxes.
DRGN_WIDTHS, DRGN_BATCH = (1024, 256), 16


@dataclass(frozen=True)
class Plan:
    """One row of ours: a network, where it is evaluated, and how many images a step has."""

    network: Network
    filling: Filling | None
    particles: int

    @property
    def name(self) -> str:
        return f"ours, {self.network.name}, {self.filling or RAYS}, {self.particles} images"


@dataclass
class Contestant:
    """What one row needs beside its time."""

    row: dict[str, Any]
    particles: int
    roofline_seconds: float | None = None
    peak_bytes: int | None = None


def plans(box: int, device: torch.device, quick: bool) -> Iterator[Plan]:
    """What to time at one box."""
    if quick:
        yield Plan(SMALL, "10 %", 2)
        yield Plan(SMALL, None, 1)
        return
    on_gpu = device.type == "cuda"
    for network in (SMALL, PAPER, PAPER_BF16) if on_gpu else (SMALL, PAPER):
        for filling in FILLINGS:
            for particles in (8, 32, 128) if on_gpu else (16,):
                yield Plan(network, filling, particles)
    yield Plan(PAPER_ENCODER, "10 %", 32 if on_gpu else 16)
    # Every intermediate of every point and image is kept: more does not fit.
    rays = 2 if on_gpu and box <= 128 else 1
    yield Plan(SMALL, None, rays)
    yield Plan(PAPER, None, rays)


def step_table(box: int, device: torch.device, peaks: Peaks, cryodrgn: Path | None, quick: bool) -> Table:
    """One box: images a second, and how many times those of cryoDRGN and of the rays of the same network."""
    table = Table(f"Training step, {box} pixels")
    contestants: dict[str, Contestant] = {}
    samples: dict[str, Sample] = {}
    with ExitStack() as open_ended:
        for plan in plans(box, device, quick):
            _enter(plan, box, device, peaks, contestants, samples)
        for width in DRGN_WIDTHS if cryodrgn else ():
            batch = 2 if quick else DRGN_BATCH
            rival = open_ended.enter_context(CryoDrgn(cryodrgn, box, width, batch, device))
            row = {"program": f"cryoDRGN, 3 x {width}", "where": "slices", "images": rival.particles, "points": None}
            contestants[rival.name] = Contestant(row, rival.particles, peak_bytes=rival.peak_bytes)
            samples[rival.name] = rival.sample
        seconds = interleaved(samples, rounds=1 if quick else 5 if device.type == "cuda" else 3)
    table.rows = _rows(contestants, seconds)
    if not cryodrgn:
        table.notes.append("cryoDRGN: skipped, no --cryodrgn-env.")
    return table


def _enter(
    plan: Plan,
    box: int,
    device: torch.device,
    peaks: Peaks,
    contestants: dict[str, Contestant],
    samples: dict[str, Sample],
) -> None:
    row = {"program": f"ours, {plan.network.name}", "where": plan.filling or RAYS, "images": plan.particles}
    gc.collect()
    memory = PeakMemory(device)
    try:
        step = TrainingStep(plan.network, box, plan.particles, plan.filling, device)
        sample = sampler(step, device, at_least_seconds=0.1 if device.type == "cuda" else 0.0)
    except torch.OutOfMemoryError:
        contestants[plan.name] = Contestant({**row, "points": "out of memory"}, plan.particles)
        return
    entered = Contestant({**row, "points": step.points}, plan.particles)
    entered.roofline_seconds, entered.peak_bytes = step.roofline_seconds(peaks), memory.read()
    contestants[plan.name], samples[plan.name] = entered, sample


def _rows(contestants: dict[str, Contestant], seconds: dict[str, float]) -> list[dict[str, Any]]:
    rates = {name: contestants[name].particles / spent for name, spent in seconds.items()}
    rays = {
        contestants[name].row["program"]: rate for name, rate in rates.items() if contestants[name].row["where"] == RAYS
    }
    rivals = [
        rate for name, rate in rates.items() if contestants[name].row["program"] == f"cryoDRGN, 3 x {DRGN_WIDTHS[0]}"
    ]
    rows = []
    for name, contestant in contestants.items():
        rate = rates.get(name)
        own_rays = rays.get(contestant.row["program"])
        least = contestant.roofline_seconds
        rows.append(
            contestant.row
            | {
                "ms": rate and 1e3 * seconds[name],
                "images/s": rate,
                "x cryoDRGN": rate / rivals[0] if rate and rivals else None,
                "x rays": rate / own_rays if rate and own_rays else None,
                "% of roofline": 100 * least / seconds[name] if rate and least else None,
                "peak MB": contestant.peak_bytes and contestant.peak_bytes / 1e6,
            }
        )
    return rows
