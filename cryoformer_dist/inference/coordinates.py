"""Coordinates of particles along principal maps, errors of their poses integrated out.

With x an image, M the projections of mean map and principal maps and J the mean map's slopes in five directions of the
pose, ``x = M (a, a z) + J a theta + noise``: the amplitude a about 1, coordinates z of unit variance, and theta, the
error of the given pose, about 0. All is linear and Gaussian. Without theta the strongest principal maps of a rigid
molecule are slopes of its map: errors of the poses are taken for conformations.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.inference.comparison import Spread, find_spread
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.projection import project_points

# Particles that say how far all depart from what is given.
_SAMPLE = 1_000
_FAINTEST = 0.2
# As good as none.
_LEAST_AMPLITUDE_SPREAD = 0.01


@dataclass(frozen=True, slots=True)
class Products:
    """Scalar products of images, projections and slopes: all that coordinates depend on.

    Attributes
    ----------
    gram
        ``(particles, modes, modes)``: of the maps' projections, then of the mean map's slopes if poses may err.
    match
        ``(particles, modes)``: with the images.
    maps
        How many of the modes are maps.
    """

    gram: Float[Tensor, "particles modes modes"]
    match: Float[Tensor, "particles modes"]
    maps: int

    def find_spread(self, share: slice, count: int, wanted: Spread, pixel_size_angstrom: float) -> Spread:
        """The spread under which images of all ranks are most probable; see `comparison.find_spread`.

        Parameters
        ----------
        share, count
            Which of how many particles these are: the same ones are asked on any number of ranks.
        wanted, pixel_size_angstrom
            As of `comparison.find_spread`.
        """
        step = stride_for(count, _SAMPLE)
        asked = slice(-share.start % step, None, step)
        sample = Products(self.gram[asked], self.match[asked], self.maps)
        return find_spread(lambda spread: sample.solve(spread)[1], pixel_size_angstrom, wanted)

    def find_coordinates(
        self, spread: Spread
    ) -> tuple[Float[Tensor, "particles dimensions"], Float[Tensor, " particles"]]:
        """The most probable coordinates and amplitudes under a spread."""
        found = self.solve(spread)[0]
        # Of a particle of double contrast both the mean map and the principal ones count twice.
        amplitude = found[:, 0].clamp_min(_FAINTEST)
        return found[:, 1 : self.maps] / amplitude[:, None], amplitude

    def solve(self, spread: Spread) -> tuple[Float[Tensor, "particles modes"], Float[Tensor, ""]]:
        """How much of each mode is in each image, and the log evidence of all images."""
        precision = self._precision(spread)
        factor = torch.linalg.cholesky(self.gram + torch.diag(precision))
        # The prior's mean is amplitude 1 and nothing of the others.
        aim = self.match.clone()
        aim[:, 0] += precision[0]
        found = torch.cholesky_solve(aim[..., None], factor)[..., 0]
        determinant = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.log().sum() / 2
        evidence = ((aim * found).sum(-1) - precision[0]) / 2 - determinant
        return found, evidence.double().sum()

    def _precision(self, spread: Spread) -> Float[Tensor, " modes"]:
        """One over the variance of each mode."""
        precision = self.gram.new_ones(self.gram.shape[1])
        precision[0] = max(spread.amplitude, _LEAST_AMPLITUDE_SPREAD) ** -2
        slopes = len(precision) - self.maps
        precision[self.maps :] = spread.pose_precision(self.gram)[:slopes]
        return precision


def find_slopes(
    images: CroppedImages,
    density: Float[Tensor, " points"],
    projection: Complex[Tensor, "particles box half"],
    points_pixels: Float[Tensor, "points 3"],
) -> Complex[Tensor, "particles 5 box half"]:
    """How images of a map change with their poses, per radian about the image's axes and per angstrom.

    Parameters
    ----------
    images
        Whose poses and CTFs.
    density
        Of the map at its points.
    projection
        What the images show of it, CTF and all.
    points_pixels
        Where, in pixels of the images about the centre.
    """
    box = projection.shape[-2]
    # By a rotation vector n, as cryoSPARC has them, a point p moves along p x n.
    placed = points_pixels @ images.rotation.mT
    moments = [
        project_points(density * placed[..., axis], points_pixels, images.rotation, images.shift_pixels, box)
        for axis in range(3)
    ]
    x, y, z = (moment * images.transfer for moment in moments)
    # d/dp exp(-2 pi i k p) = -2 pi i k exp(-2 pi i k p).
    kx, ky = (-2j * torch.pi * frequency_grid(box, density.device)).unbind(-1)
    # Where the content goes is minus the stored shift.
    per_angstrom = -projection / images.pixel_size_angstrom[:, None, None]
    return torch.stack([ky * z, -kx * z, kx * y - ky * x, kx * per_angstrom, ky * per_angstrom], dim=1)
