"""How much memory a run needs on each worker, counted from its configuration before anything is made.

The counts follow the code term by term; `docs/performance.md` holds them against measured peaks.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from cryoformer_dist.config.schema import ModelConfig, RunConfig
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, SlowEncodingWarning
from cryoformer_dist.inference.comparison import DIRECTIONS
from cryoformer_dist.inference.conformations import MOST_PRINCIPAL_MAPS, MOVING_MAPS
from cryoformer_dist.machine import WorkerMemory, gib
from cryoformer_dist.model.cryoformer import CryoFormer
from cryoformer_dist.model.feature_volume import TILE_POINTS, TILE_POINTS_CUDA
from cryoformer_dist.model.hash_grid import operator_bytes_per_point
from cryoformer_dist.physics.slices import PADDING
from cryoformer_dist.physics.splat import CACHED_POINTS
from cryoformer_dist.training.latent_search import LARGEST_BOX, REPRESENTATIVES
from cryoformer_dist.training.objectives import keeps_operators

# An interpreter with torch, DeepSpeed and Ray loaded.
_PROGRAM_BYTES = 500 * 2**20
# What a process takes of a GPU before its first tensor, none of it torch's allocator's: the CUDA context, the code of
# torch's and Triton's kernels, cuBLAS's work space (32 MiB on Hopper).
_CONTEXT_BYTES = 600 * 2**20
# Channels of a communicator over more than one GPU: 544 MiB for two A100 and 688 for four (NVIDIA/nccl, issue 964).
_NCCL_BYTES = 768 * 2**20
# Weight, gradient and two moments, float32.
_BYTES_PER_PARAMETER = 16
# What is known of a particle beside its image.
_METADATA_BYTES = 120
# The part of it that batches are made of, on the device.
_COLUMN_BYTES = 68
# While an operator is made: entries of all corners as 64-bit integers, and their sorted order.
_OPERATOR_BUILD_FACTOR = 2.4
# Torch's splat of one point into one image: place, taps and weights of both axes, sums along them.
_SPLAT_BYTES = 130
# Triton's: a density and its gradient, where poses are learned; one at a time, where they are given.
_TRITON_BYTES_LEARNED, _TRITON_BYTES_GIVEN = 8, 4
# Programs of Triton's backward passes, each with sums of its own.
_PROGRAMS = 1024
# Entries, weights and rows of one corner of a point that is hashed afresh.
_CORNER_BYTES = 48
# Per pixel: image, its transform, CTF, residual; the twofold grid and its transform; and the gradients of them.
_PIXEL_BYTES = 130
# Per pixel: cuFFT works beside the largest of them, the twofold grid's (2 box (box + 1) complex numbers).
_FFT_WORK_BYTES = 16
# Tiles of attention and activation.
_ATTENTION_TILE_BYTES = 8 * 2**20
# Tensors of the size of the queries that a deformation block keeps for its backward pass.
_QUERY_TENSORS = 14
# Maps of the whole box while one is decoded and cropped; transforms beside those that are kept; tensors of the size
# of all slices of a batch.
_DECODED_MAPS, _TRANSFORMS_UNDER_WAY, _SLICE_TENSORS = 6, 8, 4
_CURVATURES = 4
# Reads of shards under way: being read, waiting, joined and cut.
_READS_UNDER_WAY = 4
# Allocators keep some of what is freed.
_SLACK = 1.1
# Of `training.global_batch_size: auto`: larger batches use a machine no better, fewer steps learn less.
LARGEST_BATCH_PER_WORKER = 64
FEWEST_STEPS = 1500


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run is put to work on.

    Attributes
    ----------
    box
        Side of the images in pixels.
    points
        Lattice points at which density is evaluated.
    rows
        Particles in the store: tables have a row for each.
    trained
        Particles that the run trains on.
    shard_rows
        Particles per shard.
    """

    box: int
    points: int
    rows: int
    trained: int
    shard_rows: int

    @staticmethod
    def of(store: ParticleStore, trained: int, points: int) -> "Workload":
        """That of a store, ``trained`` of whose particles are used."""
        return Workload(store.box_size, points, len(store), trained, store.shard_size)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one worker's device.

    Attributes
    ----------
    kept
        By name, what is there from the first step to the last.
    setup
        What making the operators takes on top, before the first step.
    step
        By name, what a step takes on top.
    search
        What looking for latents takes on top, between steps.
    """

    kept: dict[str, int]
    setup: int
    step: dict[str, int]
    search: int

    @property
    def peak(self) -> int:
        """Highest at any time."""
        return sum(self.kept.values()) + round(_SLACK * max(self.setup, sum(self.step.values()), self.search))

    def __str__(self) -> str:
        parts = sorted((self.kept | self.step | {"latent search": self.search}).items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {gib(size)}" for name, size in parts if size > 2**20)


def plan_memory(config: RunConfig, work: Workload, batch: int, memory: WorkerMemory) -> MemoryPlan:
    """Memory of one worker that takes ``batch`` particles a step."""
    on_gpu = memory.on_gpu
    stored = keeps_operators(config, work.points, on_gpu)
    copies = config.training.jitter_lattices
    operator = operator_bytes_per_point(config.model, on_gpu) * work.points if stored else 0
    by_torch = config.model.encoder(on_gpu) == "torch"
    kept = {
        "network": _BYTES_PER_PARAMETER * parameter_count(config.model, work.box),
        "tables": _table_bytes(config, work.rows),
        "lattice": 20 * work.points + copies * operator,
        "resident images": _resident_bytes(config, work, memory),
        "metadata": _COLUMN_BYTES * work.rows,
    }
    if on_gpu:
        kept |= {"CUDA context": _CONTEXT_BYTES, "NCCL": _NCCL_BYTES * (memory.workers > 1)}
    else:
        reading = 0 if config.dataset.loader == "resident" else _READS_UNDER_WAY * 2 * work.box**2 * work.shard_rows
        kept |= {"program": _PROGRAM_BYTES, "images being read": reading}
        kept["metadata"] += _METADATA_BYTES * work.rows
    step = {
        "images": (_PIXEL_BYTES + _FFT_WORK_BYTES * on_gpu) * work.box**2 * batch,
        "queries": _query_bytes(config.model) * batch,
        "points": _points_bytes(config, work, batch, stored, on_gpu),
    }
    building = round(_OPERATOR_BUILD_FACTOR * operator) if by_torch else 0
    return MemoryPlan(kept, building, step, _search_bytes(config, work, batch))


@cache
def parameter_count(model: ModelConfig, box: int) -> int:
    """Learnable numbers of the network, without the tables."""
    # Made and dropped: some 100 MB for a moment. On torch's meta device, initialisers take seconds to import.
    # All backends of the hash grid have one table, and this may be a machine that has not the one that is named.
    counted = model.model_copy(update={"hash_grid": model.hash_grid.model_copy(update={"backend": "torch"})})
    with torch.random.fork_rng(devices=[]):
        return sum(parameter.numel() for parameter in CryoFormer(counted, box).parameters())


def settle_batch_size(config: RunConfig, work: Workload, memory: WorkerMemory) -> RunConfig:
    """The configuration with a number for ``training.global_batch_size``, one that fits.

    ``auto`` becomes the largest power of two per worker that fits, at most 64, with at least 1500 steps in all.

    Raises
    ------
    ConfigError
        If the run fits with no batch, or not with the one it names.
    """
    wanted = config.training.global_batch_size
    if wanted != "auto":
        refuse_too_large(config, work, memory)
        return config
    largest = LARGEST_BATCH_PER_WORKER
    seen = work.trained * config.training.epochs
    while largest > 1 and largest * memory.workers * FEWEST_STEPS > seen:
        largest //= 2
    batch = _largest_that_fits(config, work, memory, largest)
    if batch is None:
        raise ConfigError(_too_large(config, work, memory, 1))
    return with_batch_size(config, batch * memory.workers)


def refuse_too_large(config: RunConfig, work: Workload, memory: WorkerMemory) -> None:
    """See that a run fits its workers' memory.

    Raises
    ------
    ConfigError
        If it does not, with its largest parts and what would make it fit.
    """
    wanted = config.training.global_batch_size
    batch = 1 if wanted == "auto" else -(-wanted // memory.workers)
    if plan_memory(config, work, batch, memory).peak > memory.bytes:
        raise ConfigError(_too_large(config, work, memory, batch))


def warn_of_slow_encoding(config: RunConfig, points: int, memory: WorkerMemory) -> None:
    """Thousands of small launches a step are nothing to a CPU, and most of a step to a GPU."""
    by_lattice = config.training.projection == "lattice" and config.model.domain == "real"
    if (
        memory.on_gpu
        and by_lattice
        and config.model.encoder(on_gpu=True) == "torch"
        and not keeps_operators(config, points, on_gpu=True)
    ):
        warnings.warn(
            f"{points} points are too many for stored operators of the hash grid: torch hashes them again at every "
            "step, which takes a GPU longer than all the rest; set model.hash_grid.backend: triton, or auto",
            SlowEncodingWarning,
            stacklevel=2,
        )


def explain_misfit(config: RunConfig, work: Workload, memory: WorkerMemory) -> str | None:
    """Why a run whose batch is settled does not fit its workers, and what would make it fit; ``None`` if it does."""
    try:
        refuse_too_large(config, work, memory)
    except ConfigError as error:
        return str(error)
    return None


def _largest_that_fits(config: RunConfig, work: Workload, memory: WorkerMemory, largest: int) -> int | None:
    """Power of two per worker, at most ``largest``."""
    batch = largest
    while batch and plan_memory(config, work, batch, memory).peak > memory.bytes:
        batch //= 2
    return batch or None


def _too_large(config: RunConfig, work: Workload, memory: WorkerMemory, batch: int) -> str:
    plan = plan_memory(config, work, batch, memory)
    smaller = _largest_that_fits(config, work, memory, 2 ** (batch.bit_length() - 1))
    advice = []
    if smaller is not None:
        advice.append(f"set training.global_batch_size to {smaller * memory.workers} or to auto")
    if config.dataset.loader == "resident":
        advice.append("set dataset.loader to local")
    if config.training.projection == "rays":
        advice.append("set training.projection to lattice")
    if config.training.occupancy == "sphere" and config.training.projection == "lattice":
        advice.append("set training.occupancy to data")
    if plan.kept["lattice"] > plan.peak / 4:
        advice.append("lower training.jitter_lattices")
    advice.append("start fewer workers on a machine" if memory.workers > 1 else "use a machine with more memory")
    advice.append("convert the particles with a smaller --box")
    share = work.points / work.box**3
    points = f"{work.points} points, {share:.0%} of the box" if work.points else "however few points"
    place = " on its GPU" if memory.on_gpu else ""
    return (
        f"a worker needs about {gib(plan.peak)} and has {gib(memory.bytes)}{place} "
        f"(box {work.box}, {points}, {batch} particles a step): {plan}; {', or '.join(advice)}"
    )


def settle_loader(config: RunConfig, work: Workload, memory: WorkerMemory) -> RunConfig:
    """The same with a loader for ``dataset.loader: auto``: images stay in memory if, its batch settled, all fits."""
    if config.dataset.loader != "auto":
        return config
    settled = _changed(config, "dataset", loader="resident")
    return settled if explain_misfit(settled, work, memory) is None else _changed(config, "dataset", loader="ray")


def with_batch_size(config: RunConfig, size: int | Literal["auto"]) -> RunConfig:
    """The same configuration with another ``training.global_batch_size``."""
    return _changed(config, "training", global_batch_size=size)


def _changed(config: RunConfig, section: str, **values: object) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _resident_bytes(config: RunConfig, work: Workload, memory: WorkerMemory) -> int:
    """A worker's share of the images; a GPU has those that leave it its half, others stay in main memory."""
    if config.dataset.loader != "resident":
        return 0
    share = 2 * work.box**2 * -(-work.trained // memory.workers)
    return share if not memory.on_gpu or leaves_room(share, memory.bytes) else 0


def leaves_room(size: int, free: int) -> bool:
    """Whether so many bytes of images may stay on a GPU with so many free: half is for the steps."""
    return 2 * size <= free


def _table_bytes(config: RunConfig, rows: int) -> int:
    """Values and two moments per number, and the visits of each row."""
    widths = []
    if config.model.latent.tabulated:
        widths += [config.model.latent.dimensions] * (1 + config.model.latent.searched)
    widths += [1] * (config.model.searches_amplitudes + 2 * config.model.weighs_junk)
    if config.model.tabulates_poses:
        widths += [6, 2]
    return rows * sum(12 * width + 4 for width in widths)


def _search_bytes(config: RunConfig, work: Workload, batch: int) -> int:
    """Maps of all representatives, twice, or padded transforms of the principal ones and a batch's slices of them."""
    if not config.model.latent.searched:
        return 0
    compared, kept, one_map = min(work.box, LARGEST_BOX), MOST_PRINCIPAL_MAPS + 1, 4 * min(work.box, LARGEST_BOX) ** 3
    decoding = (2 * REPRESENTATIVES + kept) * one_map + _DECODED_MAPS * 4 * work.box**3
    # Complex numbers on the padded grid.
    moving = config.model.searches_poses
    transforms = (kept + moving * MOVING_MAPS + _TRANSFORMS_UNDER_WAY) * 2 * PADDING**3 * one_map
    slices = _SLICE_TENSORS * 4 * (kept + moving * DIRECTIONS * MOVING_MAPS) * compared**2 * batch
    # Of every conformation, the energy of its slopes.
    curved = moving * _CURVATURES * 4 * DIRECTIONS**2 * REPRESENTATIVES * batch
    return max(decoding, transforms + slices + curved)


def _query_bytes(model: ModelConfig) -> int:
    decoder = model.decoder
    encoders = [model.latent.encoder] * ("encoder" in model.latent.form)
    encoders += [model.pose.encoder] * ("encoder" in model.pose.form)
    activations = sum(2 * encoder.hidden_layers * encoder.width for encoder in encoders)
    return 4 * (decoder.queries * decoder.channels * _QUERY_TENSORS * (decoder.blocks + 1) + activations)


def _points_bytes(config: RunConfig, work: Workload, batch: int, stored: bool, on_gpu: bool) -> int:
    """The most that any of the backward pass's parts holds: that of the splat, of the decoder, of the hash grid."""
    decoder, grid = config.model.decoder, config.model.hash_grid
    if config.training.projection == "rays" or config.model.domain == "fourier":
        # Points of each particle's own, with everything about them kept.
        asked = work.box**3 if config.training.projection == "rays" else work.box**2 // 2
        corners = _corner_bytes(config, on_gpu)
        return batch * asked * (corners + 4 * (3 * decoder.queries + 3 * decoder.density_width))
    features = grid.levels * grid.features_per_level if stored else 0
    # Coordinates of the step, h, the features it was made of; with a focus mask, a second density and its gradient.
    shared = work.points * (24 + 4 * (decoder.hidden_width + features) + 8 * batch * bool(config.training.focus_mask))
    tile_points = TILE_POINTS_CUDA if on_gpu else TILE_POINTS
    tile = 0 if stored else _corner_bytes(config, on_gpu) * min(work.points, tile_points)
    encoding = tile + 4 * work.points * (decoder.hidden_width + features)
    return shared + max(
        _splat_bytes(config, work.points, batch, on_gpu), _attention_bytes(config, work.points, batch, on_gpu), encoding
    )


def _corner_bytes(config: RunConfig, on_gpu: bool) -> int:
    """What hashing a point afresh takes, forwards and backwards: its corners, or features and ``h`` alone."""
    grid = config.model.hash_grid
    if config.model.encoder(on_gpu) == "torch":
        return grid.levels * 8 * _CORNER_BYTES
    return 8 * (grid.levels * grid.features_per_level + config.model.decoder.hidden_width)


def _splats_by_triton(config: RunConfig, on_gpu: bool) -> bool:
    return on_gpu and config.model.kernels == "auto"


def _splat_bytes(config: RunConfig, points: int, batch: int, on_gpu: bool) -> int:
    if _splats_by_triton(config, on_gpu):
        given = config.model.pose.form in ("given", "posterior")
        return (_TRITON_BYTES_GIVEN if given else _TRITON_BYTES_LEARNED) * points * batch
    if on_gpu:
        return _SPLAT_BYTES * points * batch
    # Density, place, and their gradients of all; the rest of a few particles at a time.
    return 24 * points * batch + _SPLAT_BYTES * max(points, min(CACHED_POINTS, points * batch))


def _attention_bytes(config: RunConfig, points: int, batch: int, on_gpu: bool) -> int:
    """Density's gradient, scaled by torch, and what it is turned into: that of ``h``, and of what is behind it."""
    decoder = config.model.decoder
    if config.model.decoder.form == "attention" and _splats_by_triton(config, on_gpu):
        # So many units of the density's hidden layer make a slice.
        slices = -(-decoder.density_width // (32 if decoder.queries <= 64 else 16))
        sums = decoder.queries * (decoder.hidden_width + decoder.density_width) + decoder.density_width * 16
        shared = 4 * points * decoder.hidden_width * (slices + 1)
        return 4 * points * batch + shared + 4 * max(_PROGRAMS, slices * batch) * sums
    return 8 * points * batch + 4 * points * (decoder.hidden_width + decoder.density_width) + _ATTENTION_TILE_BYTES
