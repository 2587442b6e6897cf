"""Images of selected particles, and what the model says they should look like."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoformer_dist.data.batch import ImageBlock, make_batch
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.projection import magnification
from cryoformer_dist.physics.slices import SplineSlices
from cryoformer_dist.viewer.maps import DecodedMaps
from cryoformer_dist.viewer.snapshot import Snapshot

MOST_IMAGES = 24


@dataclass(frozen=True, slots=True, eq=False)
class Montage:
    """Images, each by itself scaled to mean 0 and standard deviation 1.

    Attributes
    ----------
    particles
        ``(images,)``: places in the columns.
    images
        ``(images, box, box)``: as stored, noise whitened.
    filtered
        ``(images, box, box)``: weighted by their CTF, and by how strong projections are against noise (Wiener's way).
    projected
        ``(images, box, box)``: projections of each particle's own map at its pose, weighted in the same way.
    """

    particles: Int[np.ndarray, " images"]
    images: Float[np.ndarray, "images box box"]
    filtered: Float[np.ndarray, "images box box"]
    projected: Float[np.ndarray, "images box box"]


def draw_sample(places: Int[np.ndarray, " particles"], count: int, seed: int) -> Int[np.ndarray, " sample"]:
    """Some of these places, at random, ascending.

    Raises
    ------
    SelectionError
        If there is none, or too many images are asked for.
    """
    if not len(places):
        raise SelectionError("no particle is selected; draw a lasso round some")
    if not 1 <= count <= MOST_IMAGES or seed < 0:
        raise SelectionError(f"1 to {MOST_IMAGES} images can be shown, with a seed from 0 on; ask for so many")
    return np.sort(np.random.default_rng(seed).choice(places, min(count, len(places)), replace=False))


def make_montage(snapshot: Snapshot, maps: DecodedMaps, places: Int[np.ndarray, " images"]) -> Montage:
    """Images of particles, and of their maps."""
    store, rows = snapshot.columns.store, snapshot.columns.store_row[places]
    particles = store.particles()
    batch = make_batch(ImageBlock(store.read_images(rows), rows, np.zeros_like(rows)), particles)
    transfer = transfer_at(batch.ctf, frequency_grid(store.box_size), batch.pixel_size_angstrom)
    box, projected = store.box_size, project_maps(snapshot, maps, places, batch.pixel_size_angstrom)
    filter_ = transfer / (transfer.square() + 1 / _signal_to_noise(projected))
    filtered = fourier_to_image(image_to_fourier(batch.images) * filter_, box)
    shown = (batch.images, filtered, fourier_to_image(projected * transfer * filter_, box))
    return Montage(places, *(_standardise(each.float().numpy()) for each in shown))


def project_maps(
    snapshot: Snapshot,
    maps: DecodedMaps,
    places: Int[np.ndarray, " images"],
    pixel_size_angstrom: Float[Tensor, " images"],
) -> Complex[Tensor, "images box half"]:
    """Half-plane transform of each particle's own map, projected at its pose as trained; before the CTF."""
    columns = snapshot.columns
    pose = columns.refined or columns.store.particles().pose(columns.store_row)
    scale = magnification(columns.store.pixel_size_angstrom, pixel_size_angstrom)
    rotation = pose.rotation[places] * scale[:, None, None]
    shift = -pose.shift_angstrom[places] / pixel_size_angstrom[:, None]
    projections = []
    for number, place in enumerate(places):
        slices = SplineSlices(torch.from_numpy(maps.of(snapshot.latents[place]))[None])
        here = slice(number, number + 1)
        projections.append(slices.project(rotation[here], shift[here])[0, 0])
    return torch.stack(projections)


def _signal_to_noise(projections: Complex[Tensor, "images box half"]) -> Float[Tensor, "box half"]:
    """Power of projections over that of white noise of unit variance, mean over images and over each ring."""
    box = projections.shape[-2]
    ring = (frequency_grid(box) * box).norm(dim=-1).round().long()
    power = projections.abs().square().mean(0) / box**2
    total = torch.zeros(int(ring.max()) + 1).index_add_(0, ring.ravel(), power.ravel())
    # Corners, beyond Nyquist, hold nothing.
    mean: Tensor = (total / ring.ravel().bincount())[ring]
    return mean.clamp_min(1e-6)


def _standardise(images: Float[np.ndarray, "images box box"]) -> Float[np.ndarray, "images box box"]:
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    scaled: np.ndarray = centred / centred.std(axis=(1, 2), keepdims=True).clip(min=1e-30)
    return scaled
