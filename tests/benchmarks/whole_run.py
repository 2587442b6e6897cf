"""The whole run, phase by phase, of three workloads: what it would take, and how much of it one process does alone.

    python tests/benchmarks/whole_run.py [--output FILE]

What a CPU does is measured in this run, on one thread, with small random sets (`phase_costs.py`), and multiplied out.
What GPUs, networks and disks do is counted (`gpu_counts.py`); all that is assumed stands there and in the tables below.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_counts import count_clustered, count_cropped, count_inserted, count_linear, count_searched, count_solved
from phase_costs import DIMENSIONS, LINEAR_BOX, BoxCosts, GeneralCosts, measure_box, measure_general
from speed_report import Table, circumstances

from cryoformer_dist.analysis.flexibility import STATES
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.initialization.search_rounds import ROUNDS, ROUNDS_BY_CONFORMATION
from cryoformer_dist.training.latent_search import REPRESENTATIVES

RunsOn = Literal["driver", "leader", "ranks", "everyone", "tasks", "storage"]
"""One process; one core of the leader while the others wait or do the same; all ranks, shared out; every rank the
same for itself; Ray's tasks on all cores, shared out; the storage that all of them read or write at once."""
ALONE = ("driver", "leader")

# Counted: training steps a second and GPU, in images (a roofline of kernels, encoders, transforms and optimiser at
# 5 to 8 % of the box; no GPU has been timed).
TRAINING_IMAGES_PER_SECOND = {128: 12_000, 256: 2_300}
# Counted, on GPUs today: comparing an image with 25 slices; maps of 256 conformations.
GPU_COMPARED = {128: 3e-5, 256: 6e-5}
GPU_CONFORMATIONS = {128: 0.2, 256: 0.8}
# Counted too: one of those maps, and its way to main memory at 10 GB/s.
GPU_DECODED = {128: 0.2 / 256 + 4 * 128**3 / 1e10, 256: 0.8 / 256 + 4 * 256**3 / 1e10}
# Assumed.
STACK_IMAGES = 100
STORAGE_BYTES_PER_SECOND = 3e9
NETWORK_BYTES_PER_SECOND = 5e9
# Of a launch on two cores (docs/performance.md): until the run is prepared the driver works alone, then every worker
# imports, builds and compiles for itself.
DRIVER_START_SECONDS, WORKERS_START_SECONDS = 16.0, 29.0
BATCH_PER_RANK = 64
EPOCHS, REFRESHES, REFRESHED_IMAGES = 20, 9, 10_000
STEPS_PER_CHECKPOINT, CHECKPOINT_BYTES_A_PARTICLE = 250, 204
SAMPLE, LINEAR_ROUNDS = 10_000, 6
CHUNK_ROWS = 64
# Of a report without a truth: clusters and walks along two axes; pictures of all of them and of flexible regions.
CLUSTERS, CLUSTER_ROUNDS = 10, 50
MAPS, PICTURES, FILES = CLUSTERS + 2 * 9, 36, 28 + 16 + 3


@dataclass(frozen=True, slots=True)
class Workload:
    """Particles and machines.

    Attributes
    ----------
    cores
        Of all machines, for tasks that convert: assumed.
    """

    label: str
    particles: int
    box: int
    ranks: int
    cores: int
    pose_table: bool = False

    @property
    def name(self) -> str:
        """As the issue calls it."""
        return self.label + (", pose table" if self.pose_table else "")

    @property
    def image_bytes(self) -> int:
        """Of all images in the store."""
        return 2 * self.box**2 * self.particles


@dataclass(frozen=True, slots=True)
class Ways:
    """How passes over the particles are made.

    Attributes
    ----------
    passes_on_gpus
        Or on a rank's CPU.
    """

    passes_on_gpus: bool = True


AS_IS = Ways()
VARIANTS = {"passes on CPUs": Ways(passes_on_gpus=False)}
"""The same with searches, maps, linear model and k-means on a thread of each rank: measured where these are counted."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a run.

    Attributes
    ----------
    source
        ``measured`` on this machine, or ``counted``.
    """

    name: str
    runs_on: RunsOn
    seconds: float
    source: Literal["measured", "counted"]
    formula: str


def workloads() -> list[Workload]:
    """Those of the issue, each with given poses and with a table of poses."""
    plain = (
        ("100k x 128, 1 GPU", 100_000, 128, 1, 16),
        ("330k x 256, 8 GPUs", 330_000, 256, 8, 64),
        ("1M x 256, 32 GPUs", 1_000_000, 256, 32, 256),
    )
    return [Workload(*each, pose_table) for each in plain for pose_table in (False, True)]


class WholeRun:
    """Phases of a run of a workload, from what its parts cost."""

    def __init__(self, work: Workload, general: GeneralCosts, costs: BoxCosts, ways: Ways = AS_IS) -> None:
        self._work, self._general, self._costs, self._ways = work, general, costs, ways
        self._share = work.particles / work.ranks

    def phases(self) -> list[Phase]:
        """All of them, in order."""
        parts = [self._store(), self._first_estimates(), self._training(), self._results()]
        return [phase for part in parts for phase in part]

    def _store(self) -> Iterator[Phase]:
        work, general, costs = self._work, self._general, self._costs
        count = work.particles
        source = count * general.star_row + count / STACK_IMAGES * (general.stack + general.described)
        yield _alone("read source", source, "N star rows + N / 100 stacks checked and noted")
        # Store rows are in random order: hardly two images of a shard are of one stack.
        converted = costs.converted + general.stack
        contrast = general.contrast + 3_000 * converted
        yield _alone("contrast and scale", contrast, "back-projections at 48 px + 3,000 images converted")
        yield Phase(
            "convert", "tasks", count * converted / work.cores, "measured", "N images, a stack opened for each / cores"
        )
        moved = work.image_bytes * 3 / STORAGE_BYTES_PER_SECOND
        yield Phase("convert: storage", "storage", moved, "counted", "float32 in, float16 out / storage")
        columns = count * (general.row_written + 3 * general.row_opened)
        yield _alone("columns of the store", columns, "N rows written once, opened by driver, rank, driver")
        yield Phase("start: driver", "driver", DRIVER_START_SECONDS, "counted", "imports, Ray up, run begun")
        yield Phase("start: workers", "everyone", WORKERS_START_SECONDS, "counted", "imports, networks, compilation")

    def _first_estimates(self) -> Iterator[Phase]:
        work, general, costs = self._work, self._general, self._costs
        if work.pose_table:
            rate = general.searched + general.conformed
            rounds = [*ROUNDS, *(one for each in ROUNDS_BY_CONFORMATION for one in each)]
            yield self._pass("pose search", rate, count_searched(rounds), "N / ranks x all rounds")
            cropped = count_cropped(work.box) if self._ways.passes_on_gpus else costs.search_read
            looked = self._share * 3 * (self._costs.read + cropped)
            yield Phase("pose search: reading", "ranks", looked, "measured", "three times N / ranks images")
            leader = general.search_leader + general.conformation_leader
            yield _alone("pose search: maps", leader, "the leader's maps of all rounds", "leader")
        times = 3 if work.pose_table else 1
        yield from self._consensus(times)
        yield from self._linear_model(times, refits=times - 1)

    def _consensus(self, times: int) -> Iterator[Phase]:
        costs = self._costs
        yield from self._back_projections("consensus", times)
        files = times * costs.occupancy + costs.maps_written
        yield _alone("occupancy, maps", files, f"{times} x occupancy + FSC and files", "leader")

    def _back_projections(self, name: str, times: int) -> Iterator[Phase]:
        work, costs, how = self._work, self._costs, f"{times} x "
        gpu = times * count_inserted(work.box)
        yield self._pass(name, times * costs.inserted, gpu, how + "N / ranks images")
        read = times * self._share * costs.read
        yield Phase(f"{name}: reading", "ranks", read, "measured", how + "N / ranks images")
        if self._ways.passes_on_gpus:
            yield Phase(f"{name}: maps", "leader", 3 * times * count_solved(work.box), "counted", how + "3 solves")
        else:
            formula = how + "3 solves, the same on every rank"
            yield _alone(f"{name}: maps", 3 * times * costs.solved, formula, "leader")
        sums = 2 * 3 * (2 * work.box) ** 3 / 2 * 4 / NETWORK_BYTES_PER_SECOND if work.ranks > 1 else 0.0
        yield Phase(f"{name}: reduction", "leader", times * sums, "counted", how + "sums of both halves / network")

    def _linear_model(self, times: int, refits: int) -> Iterator[Phase]:
        general, costs, work = self._general, self._costs, self._work
        sample = _sampled(work.particles) / work.ranks
        on_sample = times * ((LINEAR_ROUNDS + 1) * general.linear_maps + LINEAR_ROUNDS * general.linear_latents)
        on_sample += refits * general.linear_maps
        fits = sample * on_sample + times * self._share * general.linear_latents
        fitted, found = count_linear(LINEAR_BOX, DIMENSIONS)
        gpu = sample * (times * ((LINEAR_ROUNDS + 1) * fitted + LINEAR_ROUNDS * found) + refits * fitted)
        gpu += times * self._share * found
        gpus = self._ways.passes_on_gpus
        formula = f"{times} x (13 fits of a sample + coordinates of N) / ranks"
        yield Phase("linear model", "ranks", gpu if gpus else fits, "counted" if gpus else "measured", formula)
        # A sample of single rows costs their whole chunks.
        looked = min(self._share, CHUNK_ROWS * sample)
        reading = (times * self._share + (times + refits) * looked) * costs.read
        cropped = count_cropped(work.box) if gpus else costs.linear_read
        reading += (times * self._share + (times + refits) * sample) * cropped
        formula = f"{times} x N / ranks images, {times + refits} x those in whose chunks the sample lies"
        yield Phase("linear model: reading", "ranks", reading, "measured", formula)

    def _pass(self, name: str, rate: float, gpu: float, formula: str) -> Phase:
        gpus = self._ways.passes_on_gpus
        return Phase(name, "ranks", self._share * (gpu if gpus else rate), "counted" if gpus else "measured", formula)

    def _training(self) -> Iterator[Phase]:
        work, general, costs = self._work, self._general, self._costs
        fill = self._share * costs.read
        yield Phase("fill memory", "ranks", fill, "measured", "N / ranks images, whole chunks")
        stored = work.image_bytes / STORAGE_BYTES_PER_SECOND
        yield Phase("fill memory: storage", "storage", stored, "counted", "float16 / storage; later passes: page cache")
        steps = EPOCHS * self._share / TRAINING_IMAGES_PER_SECOND[work.box]
        yield Phase("training", "ranks", steps, "counted", f"{EPOCHS} N / ranks / rate")
        waited = max(0.0, EPOCHS * self._share * costs.batched - steps)
        yield Phase("training: data", "ranks", waited, "measured", "what batches of a CPU's memory take beyond a step")
        compared = EPOCHS * self._share * GPU_COMPARED[work.box]
        yield Phase("latent searches", "ranks", compared, "counted", f"{EPOCHS} N / ranks images")
        gpus = self._ways.passes_on_gpus
        means = EPOCHS * (count_clustered(REPRESENTATIVES, DIMENSIONS) if gpus else general.representatives)
        source: Literal["measured", "counted"] = "counted" if gpus else "measured"
        yield Phase("latent searches: k-means", "leader", means, source, f"{EPOCHS} x, by the leader alone")
        maps = EPOCHS * GPU_CONFORMATIONS[work.box] / work.ranks
        yield Phase("latent searches: maps", "ranks", maps, "counted", f"{EPOCHS} x 256 maps / ranks")
        looked = REFRESHES * REFRESHED_IMAGES / work.ranks * (costs.read + 1 / TRAINING_IMAGES_PER_SECOND[work.box])
        yield Phase("occupancy refreshes", "ranks", looked, "measured", f"{REFRESHES} x 10,000 / ranks images")
        masks = REFRESHES * costs.refreshed
        yield _alone("occupancy refreshes: masks", masks, f"{REFRESHES} x, the same on every rank's CPU", "leader")
        saved = EPOCHS * self._share / BATCH_PER_RANK / STEPS_PER_CHECKPOINT
        saving = saved * CHECKPOINT_BYTES_A_PARTICLE * work.particles * general.byte_saved
        yield _alone("checkpoints", saving, "every 250 steps of 64 images a rank, 204 B a particle", "leader")

    def _results(self) -> Iterator[Phase]:
        work, general, costs = self._work, self._general, self._costs
        if work.pose_table:
            yield from self._last_consensus()
        made = costs.network + 2 * costs.encoded
        gpus = self._ways.passes_on_gpus
        if gpus:
            means = count_clustered(CLUSTERS, DIMENSIONS, work.particles, CLUSTER_ROUNDS)
            yield Phase("results: k-means", "leader", means, "counted", "N latents")
            yield Phase("results: network", "leader", costs.network, "measured", "made, the same on every rank")
        else:
            yield _alone("results: k-means", work.particles * general.clustered, "N latents", "leader")
            yield _alone("results: network", made, "made, points encoded twice, the same on every rank", "leader")
        decoded = self._shared(MAPS) * costs.decoded + self._shared(STATES) * costs.attended
        if gpus:
            decoded = (self._shared(MAPS) + self._shared(STATES)) * GPU_DECODED[work.box]
        formula = f"{MAPS} maps, {STATES} with attention / ranks, at least one"
        yield Phase("results: maps", "ranks", decoded, "counted" if gpus else "measured", formula)
        written = self._shared(FILES) * costs.volume_written
        yield Phase("results: files", "ranks", written, "measured", f"{FILES} maps written / ranks, at least one")
        yield _alone("results: verdict", costs.network, "network made once more")
        pictures = PICTURES * (costs.volume_read + costs.drawn)
        yield _alone("results: pictures", pictures, f"{PICTURES} maps read and drawn, on all cores here")

    def _shared(self, things: int) -> float:
        """Of so many things, those of a rank: there may be more ranks than things."""
        return max(1.0, things / self._work.ranks)

    def _last_consensus(self) -> Iterator[Phase]:
        name = "consensus at refined poses"
        yield from self._back_projections(name, 1)
        yield _alone(
            f"{name}: weights", self._costs.maps_written, "FSC of the half maps, as with their files", "leader"
        )


def _sampled(particles: int) -> int:
    """As many as a sample of 10,000 has, which may be almost twice as many."""
    return len(range(0, particles, stride_for(particles, SAMPLE)))


def _alone(name: str, seconds: float, formula: str, where: RunsOn = "driver") -> Phase:
    return Phase(name, where, seconds, "measured", formula)


def serial_share(phases: Iterable[Phase]) -> float:
    """Share of the wall clock that one process, or one core of it, is responsible for."""
    phases = list(phases)
    total = sum(phase.seconds for phase in phases)
    return sum(phase.seconds for phase in phases if phase.runs_on in ALONE) / total if total else 0.0


def predict(
    work: Workload, general: GeneralCosts, boxes: Mapping[int, BoxCosts], variants: Mapping[str, Ways] = VARIANTS
) -> dict[str, Any]:
    """A workload of the JSON: the code as it is, and what variants would make of it."""

    def sum_up(ways: Ways) -> dict[str, Any]:
        phases = WholeRun(work, general, boxes[work.box], ways).phases()
        return {
            "predicted_minutes": sum(phase.seconds for phase in phases) / 60,
            "serial_share": serial_share(phases),
            "phases": [asdict(phase) for phase in phases],
        }

    return {"name": work.name, **sum_up(AS_IS), "variants": {name: sum_up(ways) for name, ways in variants.items()}}


def cost_table(boxes: Mapping[int, BoxCosts]) -> Table:
    """What depends on the box."""
    table = Table("CPU milliseconds of one thread, by box")
    found = {box: asdict(costs) for box, costs in boxes.items()}
    for name in next(iter(found.values())):
        table.rows.append({"part": name} | {f"{box} px": 1e3 * costs[name] for box, costs in found.items()})
    return table


def phase_table(predicted: list[dict[str, Any]]) -> Table:
    """Phases of the code as it is, in seconds, of the workloads with a pose table (the other ones leave phases out)."""
    table = Table("The whole run, seconds")
    shown = [each for each in predicted if each["name"].endswith("pose table")]
    for same in zip(*(each["phases"] for each in shown), strict=True):
        row = {"phase": same[0]["name"], "on": same[0]["runs_on"], "": same[0]["source"]}
        row |= {each["name"]: phase["seconds"] for each, phase in zip(shown, same, strict=True)}
        table.rows.append(row | {"how": same[0]["formula"]})
    return table


def total_table(predicted: list[dict[str, Any]]) -> Table:
    """Minutes and serial share of every workload, as it is and changed."""
    table = Table("In all: minutes, and % that one process or one core is responsible for")
    for each in predicted:
        row = {"workload": each["name"]}
        for name, found in {"as it is": each, **each["variants"]}.items():
            row[name] = f"{found['predicted_minutes']:.1f} ({found['serial_share']:.0%})"
        table.rows.append(row)
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)

    def tell(what: str) -> None:
        print(what, flush=True)

    general = measure_general(tell)
    boxes = {box: measure_box(box, tell) for box in (64, 128, 256)}
    predicted = [predict(work, general, boxes) for work in workloads()]
    print(cost_table(boxes).markdown())
    print(phase_table(predicted).markdown(), total_table(predicted).markdown(), sep="\n")
    if given.output:
        content = {
            "circumstances": circumstances(torch.device("cpu"), 1, ()),
            "costs": {"general": asdict(general), "boxes": {box: asdict(costs) for box, costs in boxes.items()}},
            "workloads": predicted,
        }
        given.output.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
