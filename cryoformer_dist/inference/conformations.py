"""Conformations along a latent cloud, their maps as mixtures of a few, and images compared with them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.inference.comparison import DIRECTIONS, Comparison
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import crop_half_plane, image_to_fourier, phase_ramp, to_real_vectors
from cryoformer_dist.physics.pose import Pose, axis_angle_from_rotation, rotation_from_axis_angle
from cryoformer_dist.physics.projection import magnification
from cryoformer_dist.physics.slices import TrilinearSlices

MOVING_MAPS = 5
"""The mean and leading principal maps, whose slopes are taken; those of the others are too small to matter."""
MOST_PRINCIPAL_MAPS = 24
# Of the conformations' variance, what may be left out.
_LEFT_OUT = 0.005
# Of the turn whose difference stands for a slope: about the interpolation's own fineness.
_TURN_RAD = 0.02
# A map that is weaker or stronger shows something else, such as junk.
_CONTRASTS = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class ConformationMixture:
    """Representatives of a latent cloud, their maps as mixtures of a few.

    Attributes
    ----------
    latent
        ``(conformations, dimensions)``.
    log_share
        ``(conformations,)``: of the particles, up to a constant.
    mixture
        ``(conformations, maps)``: how much of each map is in each; of the mean map, the first, 1.
    strength
        ``(conformations,)``: of each map along the mean one, which has 1.
    slices
        Of the mean map, then of the principal ones; in units of the whole box's transform.
    leading_slices
        Of the first `MOVING_MAPS` of them.
    map_pixel_angstrom
        Of the whole box.
    box, compared_box
        Side of the images, and of what is compared of them.
    """

    latent: Float[Tensor, "conformations dimensions"]
    log_share: Float[Tensor, " conformations"]
    mixture: Float[Tensor, "conformations maps"]
    strength: Float[Tensor, " conformations"]
    slices: TrilinearSlices
    leading_slices: TrilinearSlices
    map_pixel_angstrom: float
    box: int
    compared_box: int

    def equally_strong(self) -> "ConformationMixture":
        """The same with maps as strong as the mean one, as far as that is a matter of contrast.

        Where particles have amplitudes of their own, conformations must not: contrast would be taken for conformation.
        """
        return replace(self, mixture=self.mixture / self.strength.clamp(*_CONTRASTS)[:, None])

    def look(self, batch: ParticleBatch, pose: Pose, with_slopes: bool) -> "Views":
        """Images beside projections of the maps, at poses.

        Projection is linear: only the few maps are projected, however many conformations there are.

        Parameters
        ----------
        batch
            Images; its poses are the given ones.
        pose
            At hand.
        with_slopes
            Whether poses may err.
        """
        images = crop_half_plane(image_to_fourier(batch.images), self.compared_box).flatten(1)
        optics = self._transfer(batch, pose)
        maps = self._in_units_of_noise((self.slices.at(self._turned(batch, pose)) * optics).transpose(0, 1))
        return Views(
            images=self._in_units_of_noise(images[:, self.slices.flat_index]),
            maps=maps,
            passed=(optics.real.square() + optics.imag.square()).repeat_interleave(2, dim=1),
            slopes=self._slopes(batch, pose, optics, maps) if with_slopes else None,
            given=see_from(pose, batch.pose),
        )

    def compare(self, views: "Views") -> Comparison:
        """Scalar products of images and conformations."""
        images, maps, slopes = views.images, views.maps, views.slopes
        match = torch.einsum("bmk,bk->bm", maps, images) @ self.mixture.T
        energy = torch.einsum("cm,bmn,cn->bc", self.mixture, maps @ maps.mT, self.mixture)
        shares = self.log_share.expand_as(match)
        if slopes is None:
            return Comparison(shares, match, energy)
        leading = self.mixture[:, : slopes.shape[2]]
        flat = slopes.flatten(1, 2)
        count = leading.shape[1]
        among = (flat @ flat.mT).reshape(-1, DIRECTIONS, count, DIRECTIONS, count)
        along = (flat @ maps.mT).reshape(-1, DIRECTIONS, count, maps.shape[1])
        return Comparison(
            shares,
            match,
            energy,
            torch.einsum("bjmk,bk,cm->bcj", slopes, images, leading),
            torch.einsum("cm,bjmn,cn->bcj", leading, along, self.mixture),
            torch.einsum("cm,bjmin,cn->bcji", leading, among, leading),
            views.given,
        )

    @property
    def shell(self) -> Int[Tensor, " twice"]:
        """Fourier shell of each of the numbers that are compared."""
        radius: Tensor = (self.slices.frequency.norm(dim=1) * self.compared_box).round().long()
        return radius.repeat_interleave(2)

    def _slopes(
        self, batch: ParticleBatch, pose: Pose, optics: Tensor, maps: Tensor
    ) -> Float[Tensor, "particles 5 leading k"]:
        """How images of the leading maps change with the pose, per radian and angstrom."""
        count = self.leading_slices.maps
        turns = rotation_from_axis_angle(_TURN_RAD * torch.eye(3, device=optics.device))
        turned = turns[:, None] @ self._turned(batch, pose)
        rotated = self._in_units_of_noise((self.leading_slices.at(turned) * optics).movedim(0, 2).transpose(0, 1))
        by_rotation = (rotated - maps[:, None, :count]) / _TURN_RAD
        # A shift is a phase: d/ds exp(2 pi i k s) = 2 pi i k exp(2 pi i k s).
        per_angstrom = 2 * torch.pi * self._frequency() / batch.pixel_size_angstrom[:, None, None]
        leading = maps[:, :count]
        # Times i: real and imaginary parts stand side by side.
        quarter = torch.stack([-leading[..., 1::2], leading[..., ::2]], dim=-1)
        by_shift = (per_angstrom.mT[:, :, None, :, None] * quarter[:, None]).flatten(-2)
        return torch.cat([by_rotation, by_shift], dim=1)

    def _frequency(self) -> Float[Tensor, "k 2"]:
        return self.slices.frequency * (self.compared_box / self.box)

    def _turned(self, batch: ParticleBatch, pose: Pose) -> Float[Tensor, "particles 3 3"]:
        return pose.rotation * magnification(self.map_pixel_angstrom, batch.pixel_size_angstrom)[:, None, None]

    def _transfer(self, batch: ParticleBatch, pose: Pose) -> Complex[Tensor, "particles k"]:
        """What the microscope and the shift make of slices."""
        pixel = batch.pixel_size_angstrom[:, None]
        phase = phase_ramp(self._frequency(), -pose.shift_angstrom / pixel)
        transfer = transfer_at(batch.ctf, self._frequency(), batch.pixel_size_angstrom)
        return phase * transfer * magnification(self.map_pixel_angstrom, pixel)

    def _in_units_of_noise(self, coefficients: Complex[Tensor, "*batch k"]) -> Float[Tensor, "*batch twice"]:
        """Real numbers whose noise has unit variance.

        A coefficient's variance is the number of pixels, half of it in either part; of each pair +-k one is listed.
        """
        return to_real_vectors(coefficients) * (2**0.5 / self.box)


@dataclass(frozen=True, slots=True)
class Views:
    """Images and projections as real numbers in units of the noise.

    Attributes
    ----------
    images
        ``(particles, k)``.
    maps
        ``(particles, maps, k)``: of each map of a mixture, as the microscope shows it.
    passed
        ``(particles, k)``: power that the microscope lets pass.
    slopes
        ``(particles, 5, leading, k)``: how images of the leading maps change with the pose.
    given
        ``(particles, 5)``: the given pose as seen from the one at hand.
    """

    images: Float[Tensor, "particles k"]
    maps: Float[Tensor, "particles maps k"]
    passed: Float[Tensor, "particles k"]
    slopes: Float[Tensor, "particles 5 leading k"] | None
    given: Float[Tensor, "particles 5"]


def see_from(pose: Pose, other: Pose) -> Float[Tensor, "particles 5"]:
    """Another pose as seen from one: rotation vector in radians about the image's axes, shift in angstrom."""
    turn = axis_angle_from_rotation(other.rotation @ pose.rotation.mT)
    return torch.cat([turn, other.shift_angstrom - pose.shift_angstrom], dim=1)


def move(pose: Pose, offset: Float[Tensor, "particles 5"]) -> Pose:
    """The pose that is seen from one under an offset: inverse of `see_from`."""
    return Pose(rotation_from_axis_angle(offset[:, :3]) @ pose.rotation, pose.shift_angstrom + offset[:, 3:])


def choose_one(
    posterior: Float[Tensor, "particles conformations"], draws: Float[Tensor, " particles"]
) -> Float[Tensor, "particles conformations"]:
    """1 for the conformation that is drawn (see `draw_conformations`), 0 for the others."""
    drawn = draw_conformations(posterior, draws)
    return torch.nn.functional.one_hot(drawn, posterior.shape[1]).to(posterior.dtype)


def draw_conformations(
    posterior: Float[Tensor, "particles conformations"], draws: Float[Tensor, " particles"]
) -> Tensor:
    """One conformation per particle: where its number falls among the cumulated probabilities."""
    passed = (posterior.cumsum(dim=1) <= draws[:, None]).sum(dim=1)
    # Rounding may leave the last sum below one.
    return passed.clamp_max(posterior.shape[1] - 1)


def find_principal_mixture(
    changes: Float[Tensor, "conformations voxels"],
) -> Float[Tensor, "conformations principal"]:
    """Orthonormal mixtures of maps that hold nearly all of their variance: ``mixture @ mixture.T @ changes``."""
    variance, vectors = torch.linalg.eigh((changes @ changes.T).double())
    left = 1 - variance.flip(0).cumsum(0) / variance.sum().clamp_min(1e-30)
    kept = min(int((left > _LEFT_OUT).sum()) + 1, MOST_PRINCIPAL_MAPS)
    mixture: Tensor = vectors.flip(1)[:, :kept].float()
    return mixture
