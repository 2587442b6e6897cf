"""Images cropped to a smaller box, in units of their noise, as projections of maps are compared with them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import crop_images, image_to_fourier
from cryoformer_dist.physics.grids import CPU, frequency_grid
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.projection import magnification

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class CroppedImages:
    """Transforms of some particles' images, and what makes of a map what they show.

    Attributes
    ----------
    coefficients
        Half planes in units of the noise; of 16 to 24 pixels a kilobyte or two each.
    transfer
        CTF, times the magnification.
    rotation
        A of each particle, times the magnification.
    shift_pixels
        Where the content has moved to.
    pixel_size_angstrom
        Of the cropped images.
    """

    coefficients: Complex[Tensor, "particles box half"]
    transfer: Float[Tensor, "particles box half"]
    rotation: Float[Tensor, "particles 3 3"]
    shift_pixels: Float[Tensor, "particles 2"]
    pixel_size_angstrom: Float[Tensor, " particles"]

    @staticmethod
    def of(
        store: ParticleStore, rows: Rows, box: int, pose: Pose | None = None, device: torch.device = CPU
    ) -> "CroppedImages":
        """Read particles.

        Parameters
        ----------
        store, rows
            Which.
        box
            Side of the cropped images in pixels, as `crop_images` takes it.
        pose
            One per row; those of the store when ``None``.
        device
            Where to crop and hold them.

        Raises
        ------
        StoreError
            If no poses are given and the store has none.
        """
        particles, factor = store.particles(), store.box_size / box
        pose = (particles.pose(rows) if pose is None else pose).to(device)
        stored = torch.from_numpy(particles.pixel_size_angstrom[rows]).to(device)
        pixel = stored * factor
        scale = magnification(store.pixel_size_angstrom, stored)[:, None, None]
        # In blocks: whole images do not fit in memory together.
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        return CroppedImages(
            coefficients=torch.cat([image_to_fourier(read_cropped(store, block, box, device)) for block in blocks]),
            transfer=transfer_at(particles.ctf(rows).to(device), frequency_grid(box, device), pixel) * scale,
            rotation=pose.rotation * scale,
            shift_pixels=-pose.shift_angstrom / pixel[:, None],
            pixel_size_angstrom=pixel,
        )

    def __getitem__(self, particles: slice | Tensor) -> "CroppedImages":
        return CroppedImages(*(getattr(self, field.name)[particles] for field in fields(self)))

    def blocks(self, size: int) -> Iterator[tuple[slice, "CroppedImages"]]:
        """So many particles at a time, with their places."""
        for start in range(0, len(self.rotation), size):
            part = slice(start, start + size)
            yield part, self[part]


def read_cropped(
    store: ParticleStore, rows: Rows, box: int, device: torch.device = CPU
) -> Float[Tensor, "particles box box"]:
    """Images band-limited to a smaller box, their noise of unit variance as before."""
    # As stored, half as many bytes travel to a GPU.
    images = torch.from_numpy(store.read_images(rows)).to(device).float()
    # Cropping averages noise away; the factor brings its standard deviation back to one.
    return crop_images(images, box) * (store.box_size / box)
