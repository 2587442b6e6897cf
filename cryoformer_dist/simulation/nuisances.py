"""What is unkind about single images: contrast, background, and things that are no single particle."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.physics.fourier import phase_ramp
from cryoformer_dist.physics.grids import centred_axis, frequency_grid
from cryoformer_dist.simulation.acquisition import Stream, stream

_BLOBS = 3
# Shares of the box: how far blobs lie from the centre along an axis at most, how wide they are (standard deviation).
_BLOB_REACH, _BLOB_WIDTH = 0.35, (0.04, 0.1)
# Each weighs so many molecules at most.
_BLOB_WEIGHT = 0.75
# Centres of overlapping neighbours, as a share of the box: near enough to overlap, far enough to be another.
_NEIGHBOUR_DISTANCE = (0.2, 0.4)


class Junk(IntEnum):
    """What an image shows in place of one particle."""

    NONE = 0
    EMPTY = 1
    NEIGHBOURS = 2
    BLOBS = 3


@dataclass(frozen=True, slots=True)
class Brightness:
    """Of each image: `(particles,)` factor on the signal, `(particles,)` offset, `(particles, 2)` slope at the edge."""

    amplitude: NDArray[np.float32]
    offset: NDArray[np.float32]
    gradient: NDArray[np.float32]

    def background(self, rows: slice, box: int) -> Float[Tensor, "images box box"]:
        """What is added to the images: offset, and gradient along x and y."""
        axis = centred_axis(box) / (box / 2)
        along_x, along_y = torch.from_numpy(self.gradient[rows, :, None, None]).unbind(1)
        return torch.from_numpy(self.offset[rows, None, None]) + along_x * axis + along_y * axis[:, None]


def draw_brightness(config: SimulationConfig) -> Brightness:
    """Draw contrast, offset and gradient of every image."""
    asked, generator = config.nuisances.brightness, stream(config.seed, Stream.BRIGHTNESS)
    drawn = generator.standard_normal((config.particles, 4))
    # Of a log-normal factor of mean 1 and this standard deviation.
    spread = np.sqrt(np.log1p(asked.contrast_sd**2))
    return Brightness(
        np.exp(spread * drawn[:, 0] - spread**2 / 2).astype(np.float32),
        (drawn[:, 1] * asked.offset_sd).astype(np.float32),
        (drawn[:, 2:] * asked.gradient_sd).astype(np.float32),
    )


@dataclass(frozen=True, slots=True)
class JunkDraw:
    """Which images are junk, and what they show; what is drawn for a good particle is not used.

    Attributes
    ----------
    kind
        `(particles,)` of `Junk`.
    neighbour
        `(particles,)` the row whose molecule shows beside the particle.
    offset
        `(particles, 2)` where it shows, from the middle, as a share of the box.
    blob_centre, blob_width, blob_weight
        `(particles, blobs, 2)` and `(particles, blobs)` twice: shares of the box, and of the molecule's weight.
    """

    kind: NDArray[np.int8]
    neighbour: NDArray[np.int64]
    offset: NDArray[np.float32]
    blob_centre: NDArray[np.float32]
    blob_width: NDArray[np.float32]
    blob_weight: NDArray[np.float32]


def draw_junk(config: SimulationConfig) -> JunkDraw:
    """Draw which images are junk, as many of each kind as asked, and what they show."""
    shares, count, generator = config.nuisances.junk, config.particles, stream(config.seed, Stream.JUNK)
    ends = np.rint(np.cumsum([shares.empty, shares.neighbours, shares.blobs]) * count).astype(int)
    kind = np.zeros(count, np.int8)
    for junk, first, last in zip((Junk.EMPTY, Junk.NEIGHBOURS, Junk.BLOBS), (0, *ends[:-1]), ends, strict=True):
        kind[first:last] = junk
    angle, distance = generator.uniform(0, 2 * np.pi, count), generator.uniform(*_NEIGHBOUR_DISTANCE, count)
    return JunkDraw(
        kind=generator.permutation(kind),
        neighbour=generator.permutation(count),
        offset=(np.stack([np.cos(angle), np.sin(angle)], axis=1) * distance[:, None]).astype(np.float32),
        blob_centre=generator.uniform(-_BLOB_REACH, _BLOB_REACH, (count, _BLOBS, 2)).astype(np.float32),
        blob_width=generator.uniform(*_BLOB_WIDTH, (count, _BLOBS)).astype(np.float32),
        blob_weight=generator.uniform(0, _BLOB_WEIGHT, (count, _BLOBS)).astype(np.float32),
    )


def draw_blobs(junk: JunkDraw, rows: NDArray[np.int64], box: int) -> Tensor:
    """Lumps of some rows, before the CTF, for a molecule of weight 1: half-plane transforms `(images, box, half)`."""
    frequency, total = frequency_grid(box), torch.zeros(len(rows), box, box // 2 + 1, dtype=torch.complex64)
    for blob in range(_BLOBS):
        centre, width, weight = (
            torch.from_numpy(values[rows, blob]) for values in (junk.blob_centre, junk.blob_width, junk.blob_weight)
        )
        falloff = torch.exp(-2 * (torch.pi * box * width[:, None, None]) ** 2 * frequency.square().sum(-1))
        total += phase_ramp(frequency, centre * box) * (weight[:, None, None] * falloff)
    return total


def put_beside(images: Float[Tensor, "images box box"], offset: NDArray[np.float32]) -> Float[Tensor, "images box box"]:
    """Move what images show by whole pixels, ``offset`` `(images, 2)` (x, y) as a share of the box; edges cut it."""
    box = images.shape[-1]
    moved = torch.zeros_like(images)
    for image, target, (x, y) in zip(images, moved, np.rint(offset * box).astype(int).tolist(), strict=True):
        rows, columns = _overlap(y, box), _overlap(x, box)
        target[rows[0], columns[0]] = image[rows[1], columns[1]]
    return moved


def _overlap(step: int, box: int) -> tuple[slice, slice]:
    """Where an axis lands within itself after a step, and from where."""
    return slice(max(step, 0), box + min(step, 0)), slice(max(-step, 0), box - max(step, 0))
