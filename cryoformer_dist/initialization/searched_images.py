"""Images as a pose search holds them: read once, with no more frequencies than its finest round looks at."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import crop_half_plane, image_to_fourier
from cryoformer_dist.physics.grids import half_disc
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.projection import magnification

_BLOCK = 256


def compared_disc(box: int) -> tuple[Int[Tensor, " k"], Float[Tensor, "k 2"]]:
    """Frequencies of a box that may be compared and back-projected, as `half_disc` gives them: short of Nyquist."""
    return half_disc(box, (box - 1) / 2)


@dataclass(frozen=True, slots=True)
class SearchedImages:
    """Transforms of images, their transfer functions and given poses: some 5 kB a particle of 48 pixels.

    Attributes
    ----------
    coefficients
        Real and imaginary parts in units of their noise, of the frequencies in `compared_disc`; half precision, as
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
        flat_index, frequency = compared_disc(box)
        pixel = torch.from_numpy(particles.pixel_size_angstrom[rows])
        scale = magnification(store.pixel_size_angstrom, pixel)
        coefficients = torch.empty(len(rows), len(flat_index), 2, dtype=torch.float16)
        transfer = torch.empty(len(rows), len(flat_index), dtype=torch.float16)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            transform = image_to_fourier(torch.from_numpy(store.read_images(rows[part])).float())
            cropped = transform if box == old else crop_half_plane(transform, box)
            coefficients[part] = torch.view_as_real(cropped.flatten(1)[:, flat_index] / old)
            ctf = transfer_at(particles.ctf(rows[part]), frequency, pixel[part] * (old / box))
            transfer[part] = ctf * scale[part, None]
        place = torch.full((box * (box // 2 + 1),), -1)
        place[flat_index] = torch.arange(len(flat_index))
        given = particles.pose(rows)
        return SearchedImages(
            coefficients.to(device),
            transfer.to(device),
            Pose(given.rotation.to(device), given.shift_angstrom.to(device)),
            pixel.to(device),
            scale.to(device),
            place.reshape(box, -1).to(device),
            old,
        )

    def __len__(self) -> int:
        return len(self.transfer)

    def __getitem__(self, particles: slice | Tensor) -> "SearchedImages":
        return SearchedImages(
            self.coefficients[particles],
            self.transfer[particles],
            Pose(self.given.rotation[particles], self.given.shift_angstrom[particles]),
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
