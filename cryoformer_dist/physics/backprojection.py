"""A homogeneous reconstruction from images with known poses: the consensus map, half maps, the first occupancy."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.physics.ctf import CTFParams, transfer_at
from cryoformer_dist.physics.fourier import image_to_fourier, phase_ramp
from cryoformer_dist.physics.grids import half_plane_weight, interpolation_envelope, largest_disc
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.projection import magnification

_PADDING = 2
# Frequencies that are inserted together: a processor's cache holds their corners; a GPU has many to do at once.
_TOGETHER, _TOGETHER_ON_GPU = 2**18, 2**22
_SUMS = 3


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
        ``(3, frequencies)``: CTF-weighted signal, real and imaginary part, and squared CTF, on the half of the lattice
        where ``kx >= 0`` (a map is real). Accumulators add up by theirs.
    flat_index, frequency
        The frequencies of an image that are inserted, as `largest_disc` gives them.
    """

    def __init__(self, box: int, pixel_size_angstrom: float, device: torch.device | None = None) -> None:
        self.box = box
        self.pixel_size_angstrom = pixel_size_angstrom
        self._size, self._columns = box * _PADDING, box * _PADDING // 2 + 1
        # Frequencies along z and y, in ascending order, then x.
        self.sums = torch.zeros(_SUMS, self._size**2 * self._columns, device=device)
        self.flat_index, self.frequency = (each.to(self.sums.device) for each in largest_disc(box))
        z, y, x = torch.meshgrid(*[torch.arange(2)] * 3, indexing="ij")
        self._corners = ((z * self._size + y) * self._columns + x).reshape(-1, 1).to(self.sums.device)

    def add(
        self,
        images: Float[Tensor, "particles box box"],
        pose: Pose,
        ctf: CTFParams,
        pixel_size_angstrom: Float[Tensor, " particles"] | None = None,
        weight: Float[Tensor, " particles"] | None = None,
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
        weight
            How many images each counts for; one when ``None``.
        """
        pixel = torch.full((len(images),), self.pixel_size_angstrom, device=images.device)
        pixel = pixel if pixel_size_angstrom is None else pixel_size_angstrom.float()
        scale = magnification(self.pixel_size_angstrom, pixel)[:, None]
        coefficients = image_to_fourier(images.float()).flatten(1)[:, self.flat_index]
        # The stored shift centres the image.
        centred = coefficients * phase_ramp(self.frequency, pose.shift_angstrom.float() / pixel[:, None])
        transfer = transfer_at(ctf, self.frequency, pixel) * scale
        if weight is not None:
            # It enters signal and squared CTF once, as products of two of these.
            root = weight.sqrt()[:, None]
            centred, transfer = centred * root, transfer * root
        self.insert(centred, transfer, pose.rotation.float() * scale[..., None])

    def insert(
        self,
        images: Complex[Tensor, "particles k"],
        transfer: Float[Tensor, "particles k"],
        rotation: Float[Tensor, "particles 3 3"],
    ) -> None:
        """Insert coefficients of a block of images, those of `flat_index`.

        Parameters
        ----------
        images
            Centred.
        transfer
            CTF, times the magnification.
        rotation
            A of each image, times the magnification.
        """
        together = _TOGETHER_ON_GPU if self.sums.is_cuda else _TOGETHER
        block = max(1, together // len(self.frequency))
        for start in range(0, len(images), block):
            part = slice(start, start + block)
            self._insert_block(images[part], transfer[part], rotation[part])

    def _insert_block(self, images: Tensor, transfer: Tensor, rotation: Tensor) -> None:
        # The slice of a projection along z holds the volume's transform at A^T (kx, ky, 0).
        position = torch.einsum("ki,bij->jbk", self.frequency * self._size, rotation[:, :2]).flatten(1)
        # A real map's coefficient at -k is the conjugate of that at k.
        side = torch.where(position[0] < 0, -1.0, 1.0)
        # Beyond the Nyquist sphere trilinear weights would fall off the lattice: such values count for nothing.
        inside = (position.square().sum(0) < (self._size // 2 - 1) ** 2).float()
        position = position * (side * inside)
        signal, weight = (images * transfer).flatten(), transfer.square().flatten()
        values = torch.stack([signal.real, signal.imag * side, weight]) * inside
        cell = position.floor()
        upper = position - cell
        x, y, z = cell.long()
        middle = self._size // 2
        index = ((z + middle) * self._size + y + middle) * self._columns + x
        share_x, share_y, share_z = torch.stack([1 - upper, upper], dim=1)
        share = (share_z[:, None, None] * share_y[:, None] * share_x).flatten(0, 2)
        places = (index + self._corners).flatten().expand(_SUMS, -1)
        self.sums.scatter_add_(1, places, (values[:, None] * share).flatten(1))

    def solve(self, wiener: float = 1.0) -> Float[Tensor, "box box box"]:
        """The map that the slices agree on, where they were inserted.

        Parameters
        ----------
        wiener
            Added to the summed squared CTF of each frequency, in units of its mean over the measured ones: larger is
            smoother.
        """
        size, columns = self._size, self._columns
        real, imaginary, weight = self.sums.reshape(_SUMS, size, size, columns)
        signal, weight = torch.complex(real, imaginary), weight.clone()
        # On the plane kx = 0 one of each pair +-k was inserted.
        signal[..., 0] += _at_minus_k(signal[..., 0]).conj()
        weight[..., 0] += _at_minus_k(weight[..., 0])
        times = half_plane_weight(size, weight.device)
        measured = ((weight > 0) * times).sum()
        mean = (weight * times).sum() / measured.clamp_min(1)
        floor = torch.where(measured > 0, wiener * mean, 1.0)
        voxels = _to_middle(signal / (weight + floor), self.box)
        return voxels / interpolation_envelope(self.box, size, degree=1, device=voxels.device)


def _at_minus_k(plane: Tensor) -> Tensor:
    """A plane of frequencies in ascending order with every frequency negated."""
    return torch.roll(plane.flip((0, 1)), (1, 1), (0, 1))


def _to_middle(coefficients: Complex[Tensor, "size size half"], box: int) -> Float[Tensor, "box box box"]:
    """The middle of the map of a half transform; axis by axis, since nothing else of it is wanted."""
    size, half = coefficients.shape[0], box // 2

    def cut(voxels: Tensor, axis: int) -> Tensor:
        return torch.cat([voxels.narrow(axis, size - half, half), voxels.narrow(axis, 0, half)], dim=axis)

    # Frequencies in ascending order: every other voxel comes out negative.
    sign = 1 - 2 * (torch.arange(box, device=coefficients.device) + half).remainder(2).float()
    along_z = cut(torch.fft.ifft(coefficients, dim=0), 0) * sign[:, None, None]
    along_y = cut(torch.fft.ifft(along_z, dim=1), 1) * sign[:, None]
    return cut(torch.fft.irfft(along_y, n=size, dim=2), 2)
