"""Particles on their way to the device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.data.ahead import ahead
from cryoformer_dist.data.order import ParticleOrder, Rows, ShardRead
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.physics.ctf import CTFParams
from cryoformer_dist.physics.pose import Pose


@dataclass(frozen=True, slots=True)
class ParticleBatch:
    """Images with everything that is known about them.

    Attributes
    ----------
    images
        Light-on-dark, background mean 0, noise white and of unit variance.
    row
        Store row of each image: its name in tables and messages.
    pose
        As given in the store.
    ctf
        One value per image.
    pixel_size_angstrom
        Of each image.
    epoch
        Epoch that the last image of the batch belongs to.
    amplitude
        How strong each particle is, in units of the mean one; ``None`` as long as nobody has looked: 1.
    weight
        How much each image counts: how probably it shows a particle; ``None`` as long as nobody has looked: 1.
    """

    images: Float[Tensor, "particles box box"]
    row: Int[Tensor, " particles"]
    pose: Pose
    ctf: CTFParams
    pixel_size_angstrom: Float[Tensor, " particles"]
    epoch: int
    amplitude: Float[Tensor, " particles"] | None = None
    weight: Float[Tensor, " particles"] | None = None

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, particles: slice | Tensor) -> "ParticleBatch":
        return ParticleBatch(
            images=self.images[particles],
            row=self.row[particles],
            pose=self.pose[particles],
            ctf=self.ctf[particles],
            pixel_size_angstrom=self.pixel_size_angstrom[particles],
            epoch=self.epoch,
            amplitude=None if self.amplitude is None else self.amplitude[particles],
            weight=None if self.weight is None else self.weight[particles],
        )

    def without(self, rows: Int[Tensor, " rows"]) -> "ParticleBatch":
        """A batch of the same size in which some store rows count nothing: another image stands in for each of them.

        Whatever is wrong with theirs is not looked at; if all are left out, they stay, and still count nothing.
        """
        out = torch.isin(self.row, rows)
        places = torch.arange(len(self), device=self.row.device)
        stand_in = torch.where(out, torch.argmin(out.to(torch.uint8)), places)
        # Not of each tensor: the noise of an optics group is none of a particle's numbers.
        kept = self[stand_in]
        weight = torch.ones_like(self.pixel_size_angstrom) if kept.weight is None else kept.weight
        return replace(kept, weight=weight * ~out)

    def to(self, device: torch.device) -> "ParticleBatch":
        """The same batch on another device."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> "ParticleBatch":
        """The same batch with something done to each tensor."""
        return ParticleBatch(
            images=change(self.images),
            row=change(self.row),
            pose=Pose(change(self.pose.rotation), change(self.pose.shift_angstrom)),
            ctf=self.ctf.each(change),
            pixel_size_angstrom=change(self.pixel_size_angstrom),
            epoch=self.epoch,
            amplitude=None if self.amplitude is None else change(self.amplitude),
            weight=None if self.weight is None else change(self.weight),
        )


@dataclass(frozen=True, slots=True)
class ImageBlock:
    """Some rows' images as read, before they meet their metadata."""

    images: NDArray[np.float16]
    row: NDArray[np.int64]
    epoch: NDArray[np.int64]


BatchSource = Callable[[ParticleOrder, int, int, int], Iterator[ParticleBatch]]
"""``(order, rank, world, particles per batch)`` to batches on a device; a last, smaller one ends the stage."""

CPU = torch.device("cpu")


def make_batch(block: ImageBlock, particles: StoredParticles) -> ParticleBatch:
    """Join images with the metadata of their rows."""
    return ParticleBatch(
        # torch widens four times as fast as numpy; it takes no array that may not be written to, as Ray's.
        images=torch.from_numpy(np.require(block.images, requirements="W")).float(),
        # Ray lends its blocks read-only; a copy of a few integers costs nothing.
        row=torch.tensor(block.row),
        pose=particles.pose(block.row),
        ctf=particles.ctf(block.row),
        pixel_size_angstrom=torch.from_numpy(particles.pixel_size_angstrom[block.row]),
        epoch=int(block.epoch[-1]),
    )


class BatchMaker:
    """Joins images with what is known of their rows, on the device that trains.

    What is known of all particles (some 70 bytes each) is on the device from the start; of a batch only images travel,
    as they are stored: float16.

    Parameters
    ----------
    particles
        All rows of the store.
    device
        Where batches are wanted.
    """

    def __init__(self, particles: StoredParticles, device: torch.device) -> None:
        self._device = device
        pose, ctf, pixel_size = particles.pose(), particles.ctf(), torch.tensor(particles.pixel_size_angstrom)
        self._pose = Pose(pose.rotation.to(device), pose.shift_angstrom.to(device))
        self._ctf = ctf.each(lambda values: values.to(device))
        self._pixel_size = pixel_size.to(device)

    def batches(
        self, blocks: Iterable[ImageBlock], images_of: Callable[[ImageBlock], Tensor]
    ) -> Iterator[ParticleBatch]:
        """Batches of blocks, one or two of them made before they are asked for.

        Parameters
        ----------
        blocks
            One per batch.
        images_of
            The images of one, float16, on the device or on the way to it.
        """
        if self._device.type != "cuda":
            yield from ahead(self._make(block, images_of(block)) for block in blocks)
            return
        copying: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # What batches are made of may still be on its way to the device.
        copying.wait_stream(torch.cuda.current_stream(self._device))
        for batch, made in ahead(self._make_on(copying, block, images_of) for block in blocks):
            working = torch.cuda.current_stream(self._device)
            working.wait_event(made)
            # Or the allocator would hand the memory out again while the working stream still reads it.
            yield batch.each(partial(_mark_used, working))

    def _make_on(
        self, stream: torch.cuda.Stream, block: ImageBlock, images_of: Callable[[ImageBlock], Tensor]
    ) -> tuple[ParticleBatch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return self._make(block, images_of(block)), stream.record_event()

    def _make(self, block: ImageBlock, images: Float[Tensor, "particles box box"]) -> ParticleBatch:
        row = to_device(torch.tensor(block.row), self._device)
        return ParticleBatch(
            images=to_device(images, self._device).float(),
            row=row,
            pose=Pose(self._pose.rotation[row], self._pose.shift_angstrom[row]),
            ctf=self._ctf[row],
            pixel_size_angstrom=self._pixel_size[row],
            epoch=int(block.epoch[-1]),
        )


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """On the device, or on its way there: from memory that the device reads by itself nobody waits for it."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return (values if values.is_pinned() else values.pin_memory()).to(device, non_blocking=True)


def _mark_used(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def images_as_read(block: ImageBlock) -> Float[Tensor, "particles box box"]:
    """Images of a block in memory of their own: Ray lends its blocks read-only."""
    return torch.from_numpy(block.images.copy())


def local_batches(store: ParticleStore, device: torch.device = CPU) -> BatchSource:
    """Batches read from the store by a thread of this process, one shard ahead: the loader without Ray."""
    maker = BatchMaker(store.particles(), device)

    def batches(order: ParticleOrder, rank: int, world: int, size: int) -> Iterator[ParticleBatch]:
        yield from maker.batches(rebatch(read_here(store, order.reads(rank, world)), size), images_as_read)

    return batches


def read_here(store: ParticleStore, reads: Iterable[ShardRead]) -> Iterator[ImageBlock]:
    """Images of shards, read by a thread of this process, one shard ahead."""
    return ahead((_read_shard(store, shard) for shard in reads), most=1)


def _read_shard(store: ParticleStore, shard: ShardRead) -> ImageBlock:
    return ImageBlock(store.read_images(shard.rows), shard.rows, np.full(len(shard.rows), shard.epoch))


def resident_batches(
    store: ParticleStore,
    rows: Rows,
    device: torch.device = CPU,
    home: torch.device | None = None,
    alive: Callable[[], None] = lambda: None,
) -> BatchSource:
    """Batches of images that are read once and stay as they are stored: float16.

    The same batches as `local_batches`, bit for bit.

    Parameters
    ----------
    rows
        Store rows that orders may ask for, ascending: those that this rank owns.
    device
        Where batches are wanted.
    home
        Where the images stay: the same when ``None``; main memory serves a GPU too.
    alive
        Called while they are read.
    """
    home = device if home is None else home
    pinned = device.type == "cuda" and home.type == "cpu"
    maker = BatchMaker(store.particles(), device)
    kept = torch.empty(len(rows), store.box_size, store.box_size, dtype=torch.float16, device=home, pin_memory=pinned)
    for start in range(0, len(rows), store.shard_size):
        shard = slice(start, start + store.shard_size)
        kept[shard] = torch.from_numpy(store.read_images(rows[shard]))
        alive()

    def images_of(block: ImageBlock) -> Tensor:
        place = to_device(torch.from_numpy(np.searchsorted(rows, block.row)), home)
        found = kept.new_empty(len(block.row), *kept.shape[1:], pin_memory=pinned)
        return torch.index_select(kept, 0, place, out=found)

    def batches(order: ParticleOrder, rank: int, world: int, size: int) -> Iterator[ParticleBatch]:
        yield from maker.batches(rebatch(map(_leave_images_out, order.reads(rank, world)), size), images_of)

    return batches


def _leave_images_out(shard: ShardRead) -> ImageBlock:
    count = len(shard.rows)
    return ImageBlock(np.empty((count, 0, 0), np.float16), shard.rows, np.full(count, shard.epoch))


def rebatch(blocks: Iterable[ImageBlock], size: int) -> Iterator[ImageBlock]:
    """Cut a stream of blocks into batches of one size, and a last smaller one."""
    held: ImageBlock | None = None
    for block in blocks:
        held = block if held is None else _join(held, block)
        while len(held.row) >= size:
            yield _cut(held, 0, size)
            held = _cut(held, size, len(held.row))
    if held is not None and len(held.row):
        yield held


def _join(first: ImageBlock, second: ImageBlock) -> ImageBlock:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(ImageBlock)]
    return ImageBlock(*(np.concatenate(pair) for pair in pairs))


def _cut(block: ImageBlock, start: int, stop: int) -> ImageBlock:
    return ImageBlock(*(getattr(block, field.name)[start:stop] for field in fields(ImageBlock)))
