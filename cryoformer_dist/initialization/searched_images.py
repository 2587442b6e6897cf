"""Images as a pose search holds them: read once, with no more frequencies than its finest round looks at."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import crop_half_plane, image_to_fourier
from cryoformer_dist.physics.grids import largest_disc
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.projection import magnification

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class SearchedImages:
    """Transforms of images, their transfer functions and given poses: some 5 kB a particle of 48 pixels.

    Attributes
    ----------
    coefficients
        Real and imaginary parts in units of their noise, of the frequencies in `largest_disc`; half precision, as
        stored images are.
    transfer
        CTF, times the magnification.
    given
        Poses in the store.
    pixel_size_angstrom
        Of the stored images.
    magnification
        See the function of that name.
    place
        ``(box, box // 2 + 1)``: where in the list each frequency of the half plane stands, if it does.
    stored_box
        Side of the stored images.
    """

    coefficients: Float[Tensor, "particles k 2"]
    transfer: Float[Tensor, "particles k"]
    given: Pose
    pixel_size_angstrom: Float[Tensor, " particles"]
    magnification: Float[Tensor, " particles"]
    place: Int[Tensor, "box half"]
    stored_box: int

    @staticmethod
    def read(store: ParticleStore, rows: Rows, box: int, device: torch.device) -> "SearchedImages":
        """Read particles.

        Parameters
        ----------
        store, rows
            Which.
        box
            Side of the largest box that will be asked for.
        device
            Where to hold them.
        """
        particles, old = store.particles(), store.box_size
        flat_index, frequency = (each.to(device) for each in largest_disc(box))
        pixel = torch.from_numpy(particles.pixel_size_angstrom[rows]).to(device)
        scale = magnification(store.pixel_size_angstrom, pixel)
        ctf = particles.ctf(rows).to(device)
        coefficients = torch.empty(len(rows), len(flat_index), 2, dtype=torch.float16, device=device)
        transfer = torch.empty(len(rows), len(flat_index), dtype=torch.float16, device=device)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            # As stored, half as many bytes travel to a GPU.
            transform = image_to_fourier(torch.from_numpy(store.read_images(rows[part])).to(device).float())
            cropped = transform if box == old else crop_half_plane(transform, box)
            coefficients[part] = torch.view_as_real(cropped.flatten(1)[:, flat_index] / old)
            transfer[part] = transfer_at(ctf[part], frequency, pixel[part] * (old / box)) * scale[part, None]
        place = torch.full((box * (box // 2 + 1),), -1, device=device)
        place[flat_index] = torch.arange(len(flat_index), device=device)
        place = place.reshape(box, -1)
        return SearchedImages(coefficients, transfer, particles.pose(rows).to(device), pixel, scale, place, old)

    def __len__(self) -> int:
        return len(self.transfer)

    def __getitem__(self, particles: slice | Tensor) -> "SearchedImages":
        return SearchedImages(
            self.coefficients[particles],
            self.transfer[particles],
            self.given[particles],
            self.pixel_size_angstrom[particles],
            self.magnification[particles],
            self.place,
            self.stored_box,
        )

    def pixel_size_at(self, box: int) -> Float[Tensor, "particles 1"]:
        """Pixel sizes of images cropped to a box, in angstrom."""
        return self.pixel_size_angstrom[:, None] * (self.stored_box / box)

    def at(
        self, box: int, flat_index: Int[Tensor, " k"]
    ) -> tuple[Complex[Tensor, "particles k"], Float[Tensor, "particles k"]]:
        """Coefficients of images cropped to a box, their noise of unit variance per pixel, and transfer functions."""
        row, column = flat_index // (box // 2 + 1), flat_index % (box // 2 + 1)
        # Negative frequencies stand at the end, in any box.
        wanted = self.place[torch.where(row < box // 2, row, row - box), column]
        coefficients = torch.view_as_complex(self.coefficients[:, wanted].float()) * box
        return coefficients, self.transfer[:, wanted].float()
