"""First latents from a linear model: a mean map plus a few principal maps, fitted at low resolution.

From random latents the network must break a symmetry, and how soon it does depends on the seed. A linear model (3DVA
and RECOVAR in spirit; probabilistic PCA without the posterior's covariance) finds the leading motions in seconds by
alternating least squares; its coordinates are where the latent table starts.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.inference.comparison import Spread
from cryoformer_dist.inference.coordinates import Products, find_slopes
from cryoformer_dist.physics.fourier import comparable_frequencies
from cryoformer_dist.physics.grids import CPU, half_plane_weight
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.projection import project_points
from cryoformer_dist.progress import Progress
from cryoformer_dist.ranks import broadcast_from_leader, gather_shares, sum_over_ranks, take_share

_PIXEL_ANGSTROM = 14.0
_SMALLEST_BOX = 16
_SAMPLE = 10_000
_ROUNDS = 6
_DESCENTS = 3
# Density values per block of a fit: blocks that leave the processor's cache take twice as long per image.
_BLOCK_VALUES, _BLOCK_VALUES_ON_GPU = 2**17, 2**23


def fit_linear_latents(
    store: ParticleStore,
    rows: Rows,
    mask: Bool[Tensor, "box box box"],
    dimensions: int,
    seed: int,
    progress: Progress | None = None,
    device: torch.device = CPU,
    varying: Bool[Tensor, "box box box"] | None = None,
) -> Float[Tensor, "particles dimensions"]:
    """Coordinates of particles along the principal maps of their differences, uncorrelated and of unit variance.

    By all ranks together: coordinates are found for shares of the particles, and the maps' slopes add up.

    Parameters
    ----------
    store
        Particle store, with poses.
    rows
        Particles, the same on every rank; the maps are fitted to 10,000 of them, at most twice as many.
    mask
        Where there may be density.
    dimensions
        How many principal maps.
    seed
        Of the first, random coordinates.
    progress
        Called with steps done and in all: rounds, then blocks of particles.
    device
        Where maps and coordinates are fitted, and returned.
    varying
        Where conformations may differ; everywhere inside the mask when ``None``.
    """
    box = _coarse_box(store)
    model = LinearModel.of(mask, varying, box, device)
    sampled = rows[:: stride_for(len(rows), _SAMPLE)]
    share = take_share(len(sampled))
    sample = CroppedImages.of(store, sampled[share], box, device=device)
    latent = torch.randn(len(sampled), dimensions, generator=torch.Generator().manual_seed(seed))[share].to(device)
    # Once the maps are there, all particles in blocks: their images do not fit in memory together.
    parts = _cut(rows[take_share(len(rows))], _SAMPLE)
    steps = _ROUNDS + len(parts)
    pixel = store.pixel_size_angstrom * store.box_size / box
    spread = Spread.to_begin(pixel, poses_err=True, amplitudes_differ=True)
    maps = model.fit_maps(sample, latent, model.no_maps(dimensions))
    for done in range(_ROUNDS):
        products = model.compare(sample, maps, spread.moves_poses)
        spread = products.find_spread(share, len(sampled), spread, pixel)
        latent, amplitude = products.find_coordinates(spread)
        # At given poses, blurred as they are: at the most probable ones, maps and poses agree on the noise.
        maps = model.fit_maps(sample, whiten(latent), maps, amplitude)
        if progress is not None:
            progress(done + 1, steps)
    latents = []
    for done, part in enumerate(parts, _ROUNDS):
        images = CroppedImages.of(store, part, box, device=device)
        latents.append(model.compare(images, maps, spread.moves_poses).find_coordinates(spread)[0])
        if progress is not None:
            progress(done + 1, steps)
    return gather_shares(whiten(torch.cat(latents)), len(rows))


def _cut(rows: Rows, length: int) -> list[Rows]:
    return [rows[start : start + length] for start in range(0, len(rows), length)]


def fit_principal_maps(
    store: ParticleStore,
    rows: Rows,
    mask: Bool[Tensor, "box box box"],
    latents: Float[Tensor, "particles dimensions"],
    varying: Bool[Tensor, "box box box"] | None = None,
) -> Float[Tensor, "maps coarse coarse coarse"]:
    """The mean map and the change per unit of each coordinate, given everybody's coordinates.

    Parameters
    ----------
    store, rows, mask, varying
        As of `fit_linear_latents`.
    latents
        Coordinates of the same particles; maps are fitted where they are.
    """
    box, device = _coarse_box(store), latents.device
    model = LinearModel.of(mask, varying, box, device)
    step = stride_for(len(rows), _SAMPLE)
    sampled = np.arange(len(rows))[::step]
    mine = sampled[take_share(len(sampled))]
    images = CroppedImages.of(store, rows[mine], box, device=device)
    maps = model.fit_maps(images, latents[torch.from_numpy(mine).to(device)], model.no_maps(latents.shape[1]))
    voxels = maps.new_zeros(len(maps), box**3)
    voxels[:, _coarse_lattice(mask, box).flat_index.to(device)] = maps
    return voxels.reshape(-1, box, box, box)


class LinearModel:
    """Images as ``CTF * projection(maps[0] + latent @ maps[1:])``.

    Parameters
    ----------
    points
        ``(points, 3)`` pixels about the centre: where maps may have density.
    box
        Side of the images in pixels.
    varying
        ``(points,)``: where maps but the first may have density; everywhere when ``None``.
    """

    def __init__(self, points: Tensor, box: int, varying: Tensor | None = None) -> None:
        self._points, self._box, self._varying = points, box, varying
        self._block = max(4, (_BLOCK_VALUES_ON_GPU if points.is_cuda else _BLOCK_VALUES) // len(points))
        self._weight = (comparable_frequencies(box) * half_plane_weight(box) / box**2).to(points.device)

    @staticmethod
    def of(mask: Tensor, varying: Tensor | None, box: int, device: torch.device) -> "LinearModel":
        """One on the coarse lattice of a mask, its conformations different in part of it."""
        lattice = _coarse_lattice(mask, box)
        if varying is not None:
            varying = torch.isin(lattice.flat_index, _coarse_lattice(varying, box).flat_index).to(device)
        return LinearModel(lattice.points_pixels.to(device), box, varying)

    def no_maps(self, dimensions: int) -> Tensor:
        """A mean map and so many principal maps without density."""
        return self._points.new_zeros(dimensions + 1, len(self._points))

    def fit_maps(self, images: CroppedImages, latent: Tensor, start: Tensor, amplitude: Tensor | None = None) -> Tensor:
        """Least-squares maps at given coordinates, by a few steps of conjugate gradients from ``start``."""
        mixing = torch.nn.functional.pad(latent, (1, 0), value=1.0)
        mixing = mixing if amplitude is None else mixing * amplitude[:, None]
        maps = start.clone()
        residual = -self._gradient(images, mixing, maps, with_data=True)
        direction = residual
        energy = residual.square().sum()
        for _ in range(_DESCENTS):
            curved = self._gradient(images, mixing, direction, with_data=False)
            step = energy / (direction * curved).sum()
            maps = maps + step * direction
            residual = residual - step * curved
            previous, energy = energy, residual.square().sum()
            direction = residual + (energy / previous) * direction
        return maps

    def compare(self, images: CroppedImages, maps: Tensor, with_slopes: bool) -> Products:
        """Scalar products of images with projections of all maps, and with slopes of the first if poses may err."""
        grams, matches = [], []
        for _, block in images.blocks(self._block):
            # One map at a time: positions of all points in all images are large.
            everyone = (len(block.rotation), -1)
            modes = torch.stack([self._project(block, one.expand(everyone)) for one in maps], dim=1)
            if with_slopes:
                modes = torch.cat([modes, find_slopes(block, maps[0], modes[:, 0], self._points)], dim=1)
            weighted = modes.conj() * self._weight
            grams.append(torch.einsum("bkyx,blyx->bkl", weighted, modes).real)
            matches.append(torch.einsum("bkyx,byx->bk", weighted, block.coefficients).real)
        return Products(torch.cat(grams), torch.cat(matches), len(maps))

    def _project(self, block: CroppedImages, density: Tensor) -> Tensor:
        projection = project_points(density, self._points, block.rotation, block.shift_pixels, self._box)
        return projection * block.transfer

    def _gradient(self, images: CroppedImages, mixing: Tensor, maps: Tensor, with_data: bool) -> Tensor:
        """Slope of half the squared error in the maps; without data, the error's curvature applied to the maps."""
        total = torch.zeros_like(maps)
        for part, block in images.blocks(self._block):
            density = (mixing[part] @ maps).requires_grad_(True)
            difference = self._project(block, density)
            if with_data:
                difference = difference - block.coefficients
            error = 0.5 * ((difference.real.square() + difference.imag.square()) * self._weight).sum()
            (slope,) = torch.autograd.grad(error, density)
            total += mixing[part].T @ slope
        if self._varying is not None:
            # Maps begin without density: what no slope shows in they keep not having.
            total[1:] *= self._varying
        return sum_over_ranks(total)


def _coarse_box(store: ParticleStore) -> int:
    wanted = 2 * round(store.box_size * store.pixel_size_angstrom / _PIXEL_ANGSTROM / 2)
    return min(store.box_size, max(_SMALLEST_BOX, wanted))


def _coarse_lattice(mask: Tensor, box: int) -> Lattice:
    """Places of the coarse lattice near the mask, in pixels of the coarse box."""
    size = mask.shape[-1]
    near = Lattice.of(mask, 1, 0).coarsened(size, box)
    return replace(near, points_pixels=near.points_pixels * (box / size))


def whiten(latent: Tensor) -> Tensor:
    """Uncorrelated coordinates of mean 0 and variance 1 over the particles of all ranks, the strongest first."""
    count = sum_over_ranks(latent.new_full((), len(latent)))
    centred = latent - sum_over_ranks(latent.sum(0)) / count
    values, vectors = torch.linalg.eigh(sum_over_ranks(centred.T @ centred) / count)
    # A direction may come out either way round, and must not on some ranks only.
    vectors = broadcast_from_leader(vectors)
    white: Tensor = (centred @ vectors.flip(1)) / values.flip(0).clamp_min(1e-12).sqrt()
    return white
