"""A small phantom without any symmetry whose every projection is known in closed form."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoformer_dist.physics.ctf import CTFParams
from cryoformer_dist.physics.fourier import fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid, lattice_points
from cryoformer_dist.physics.pose import rotation_from_relion_euler

# (x, y, z) in pixels about the centre of a box of 32, and height; off-centre, no two alike, no plane of symmetry.
CENTRES = ((4.3, 0.4, 0.9), (-2.1, 5.2, -1.3), (0.7, -3.6, 4.1), (-3.4, -1.8, -4.6), (1.2, 2.5, 2.2))
HEIGHTS = (1.0, 0.7, 1.3, 0.5, 0.9)

# Nine orientations: the axes, both poles of the sphere, and general ones.
EULER_DEG = (
    *((0.0, 0.0, 0.0), (0.0, 0.0, 90.0), (0.0, 90.0, 0.0), (90.0, 90.0, 0.0), (30.0, 180.0, 20.0)),
    *((13.0, 37.0, -71.0), (-120.0, 65.0, 15.0), (77.0, 141.0, 160.0), (200.0, 101.0, 5.0)),
)


@dataclass(frozen=True)
class Blobs:
    """A sum of isotropic Gaussians, in pixels about the centre."""

    sigma: float
    centres: Tensor
    heights: Tensor

    def density(self, points: Tensor) -> Tensor:
        """Density at points ``(*batch, 3)``."""
        squared = (points[..., None, :] - self.centres).square().sum(-1)
        return (torch.exp(-squared / (2 * self.sigma**2)) * self.heights).sum(-1)

    def voxels(self, box: int) -> Tensor:
        """Density on the lattice of a box, ``[z, y, x]``."""
        return self.density(lattice_points(box)).reshape(box, box, box)

    def projection(self, rotation: Tensor, shift_pixels: Tensor, box: int) -> Tensor:
        """Exact transform of the integral along the beam, half plane, ``(particles, box, box // 2 + 1)``."""
        frequency = frequency_grid(box).double()
        landed = torch.einsum("bij,mj->bmi", rotation[:, :2].double(), self.centres.double())
        landed = landed + shift_pixels[:, None].double()
        mass = self.heights.double() * (2 * math.pi * self.sigma**2) ** 1.5
        falloff = torch.exp(-2 * math.pi**2 * self.sigma**2 * frequency.square().sum(-1))
        angle = -2 * math.pi * torch.einsum("hwi,bmi->bmhw", frequency, landed)
        return (torch.polar(mass[:, None, None].expand_as(angle), angle)).sum(1) * falloff

    def images(self, rotation: Tensor, shift_pixels: Tensor, box: int) -> Tensor:
        """Projections in real space, float32."""
        return fourier_to_image(self.projection(rotation, shift_pixels, box), box).float()

    def scaled(self, factor: float) -> "Blobs":
        """The same molecule with pixels that are ``1 / factor`` as large."""
        return Blobs(self.sigma * factor, self.centres * factor, self.heights)

    def as_stored(self, magnification: float) -> "Blobs":
        """The molecule as images of another pixel size show it in units of their noise."""
        # A projection's sum is to grow with the magnification; in three dimensions it grows with the cube.
        return replace(self.scaled(magnification), heights=self.heights / magnification**2)


def blobs(sigma: float = 1.5) -> Blobs:
    """The phantom of these tests."""
    return Blobs(sigma, torch.tensor(CENTRES), torch.tensor(HEIGHTS))


def points_within(radius_pixels: float, box: int) -> Tensor:
    """``(points, 3)``: lattice points of a box within a distance of its centre."""
    points = lattice_points(box)
    return points[points.square().sum(-1) <= radius_pixels**2]


def rotations() -> Tensor:
    """``(9, 3, 3)``: the orientations of `EULER_DEG`."""
    return rotation_from_relion_euler(torch.tensor(EULER_DEG))


def no_shift(count: int) -> Tensor:
    """``(count, 2)`` zeros."""
    return torch.zeros(count, 2)


def microscope(count: int, **fields: float) -> CTFParams:
    """One and the same microscope for all particles; without arguments it passes everything unchanged (CTF 1)."""
    perfect = {
        **{"defocus_u_angstrom": 0.0, "defocus_v_angstrom": 0.0, "defocus_angle_deg": 0.0, "phase_shift_deg": 90.0},
        **{"voltage_kv": 300.0, "spherical_aberration_mm": 0.0, "amplitude_contrast": 0.0},
    }
    return CTFParams(**{name: torch.full((count,), value) for name, value in (perfect | fields).items()})


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation over the last two axes."""
    first, second = (x.double() - x.double().mean((-2, -1), keepdim=True) for x in (first, second))
    return (first * second).sum((-2, -1)) / (first.square().sum((-2, -1)) * second.square().sum((-2, -1))).sqrt()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root of the squared error over the squared truth."""
    return float((found - expected).abs().square().sum().sqrt() / expected.abs().square().sum().sqrt())
