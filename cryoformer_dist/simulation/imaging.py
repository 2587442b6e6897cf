"""Noise-free, CTF-free images and reference maps of a moving molecule or of a list of maps.

Atoms are Gaussians, and both their images and their maps come from the same direct non-uniform Fourier sum,
cut off at the Nyquist frequency: a central slice of the map is the image, to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.errors import ConfigError, ParticleFormatError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.fourier import crop_volume
from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.projection import project_points
from cryoformer_dist.simulation.molecule import Molecule

# Standard deviation of an atom in pixels: 22 % amplitude left at the Nyquist frequency.
DEFAULT_SIGMA_PIXELS = 0.55
# A Gaussian passes 1/e of the amplitude at the resolution r when its standard deviation is r / (pi sqrt 2).
SIGMA_PER_RESOLUTION = 1 / (np.pi * np.sqrt(2))
# Numbers held at once in the phase factors of a block of images: small enough to stay near the processor.
_BLOCK_ELEMENTS = 4_000_000
_MAP_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Views:
    """What images show of a molecule.

    Attributes
    ----------
    coordinate
        `(images,)` state coordinates; numbers of maps where each class has its own.
    rotation, shift_angstrom
        `(images, 3, 3)` and `(images, 2)`: a point ``c`` lands at ``(A c)_xy - shift``.
    """

    coordinate: NDArray[np.float64]
    rotation: Float[Tensor, "images 3 3"]
    shift_angstrom: Float[Tensor, "images 2"]

    def blocks(self, elements_per_image: int) -> Iterator["Views"]:
        """So many at a time that what is computed for them stays near the processor."""
        step = max(1, _BLOCK_ELEMENTS // elements_per_image)
        for start in range(0, len(self.coordinate), step):
            rows = slice(start, start + step)
            yield Views(self.coordinate[rows], self.rotation[rows], self.shift_angstrom[rows])


@dataclass(frozen=True, slots=True)
class AtomImager:
    """Images and maps of Gaussian pseudo-atoms.

    Attributes
    ----------
    molecule
        Coordinates about the centre of the box.
    box_size, box_length_angstrom
        Of the simulated images.
    sigma_angstrom
        Standard deviation of an atom.
    """

    molecule: Molecule
    box_size: int
    box_length_angstrom: float
    sigma_angstrom: float

    def project(self, views: Views) -> Complex[Tensor, "images box half"]:
        """Half-plane transforms of the images; the pixels of one add up to the weight of all atoms."""
        weight = torch.tensor(self.molecule.weight, dtype=torch.float32)
        pixel = self.box_length_angstrom / self.box_size
        half = self.box_size // 2 + 1
        blocks = []
        for block in views.blocks(len(weight) * 4 * half):
            atoms = torch.as_tensor(self.molecule.coordinates_angstrom(block.coordinate), dtype=torch.float32)
            seen = torch.einsum("bij,baj->bia", block.rotation[:, :2], atoms) - block.shift_angstrom[:, :, None]
            blocks.append(_transform_of_points(seen / pixel, weight, self.box_size))
        return torch.cat(blocks) * self._envelope(self.box_size, 2)[:, :half]

    def volume(self, coordinate: float, box: int) -> Float[Tensor, "box box box"]:
        """Map at one state in voxels of ``box``; its sum along the beam has `project`'s pixel values."""
        pixels = self.molecule.coordinates_angstrom(np.asarray([coordinate]))[0] * (box / self.box_length_angstrom)
        weight = torch.tensor(self.molecule.weight, dtype=torch.float32)
        frequency = torch.fft.fftfreq(box, dtype=torch.float64)
        half = box // 2 + 1
        x, y, z = (
            _phase_factors(axis, points)
            for axis, points in zip((frequency[:half], frequency, frequency), pixels.T, strict=True)
        )
        transform = torch.empty(box, box, half, dtype=torch.complex64)
        columns = x.T.contiguous()
        for index in range(box):
            transform[index] = (y * (z[index] * weight)) @ columns
        transform *= self._envelope(box, 3)[..., :half]
        # A map of fewer voxels has fewer of them along the beam, and each image pixel is kept as a mean.
        scale = (box / self.box_size) ** 2
        voxels: Tensor = torch.fft.fftshift(torch.fft.irfftn(transform, s=(box, box, box)))
        return voxels * scale

    def _envelope(self, box: int, dimensions: int) -> Tensor:
        """Transform of an atom on the full grid, zero beyond the Nyquist frequency of the box."""
        axes = torch.meshgrid(*[torch.fft.fftfreq(box)] * dimensions, indexing="ij")
        squared = torch.stack(axes).square().sum(0)
        sigma_pixels = self.sigma_angstrom * box / self.box_length_angstrom
        return torch.exp(-2 * torch.pi**2 * sigma_pixels**2 * squared) * (squared < 0.25)


def _transform_of_points(
    position: Float[Tensor, "images 2 atoms"], weight: Float[Tensor, " atoms"], box: int
) -> Complex[Tensor, "images box half"]:
    """Direct Fourier sum over points in pixels about the centre.

    The phase factors separate into x and y, and negative frequencies follow from positive ones by sign, so
    one real matrix product of cosines and sines gives the whole half plane.
    """
    half = box // 2 + 1
    images, _, atoms = position.shape
    frequency = torch.arange(half, dtype=torch.float32) * (2 * torch.pi / box)
    along_x, along_y = torch.empty(images, 2 * half, atoms), torch.empty(images, 2 * half, atoms)
    for axis, table in enumerate((along_x, along_y)):
        angle = position[:, axis, None] * frequency[:, None]
        torch.cos(angle, out=table[:, :half])
        torch.sin(angle, out=table[:, half:])
    along_x *= weight
    product = torch.bmm(along_y, along_x.transpose(1, 2))
    coscos, cossin = product[:, :half, :half], product[:, :half, half:]
    sincos, sinsin = product[:, half:, :half], product[:, half:, half:]
    upper = torch.complex(coscos - sinsin, -(cossin + sincos))
    lower = torch.complex(coscos + sinsin, sincos - cossin)
    return torch.cat([upper[:, :-1], lower[:, 1:].flip(1)], dim=1)


def _phase_factors(frequency: Tensor, points: NDArray[np.float64]) -> Tensor:
    """``exp(-2 pi i k x)`` as `(frequencies, points)`, the phase in double precision."""
    phase = -2 * torch.pi * frequency[:, None] * torch.from_numpy(np.ascontiguousarray(points))
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)


@dataclass(frozen=True, slots=True)
class VolumeImager:
    """Images of density maps, one per class; the maps are empty outside the sphere inscribed in the box.

    Attributes
    ----------
    volumes
        `(classes, box, box, box)` at the simulated box.
    box_length_angstrom
        Of maps and images.
    """

    volumes: Float[Tensor, "classes box box box"]
    box_length_angstrom: float

    def project(self, views: Views) -> Complex[Tensor, "images box half"]:
        """Half-plane transforms of the images of the map of each class number; see `AtomImager.project`."""
        box = self.volumes.shape[-1]
        inside = _inscribed(box)
        points, density = lattice_points(box)[inside], self.volumes.reshape(len(self.volumes), -1)[:, inside]
        blocks = []
        for block in views.blocks(len(points)):
            classes = torch.from_numpy(block.coordinate.astype(np.int64))
            moved = -block.shift_angstrom * (box / self.box_length_angstrom)
            blocks.append(project_points(density[classes], points, block.rotation, moved, box))
        return torch.cat(blocks)

    def volume(self, coordinate: float, box: int) -> Float[Tensor, "box box box"]:
        """Map of one class in voxels of ``box``, scaled as `AtomImager.volume`."""
        old = self.volumes.shape[-1]
        masked = self.volumes[int(coordinate)] * _inscribed(old).reshape(old, old, old)
        return crop_volume(masked, box) * (old / box)


def _inscribed(box: int) -> Tensor:
    """Mask `(box ** 3,)` of the lattice points that stay in the box however it is turned."""
    return lattice_points(box).square().sum(-1) <= (box // 2 - 1) ** 2


def load_volumes(paths: Sequence[Path], box: int, box_length_angstrom: float) -> VolumeImager:
    """Read maps from files and bring them to the simulated box by cropping in Fourier space.

    Raises
    ------
    ConfigError
        If a map is missing or not a cube, spans another length than the images, or has fewer voxels than they
        have pixels.
    """
    volumes = []
    for number, path in enumerate(paths):
        where = f"source.paths.{number}: {path}"
        try:
            volume = read_volume(path)
        except ParticleFormatError as error:
            raise ConfigError(f"source.paths.{number}: {error}") from error
        voxels, length = volume.voxels, volume.voxels.shape[-1] * volume.voxel_size_angstrom
        if abs(length - box_length_angstrom) > _MAP_SIZE_TOLERANCE * box_length_angstrom:
            raise ConfigError(
                f"{where} spans {length:.5g} A, the images {box_length_angstrom:.5g} A: "
                f"set box_length_angstrom to {length:.5g}"
            )
        if voxels.shape[-1] < box or voxels.shape[-1] % 2:
            raise ConfigError(
                f"{where} has {voxels.shape[-1]} voxels a side, the images are made at {box}: "
                f"give an even map of at least {box}, or lower box_size and snr_box"
            )
        # A coarser image pixel adds up more voxels along the beam: the sum keeps its physical scale.
        volumes.append(crop_volume(voxels, box) * (voxels.shape[-1] / box))
    return VolumeImager(torch.stack(volumes), box_length_angstrom)
