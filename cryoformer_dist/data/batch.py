"""Particles on their way to the device."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

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
        Light-on-dark, background mean 0 and standard deviation 1.
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
    """

    images: Float[Tensor, "particles box box"]
    row: Int[Tensor, " particles"]
    pose: Pose
    ctf: CTFParams
    pixel_size_angstrom: Float[Tensor, " particles"]
    epoch: int

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device) -> "ParticleBatch":
        """The same batch on another device; from pinned memory to a GPU without waiting for it."""
        # On the way back nobody else would wait: the numbers would be read before they are there.
        return self.each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def each(self, change: Callable[[Tensor], Tensor]) -> "ParticleBatch":
        """The same batch with something done to each tensor."""
        return ParticleBatch(
            images=change(self.images),
            row=change(self.row),
            pose=Pose(change(self.pose.rotation), change(self.pose.shift_angstrom)),
            ctf=CTFParams(*(change(getattr(self.ctf, field.name)) for field in fields(self.ctf))),
            pixel_size_angstrom=change(self.pixel_size_angstrom),
            epoch=self.epoch,
        )


@dataclass(frozen=True, slots=True)
class ImageBlock:
    """Some rows' images as read, before they meet their metadata."""

    images: NDArray[np.float16]
    row: NDArray[np.int64]
    epoch: NDArray[np.int64]


BatchSource = Callable[[ParticleOrder, int, int, int], Iterator[ParticleBatch]]
"""``(order, rank, world, particles per batch)`` to batches; a last, smaller one ends the stage."""


def make_batch(block: ImageBlock, particles: StoredParticles) -> ParticleBatch:
    """Join images with the metadata of their rows."""
    return ParticleBatch(
        images=torch.from_numpy(block.images.astype(np.float32)),
        # Ray lends its blocks read-only; a copy of a few integers costs nothing.
        row=torch.tensor(block.row),
        pose=particles.pose(block.row),
        ctf=particles.ctf(block.row),
        pixel_size_angstrom=torch.from_numpy(particles.pixel_size_angstrom[block.row]),
        epoch=int(block.epoch[-1]),
    )


def local_batches(store: ParticleStore) -> BatchSource:
    """Batches read from the store by a thread of this process, one shard ahead: the loader without Ray."""
    particles = store.particles()

    def batches(order: ParticleOrder, rank: int, world: int, size: int) -> Iterator[ParticleBatch]:
        for block in rebatch(read_here(store, order.reads(rank, world)), size):
            yield make_batch(block, particles)

    return batches


def read_here(store: ParticleStore, reads: Iterable[ShardRead]) -> Iterator[ImageBlock]:
    """Images of shards, read by a thread of this process, one shard ahead."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for shard in reads:
            following = pool.submit(_read_shard, store, shard)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _read_shard(store: ParticleStore, shard: ShardRead) -> ImageBlock:
    return ImageBlock(store.read_images(shard.rows), shard.rows, np.full(len(shard.rows), shard.epoch))


def resident_batches(store: ParticleStore, rows: Rows, device: torch.device) -> BatchSource:
    """Batches of images that are read once, all of them, and stay on the device as they are stored: float16.

    The same batches as `local_batches`, bit for bit. Every rank holds all rows: its own ones
    change with the epoch.

    Parameters
    ----------
    rows
        Store rows that orders may ask for, ascending.
    device
        Where the images stay.
    """
    particles = store.particles()
    images = torch.empty(len(rows), store.box_size, store.box_size, dtype=torch.float16, device=device)
    for start in range(0, len(rows), store.shard_size):
        shard = slice(start, start + store.shard_size)
        images[shard] = torch.from_numpy(store.read_images(rows[shard])).to(device)

    def batches(order: ParticleOrder, rank: int, world: int, size: int) -> Iterator[ParticleBatch]:
        for block in rebatch(map(_leave_images_out, order.reads(rank, world)), size):
            place = torch.from_numpy(np.searchsorted(rows, block.row)).to(device)
            yield replace(make_batch(block, particles), images=images[place].float())

    return batches


def _leave_images_out(shard: ShardRead) -> ImageBlock:
    count = len(shard.rows)
    return ImageBlock(np.empty((count, 0, 0), np.float16), shard.rows, np.full(count, shard.epoch))


def on_device(batches: Iterable[ParticleBatch], device: torch.device) -> Iterator[ParticleBatch]:
    """Batches moved to a device; to a GPU one ahead, copied while the batch before is worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: ParticleBatch | None = None
    for batch in batches:
        pinned = batch.each(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())
        # Resident images are made on the working stream.
        copying.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(copying):
            following = pinned.to(device)
        if waiting is not None:
            yield waiting
        working = torch.cuda.current_stream(device)
        working.wait_stream(copying)
        # Or the allocator would hand the memory out again while the working stream still reads it.
        waiting = following.each(partial(_mark_used, working))
    if waiting is not None:
        yield waiting


def _mark_used(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor


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
