"""What runs in a process that trains: its share of the run, its loader, and word of what it does."""

import faulthandler
import gc
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import BatchSource, local_batches, resident_batches
from cryoformer_dist.data.dataset import ray_batches
from cryoformer_dist.data.ownership import Ownership
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import (
    CheckpointNotWrittenError,
    ConfigError,
    CryoFormerError,
    ImagesElsewhereWarning,
    NoWholeCheckpointError,
    RunStopped,
    TrainingError,
)
from cryoformer_dist.machine import WorkerMemory, gib, measure_worker_memory, set_threads
from cryoformer_dist.orchestration.prometheus import Publish, SignOfLife, StorageRoom, publishing
from cryoformer_dist.ranks import gather_objects, rank_and_world
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.runs.checkpoint_choice import agree_on_checkpoint
from cryoformer_dist.runs.directory import load_run, open_run_directory, open_run_store, selected_rows
from cryoformer_dist.runs.layout import RAY_POINTER
from cryoformer_dist.runs.stage_progress import StageProgress
from cryoformer_dist.runs.training_log import TrainingRecord
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.memory import leaves_room
from cryoformer_dist.training.reporting import Reporter, tell_stages
from cryoformer_dist.training.train_rank import Loader, join_world_of_one, train_rank

_SECONDS_BETWEEN_POINTERS = 10.0


@dataclass(frozen=True, slots=True)
class WorkerArguments:
    """What a Ray Train worker is told.

    Attributes
    ----------
    home
        Run directory, visible to every node.
    threads
        CPU threads it may use.
    silence_seconds
        See `RayReporter`.
    memory
        That it may use.
    """

    home: str
    threads: int
    silence_seconds: float
    memory: WorkerMemory


class RayReporter:
    """Shows records to those who watch the cluster; Ray Train is told of checkpoints, and of nothing else.

    It takes one report in two seconds, and lets a worker that has more to say wait. Records reach the driver by the
    training log, and a checkpoint is a pointer to where it already lies, which a thread of Ray's hands over.

    Parameters
    ----------
    run
        Run directory on storage that every node sees.
    silence_seconds
        A worker that is not heard of for so long writes down where it hangs and ends itself, to be replaced.
    publish
        Shows news to those who watch the cluster.
    """

    def __init__(self, run: Path, silence_seconds: float, publish: Publish) -> None:
        self._run, self._silence, self._publish = run, silence_seconds, publish
        self._pointed = -math.inf
        self.alive()

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        """See `Reporter`."""
        self.alive()
        self._publish(record)
        # Storage that is away is told of by who writes there.
        with suppress(OSError):
            self._publish(StorageRoom.of(self._run))
        if checkpoint is None:
            return
        # Pointers that come faster than Ray takes them would pile up, and keep the worker when training has ended. It
        # wants one of every rank: the leader's clock decides.
        due = time.monotonic() - self._pointed >= _SECONDS_BETWEEN_POINTERS
        if gather_objects(due)[0]:
            self.point_to(checkpoint)

    def point_to(self, checkpoint: Path) -> None:
        """Tell Ray where a checkpoint lies; every rank does so equally often."""
        self._pointed = time.monotonic()
        # Ray deletes it when it has taken it.
        folder = Path(tempfile.mkdtemp())
        (folder / RAY_POINTER).write_text(json.dumps({"checkpoint": str(checkpoint.relative_to(self._run))}))
        ray.train.report(
            {},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )

    def step(self, number: int, left_out: int) -> None:
        """See `Reporter`; the watch over silence goes on, as starting it anew takes longer than short steps allow."""
        self._publish(SignOfLife(number, left_out))

    def stage(self, progress: StageProgress) -> None:
        """See `Reporter`."""
        self.alive()
        self._publish(progress)

    def alive(self) -> None:
        """See `Reporter`."""
        faulthandler.dump_traceback_later(self._silence, exit=True)
        self._publish(SignOfLife())


class SilentReporter:
    """For runs whose training log is word enough."""

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        """See `Reporter`."""

    def step(self, number: int, left_out: int) -> None:
        """See `Reporter`."""

    def stage(self, progress: StageProgress) -> None:
        """See `Reporter`."""

    def alive(self) -> None:
        """See `Reporter`."""


def run_worker(arguments: WorkerArguments) -> CryoFormerError | None:
    """Ray Train calls this in every worker, again after each restart; returns what no restart would fix."""
    set_threads(arguments.threads)
    device = ray.train.torch.get_device()
    try:
        rank = ray.train.get_context().get_world_rank()
        with open_run_directory(arguments.home) as working, publishing(working.folder.name, rank) as publish:
            config, manifest = load_run(working.folder)
            store = open_run_store(manifest)
            reporter = RayReporter(working.folder, arguments.silence_seconds, publish)
            loader = choose_loader(device, reporter.alive)
            train_rank(working, config, store, arguments.memory, reporter, loader, device)
            written = checkpoints(working.folder)
            if written:
                reporter.point_to(written[-1].folder)
            _make_maps(working, config, reporter, device)
    except (ConfigError, TrainingError, CheckpointNotWrittenError, NoWholeCheckpointError, RunStopped) as error:
        # All ranks meet these together. Raised, Ray would start the workers again, to meet them again.
        return error
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def train_alone(
    working: WorkingFolder, config: RunConfig, store: ParticleStore, reporter: Reporter, threads: int, on_gpu: bool
) -> None:
    """Train a prepared run in this thread, its only rank, without Ray Train, and make its maps.

    Parameters
    ----------
    working
        Run directory.
    config, store
        As the run directory names them.
    reporter
        Told of every report.
    threads
        CPU threads below this one.
    on_gpu
        Whether the network lives on the GPU.
    """
    set_threads(threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    join_world_of_one(device)
    loader = choose_loader(device, reporter.alive, with_ray=False)
    train_rank(working, config, store, measure_worker_memory(on_gpu), reporter, loader, device)
    _make_maps(working, config, reporter, device)


def _make_maps(working: WorkingFolder, config: RunConfig, reporter: Reporter, device: torch.device) -> None:
    """Make this rank's share of the maps of a trained run."""
    # Not before: it takes seconds to import, and nobody waits for it to train.
    from cryoformer_dist.analysis.results import reconstruct_once

    # The network that was trained, its optimiser and the images are not needed any more.
    gc.collect()
    checkpoint = agree_on_checkpoint(working, config.training.storage_patience_seconds)
    reconstruct_once(working, config, device, tell_stages(working, reporter), checkpoint)


def choose_loader(device: torch.device, alive: Callable[[], None], with_ray: bool = True) -> Loader:
    """What makes batches of a store as ``dataset.loader`` of a configuration says, ``auto`` settled, onto a device.

    Where there is no Ray, ``local`` takes the place of ``ray``, and where there is no room, that of ``resident``.

    Parameters
    ----------
    alive
        Called while images are read that stay.
    """

    def load(config: RunConfig, store: ParticleStore) -> BatchSource:
        name = config.dataset.loader
        if name == "resident":
            return _share_batches(store, config, device, alive)
        return (ray_batches if name == "ray" and with_ray else local_batches)(store, device)

    return load


def _share_batches(
    store: ParticleStore, config: RunConfig, device: torch.device, alive: Callable[[], None]
) -> BatchSource:
    rank, world = rank_and_world()
    share = Ownership(selected_rows(config, store), store.shard_size, world).share(rank)
    size = 2 * store.box_size**2 * len(share)
    home = choose_home(size, device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if home != device and rank == 0:
        _warn_of_images_elsewhere(size, home)
    return local_batches(store, device) if home is None else resident_batches(store, share, device, home, alive)


def _warn_of_images_elsewhere(size: int, home: torch.device | None) -> None:
    where = "are read ahead of every batch, as with dataset.loader: local" if home is None else "stay in main memory"
    warnings.warn(
        f"dataset.loader: resident: a worker's images, {gib(size)}, leave no room on its GPU and {where}; more workers "
        "have smaller shares",
        ImagesElsewhereWarning,
        stacklevel=2,
    )


def choose_home(size: int, device: torch.device, ranks_here: int) -> torch.device | None:
    """Where a rank's images stay: on its device, else in main memory, else nowhere (``None``).

    Parameters
    ----------
    size
        Bytes of them.
    ranks_here
        Ranks that share this machine's memory.
    """
    # Without a GPU the plan has seen to it that they fit.
    if device.type != "cuda" or leaves_room(size, measure_worker_memory(on_gpu=True).bytes):
        return device
    return torch.device("cpu") if size <= measure_worker_memory(False, ranks_here).bytes else None
