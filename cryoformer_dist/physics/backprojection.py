"""A homogeneous reconstruction from images with known poses: the consensus map, half maps, the first occupancy."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.ctf import CTFParams, transfer_at
from cryoformer_dist.physics.fourier import fourier_to_volume, image_to_fourier, shifted
from cryoformer_dist.physics.grids import frequency_grid, interpolation_envelope, told_by_conjugate
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.projection import magnification

_PADDING = 2


class FourierAccumulator:
    """CTF-weighted insertion of image transforms as central slices, by trilinear gridding on a twofold padded lattice.

    Parameters
    ----------
    box
        Side of images and map in pixels.
    pixel_size_angstrom
        Voxel size of the map; particles of another pixel size are scaled to it (see `magnification`).
    device
        Where images are inserted.

    Attributes
    ----------
    sums
        ``(3, frequencies)``: CTF-weighted signal, real and imaginary part, and squared CTF. Accumulators add up by
        theirs.
    """

    def __init__(self, box: int, pixel_size_angstrom: float, device: torch.device | None = None) -> None:
        self.box = box
        self.pixel_size_angstrom = pixel_size_angstrom
        size = box * _PADDING
        self._size = size
        self.sums = torch.zeros(3, size**3, device=device)
        self._frequency = frequency_grid(size, self.sums.device)
        radius = self._frequency.square().sum(-1).sqrt() * size
        # Beyond the Nyquist sphere trilinear weights would fall off the lattice.
        self._inside = (radius < size // 2 - 1) & ~told_by_conjugate(self._frequency)

    def add(
        self,
        images: Float[Tensor, "particles box box"],
        pose: Pose,
        ctf: CTFParams,
        pixel_size_angstrom: Float[Tensor, " particles"] | None = None,
    ) -> None:
        """Insert a block of images.

        Parameters
        ----------
        images
            Light-on-dark, background mean 0, noise of equal variance.
        pose, ctf
            One entry per image.
        pixel_size_angstrom
            Of each image; the accumulator's own when ``None``.
        """
        pixel = torch.full((len(images),), self.pixel_size_angstrom, device=images.device)
        pixel = pixel if pixel_size_angstrom is None else pixel_size_angstrom.float()
        margin = (self._size - self.box) // 2
        padded = torch.nn.functional.pad(images.float(), (margin, margin, margin, margin))
        scale = magnification(self.pixel_size_angstrom, pixel)[:, None, None]
        transfer = transfer_at(ctf, self._frequency, pixel) * scale
        # The stored shift centres the image.
        centred = shifted(image_to_fourier(padded), pose.shift_angstrom.float() / pixel[:, None])
        inside = self._inside
        rotation = pose.rotation.float() * scale
        self.insert(self._frequency[inside], centred[:, inside], transfer[:, inside], rotation)

    def insert(
        self,
        frequency: Float[Tensor, "k 2"],
        images: Complex[Tensor, "particles k"],
        transfer: Float[Tensor, "particles k"],
        rotation: Float[Tensor, "particles 3 3"],
    ) -> None:
        """Insert coefficients of a block of images.

        Parameters
        ----------
        frequency
            Cycles per pixel of the box, within its Nyquist sphere; of each pair +-k one. Those of the padded lattice
            fill the map most evenly; those of the box are a quarter as many, and many images fill the gaps.
        images
            Centred.
        transfer
            CTF, times the magnification.
        rotation
            A of each image, times the magnification.
        """
        # The slice of a projection along z holds the volume's transform at A^T (kx, ky, 0).
        position = ((frequency * self._size) @ rotation[:, :2]).reshape(-1, 3)
        signal, weight = (images * transfer).reshape(-1), transfer.square().reshape(-1)
        keep = position.square().sum(-1) < (self._size // 2 - 1) ** 2
        position, signal, weight = position[keep], signal[keep], weight[keep]
        cell = position.floor()
        upper = position - cell
        share = torch.stack([1 - upper, upper])
        # Frequencies wrap: -1 is the last index.
        place = torch.stack([cell.long(), cell.long() + 1]).remainder(self._size)
        for dz in (0, 1):
            for dy in (0, 1):
                for dx in (0, 1):
                    part = share[dx, :, 0] * share[dy, :, 1] * share[dz, :, 2]
                    index = (place[dz, :, 2] * self._size + place[dy, :, 1]) * self._size + place[dx, :, 0]
                    self.sums[0].scatter_add_(0, index, part * signal.real)
                    self.sums[1].scatter_add_(0, index, part * signal.imag)
                    self.sums[2].scatter_add_(0, index, part * weight)

    def solve(self, wiener: float = 1.0) -> Float[Tensor, "box box box"]:
        """The map that the slices agree on, on the CPU.

        Parameters
        ----------
        wiener
            Added to the summed squared CTF of each frequency, in units of its mean over the measured ones: larger is
            smoother.
        """
        size, box = self._size, self.box
        # Only half of each slice was inserted: the map is real, so the other half is its conjugate at -k.
        real, imaginary, weight = self.sums.reshape(3, size, size, size)
        signal = torch.complex(real, imaginary)
        signal = signal + _at_minus_k(signal).conj()
        weight = weight + _at_minus_k(weight)
        measured = weight[weight > 0]
        floor = wiener * float(measured.mean()) if len(measured) else 1.0
        voxels = fourier_to_volume(signal / (weight + floor))
        margin = (size - box) // 2
        cut = slice(margin, margin + box)
        return (voxels[cut, cut, cut]).cpu() / interpolation_envelope(box, size, degree=1)


def _at_minus_k(grid: Tensor) -> Tensor:
    """A transform with every frequency negated."""
    return torch.roll(grid.flip((0, 1, 2)), (1, 1, 1), (0, 1, 2))
