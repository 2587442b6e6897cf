"""The smallest simulated set and the smallest network that go the whole way, for tests of any folder."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.data.batch import BatchSource, local_batches
from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.machine import WorkerMemory, measure_worker_memory
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.runs.directory import is_prepared, load_run, write_occupancy
from cryoformer_dist.runs.stage_progress import StageProgress
from cryoformer_dist.runs.training_log import TrainingRecord, read_training_log
from cryoformer_dist.simulation.particle_set import simulate
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.preparation import preparation_key, prepare_like, prepare_run
from cryoformer_dist.training.train_rank import train_rank

PARTICLES = 64
SHARD_ROWS = 16
CPU = torch.device("cpu")
# Enough for anything tiny.
MEMORY = WorkerMemory(2**40)

_MODEL = {
    "hash_grid": {"levels": 2, "base_resolution": 4, "finest_resolution": 8, "log2_table_size": 10},
    # The least that a GPU has kernels for: these runs go there too.
    "decoder": {"queries": 16, "channels": 8, "blocks": 1, "hidden_width": 16, "density_width": 16},
    # The linear start takes longer than all of such a run.
    "latent": {
        "dimensions": 2,
        "start": "random",
        "refinement": "gradient",
        "encoder": {"hidden_layers": 2, "width": 16},
    },
    "pose": {"encoder": {"hidden_layers": 2, "width": 16}},
}
_TRAINING = {
    "seed": 3,
    "epochs": 2,
    "pose_pretraining_epochs": 1,
    "global_batch_size": 12,
    "warmup_steps": 2,
    "freeze_latent_epochs": 0,
    "freeze_pose_epochs": 0,
    "jitter_lattices": 2,
    "occupancy": "sphere",
    "engine": "torch",
    "threads_per_worker": 1,
    "report_every_steps": 2,
    "checkpoint_every_steps": 4,
    "keep_checkpoints": 10,
}

_CLOCKS = (
    "checkpoint_seconds",
    "data_wait_share",
    "memory_gib",
    "particles_per_second",
    "seconds",
    "seconds_per_step",
    "slowness",
)


def write_set(folder: Path, particles: int = PARTICLES, box: int = 16, **simulation: Any) -> Path:
    """Simulate and convert; ``folder/particles/`` and the store, which is returned."""
    config = SimulationConfig(particles=particles, box_size=box, **simulation)
    made = simulate(config, folder / "particles")
    options = ConversionOptions(contrast="light", shard_rows=SHARD_ROWS, chunk_rows=8)
    return convert_serially(plan_conversion(read_particles(made.star), folder / "particles.zarr", options)).path


def tiny_settings(store: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Plain values of a run file, with dotted keys changed."""
    values: dict[str, Any] = {
        "name": "tiny",
        "dataset": {"store": str(store), "loader": "local"},
        "model": {part: dict(section) for part, section in _MODEL.items()},
        "training": dict(_TRAINING),
        "results": {"kmeans_volumes": 2, "principal_components": 1, "volumes_per_component": 2},
    }
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return values


def tiny_config(store: Path, changes: dict[str, Any] | None = None) -> RunConfig:
    return parse_config(tiny_settings(store, changes), RunConfig, "tiny")


class Stop(Exception):
    """What a test ends training with."""


@dataclass
class Listener:
    """Keeps every report; ends training when the step ``stop_at`` is reported."""

    stop_at: int | None = None
    records: list[TrainingRecord] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    stages: list[StageProgress] = field(default_factory=list)
    own_steps: list[int] = field(default_factory=list)
    left_out_steps: int = 0
    signs_of_life: int = 0

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        self.records.append(record)
        if checkpoint is not None:
            self.checkpoints.append(checkpoint)
        if record.step == self.stop_at:
            raise Stop

    def step(self, number: int, left_out: int) -> None:
        self.own_steps.append(number)
        self.left_out_steps = left_out

    def stage(self, progress: StageProgress) -> None:
        self.stages.append(progress)

    def alive(self) -> None:
        self.signs_of_life += 1


def train(
    config: RunConfig,
    run: Path,
    listener: Listener | None = None,
    batches_of: Callable[[ParticleStore], BatchSource] = local_batches,
    device: torch.device = CPU,
) -> Listener:
    """Prepare a run, or go on with it, and train in this process."""
    listener = listener or Listener()
    prepare(config, ParticleStore.open(config.dataset.store), run)
    train_prepared(WorkingFolder.on_disk(run), listener, batches_of, device)
    return listener


@cache
def _prepared() -> "tempfile.TemporaryDirectory[str]":
    """What the first run of each kind started from: that takes longer than a tiny training.

    That others start from the same as if they had made it themselves is told in test_preparation.
    """
    return tempfile.TemporaryDirectory(prefix="prepared_")


def prepare(config: RunConfig, store: ParticleStore, run: Path) -> None:
    """Prepare a run, or go on with it."""
    memory = measure_worker_memory(on_gpu=torch.cuda.is_available())
    if is_prepared(run):
        prepare_run(config, store, run, resume=True, memory=memory)
        return
    like = Path(_prepared().name) / preparation_key(config, store)
    if like.is_dir():
        prepare_like(config, store, run, like, memory)
    else:
        prepare_run(config, store, run, resume=False, memory=memory)
        shutil.copytree(run, like)


def train_prepared(
    working: WorkingFolder,
    listener: Listener,
    batches_of: Callable[[ParticleStore], BatchSource] = local_batches,
    device: torch.device = CPU,
) -> None:
    """This rank's share of a run directory as it stands."""
    config, manifest = load_run(working.folder)
    train_rank(
        working,
        config,
        ParticleStore.open(manifest.store),
        MEMORY,
        listener,
        lambda _, store: batches_of(store),
        device,
    )


def train_from_mask(config: RunConfig, run: Path, mask: torch.Tensor, listener: Listener | None = None) -> Listener:
    """As `train`, but a run that begins allows density in a mask given by hand."""
    if not is_prepared(run):
        prepare_from_mask(config, run, mask)
    return train(config, run, listener)


def prepare_from_mask(config: RunConfig, run: Path, mask: torch.Tensor) -> None:
    """Prepare a run that allows density in a mask given by hand."""
    store = ParticleStore.open(config.dataset.store)
    prepare(config, store, run)
    write_occupancy(run, mask, store.pixel_size_angstrom)


def exact_records(run: Path) -> list[TrainingRecord]:
    """Records without clocks and memory."""
    return [replace(record, **dict.fromkeys(_CLOCKS)) for record in read_training_log(run)]


def assert_same_end(run: Path, other: Path) -> None:
    """Two runs told the same on their way and hold the same bits."""
    assert exact_records(run) == exact_records(other)
    state, other_state = final_state(run), final_state(other)
    assert state.keys() == other_state.keys()
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Weights, tables and occupancy of the newest checkpoint, flat."""
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    tables = {
        f"{name}.{key}": value for name, state in checkpoint.read_tables().items() for key, value in state.items()
    }
    return checkpoint.read_weights() | tables | {"occupancy": checkpoint.read_occupancy()["flat_index"]}
