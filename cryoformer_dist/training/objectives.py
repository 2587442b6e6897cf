"""What each stage of training minimises."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.model.cryoformer import CryoFormer
from cryoformer_dist.model.decoder import FoldedQueries
from cryoformer_dist.model.feature_volume import FeatureVolume
from cryoformer_dist.model.hash_grid import KeptPoints, operator_bytes_per_point
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import (
    comparable_frequencies,
    crop_half_plane,
    fourier_to_image,
    image_to_fourier,
    mean_squared_error_half_plane,
    shifted,
)
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.pose import Pose, turned_in_plane
from cryoformer_dist.physics.projection import magnification, project_points, project_rays, project_slices
from cryoformer_dist.training.stages import StageKind

# Operators of all jittered copies of a lattice together: beyond, memory is worth more than their speed.
_KEPT_OPERATORS_BYTES = 2 * 2**30


class Objectives(nn.Module):
    """Per-particle losses of a batch; the engine's module, so that all stages train one network.

    Parameters
    ----------
    config
        Of the run.
    box
        Side of the images in pixels.
    pixel_size_angstrom
        Of the map.
    lattice
        Where density is evaluated.
    spectrum
        ``(shells,)`` amplitude of the map to be expected; Fourier domain only.
    """

    def __init__(
        self,
        config: RunConfig,
        box: int,
        pixel_size_angstrom: float,
        lattice: Lattice,
        spectrum: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = CryoFormer(config.model, box, spectrum)
        self.box, self.pixel_size_angstrom = box, pixel_size_angstrom
        self.projection = config.training.projection
        self.encodes_in_bfloat16 = config.training.precision == "bfloat16"
        self._config = config
        self.use_lattice(lattice)

    def use_lattice(self, lattice: Lattice) -> None:
        """Evaluate density at these points from now on; no parameter belongs to a point."""
        training = self._config.training
        # Boxes are even: half of 90 would not be.
        coarse_box = (training.coarse_box or 2 * (self.box // 4)) if training.coarse_epochs else None
        self.lattice = lattice
        self.fine = _Sampling.of(self.model, self._config, self.box, lattice)
        self.coarse = (
            _Sampling.of(self.model, self._config, coarse_box, lattice.coarsened(self.box, coarse_box))
            if coarse_box
            else None
        )

    def forward(
        self,
        stage: StageKind,
        batch: ParticleBatch,
        latent: Tensor | None,
        pose: Pose | None,
        copy: int,
        noise_seed: int = 0,
        coarse: bool = False,
    ) -> tuple[Float[Tensor, " particles"], Float[Tensor, "particles dimensions"]]:
        """Loss of each particle, and its latent vector.

        Parameters
        ----------
        stage
            What to minimise.
        batch
            Images and metadata.
        latent
            ``(particles, dimensions)``, or ``None`` to encode the images.
        pose
            Poses to project at, or ``None`` to encode the images.
        copy
            Which shifted copy of the lattice to use.
        noise_seed
            Of the noise on rendered images.
        coarse
            Compare images at low frequencies only, with the density on a coarser lattice.
        """
        if stage == "pose_pretraining":
            error = pose_loss(self.encode_pose(batch), batch.pose, self.box * self.pixel_size_angstrom)
            return error, error.new_zeros(len(error), self.model.latent_dimensions)
        pose, latent = self.encode_missing(batch, pose, latent)
        if stage == "latent_distillation":
            error = self._distillation_error(batch, latent, pose, copy, noise_seed)
            return error, torch.zeros_like(latent)
        residual, sampling = self.residual(batch, latent, pose, copy, coarse), self._sampling(coarse)
        # Mean over the pixels of the whole image: at low frequencies alone the likelihood must not weigh more.
        share = (sampling.box / self.box) ** 4
        return mean_squared_error_half_plane(residual, sampling.weight) * share, latent

    def residual(
        self, batch: ParticleBatch, latent: Tensor, pose: Pose, copy: int, coarse: bool
    ) -> Complex[Tensor, "particles cropped half"]:
        """Half-plane transform of model minus data, as finely as ``coarse`` says; arguments as in `forward`."""
        sampling = self._sampling(coarse)
        images = crop_half_plane(image_to_fourier(batch.images), sampling.box)
        return self.project(latent, pose, batch, copy, sampling) * self._transfer(batch, sampling) - images

    def _sampling(self, coarse: bool) -> "_Sampling":
        return self.coarse if coarse and self.coarse is not None else self.fine

    def project(
        self, latent: Tensor, pose: Pose, batch: ParticleBatch, copy: int, sampling: "_Sampling | None" = None
    ) -> Tensor:
        """Half-plane transform of each particle's projection, before the CTF."""
        sampling = sampling or self.fine
        pixel = batch.pixel_size_angstrom[:, None]
        scale = magnification(self.pixel_size_angstrom, pixel)
        shift_pixels = -pose.shift_angstrom / pixel
        folded = self.model.condition(latent)
        if self.model.domain == "fourier":

            def coefficient_at(shells: Tensor) -> Tensor:
                return self.model.coefficients(shells, folded)

            slices = project_slices(coefficient_at, pose.rotation * scale[..., None], shift_pixels, self.box)
            return slices * scale[..., None]
        if self.projection == "rays":

            def density_at(points: Tensor) -> Tensor:
                return self._density(self._hidden_at(points), points, folded) / scale.square()

            rotation = pose.rotation / scale[..., None]
            # Rounding must not drop points on the sphere's face, which the lattice has.
            radius_pixels = self.box / 2 - 1 + 1e-3
            return project_rays(density_at, rotation, shift_pixels, self.box, radius_pixels)
        spacing = self.box / sampling.box
        # A coarse point stands for all the fine ones in its cell.
        points, density = self._density_at_lattice(folded, copy, sampling, scale[:, 0] * spacing**3)
        rotation = pose.rotation * scale[..., None]
        shift = shift_pixels / spacing
        return project_points(density, points / spacing, rotation, shift, sampling.box, self.model.kernels)

    def density(
        self, latent: Float[Tensor, "particles dimensions"], copy: int, coarse: bool
    ) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "particles points"]]:
        """Points of a shifted copy of the lattice, in pixels of the box, and the density of conformations there."""
        return self._density_at_lattice(self.model.condition(latent), copy, self._sampling(coarse))

    def encode_missing(self, batch: ParticleBatch, pose: Pose | None, latent: Tensor | None) -> tuple[Pose, Tensor]:
        """Pose and latent vector of each particle, as the encoders see what is ``None``."""
        pose = self.encode_pose(batch) if pose is None else pose
        return pose, self.encode_latent(batch, pose) if latent is None else latent

    def encode_pose(self, batch: ParticleBatch) -> Pose:
        """Pose of each particle as the orientation encoder sees it (paper, section 3.2)."""
        if self.model.orientation_encoder is None:
            raise ValueError("this model has no orientation encoder: set model.pose.form to encoder")
        images = self._encoder_input(batch)
        with self._encoding(images):
            rotation, shift = self.model.orientation_encoder(images)
        return Pose(rotation, shift * (self.box * self.pixel_size_angstrom))

    def encode_latent(self, batch: ParticleBatch, pose: Pose) -> Tensor:
        """Latent vector of each particle as the model's encoder sees it; the paper's does not look at the pose."""
        model = self.model
        if model.latent_encoder is not None:
            images = self._aligned_images(batch, pose)
            with self._encoding(images):
                return cast(Tensor, model.latent_encoder(images, pose.rotation[:, 2]))
        if model.deformation_encoder is None:
            raise ValueError("this model has no latent encoder: set model.latent.form to encoder or table_then_encoder")
        images = self._encoder_input(batch)
        with self._encoding(images):
            return cast(Tensor, model.deformation_encoder(images))

    def _encoding(self, images: Tensor) -> torch.autocast:
        """Matrix products of the encoders in bfloat16, if so configured; nothing else is."""
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self.encodes_in_bfloat16)

    def _distillation_error(
        self, batch: ParticleBatch, latent: Tensor, pose: Pose, copy: int, noise_seed: int
    ) -> Float[Tensor, " particles"]:
        """How far the encoder is from the latents of rendered, noisy images.

        Every pass pairs conformations with other particles' poses and CTF, so no two images are the same and there is
        nothing to memorise.
        """
        with torch.no_grad():
            latent = latent.roll(1, 0)
            rendered = self.project(latent, pose, batch, copy) * self._transfer(batch)
            generator = torch.Generator(latent.device).manual_seed(noise_seed)
            noise = torch.randn(batch.images.shape, generator=generator, device=latent.device)
            images = fourier_to_image(rendered, self.box) + noise
        return (self.encode_latent(replace(batch, images=images), pose) - latent).square().mean(-1)

    def _density(
        self, hidden: Tensor, points: Tensor, folded: FoldedQueries | Tensor, scale: Tensor | None = None
    ) -> Float[Tensor, "particles points"]:
        """Density of each particle's conformation at points in pixels whose feature is ``hidden``."""
        density, shared = self.model.density(hidden, folded, scale), self.model.shared_density(hidden, points)
        return density if shared is None else shared.confine(density, scale)

    def _density_at_lattice(
        self, folded: FoldedQueries | Tensor, copy: int, sampling: "_Sampling", scale: Tensor | None = None
    ) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "particles points"]]:
        points = sampling.lattice.points_pixels + sampling.lattice.offsets_pixels[copy]
        volume = self.model.feature_volume
        hidden = volume.at_lattice(sampling.operators[copy]) if sampling.operators else volume.in_tiles(points)
        return points, self._density(hidden, points, folded, scale)

    def _hidden_at(self, points: Tensor) -> Tensor:
        hidden: Tensor = self.model.feature_volume(points.reshape(-1, 3))
        return hidden.reshape(*points.shape[:2], -1)

    def _transfer(self, batch: ParticleBatch, sampling: "_Sampling | None" = None) -> Tensor:
        transfer = transfer_at(batch.ctf, (sampling or self.fine).frequency, batch.pixel_size_angstrom)
        return transfer if batch.amplitude is None else transfer * batch.amplitude[:, None, None]

    def _encoder_input(self, batch: ParticleBatch) -> Tensor:
        """Phase-flipped images of unit variance: an MLP should not have to learn the microscope."""
        flipped = image_to_fourier(batch.images) * self._transfer(batch).sign()
        images = fourier_to_image(flipped, self.box)
        return images / images.std(dim=(-2, -1), keepdim=True).clamp_min(1e-6)

    def _aligned_images(self, batch: ParticleBatch, pose: Pose) -> Tensor:
        """CTF-weighted images, centred, turned in the image plane until only the viewing direction tells them apart."""
        pixel = batch.pixel_size_angstrom[:, None]
        weighted = shifted(image_to_fourier(batch.images) * self._transfer(batch), pose.shift_angstrom / pixel)
        images = turned_in_plane(fourier_to_image(weighted, self.box), pose.rotation)
        return images / images.std(dim=(-2, -1), keepdim=True).clamp_min(1e-6)


@dataclass(frozen=True)
class _Sampling:
    """How finely density and images are compared.

    Attributes
    ----------
    box
        Side of the images, cropped in Fourier space.
    lattice
        Where density is evaluated, in pixels of the whole box.
    volume
        What is encoded there.
    keeps_operators
        Whether copies of the lattice are encoded by stored operators.
    weight, frequency
        ``(box, half)`` weight of each frequency, and the frequencies ``(box, half, 2)`` in cycles per fine pixel.
    """

    box: int
    lattice: Lattice
    volume: FeatureVolume
    keeps_operators: bool
    weight: Tensor
    frequency: Tensor

    @staticmethod
    def of(model: CryoFormer, config: RunConfig, box: int, lattice: Lattice) -> "_Sampling":
        device = lattice.points_pixels.device
        kept = keeps_operators(config, len(lattice.points_pixels), on_gpu=device.type == "cuda")
        weight, frequency = comparable_frequencies(box).to(device), (frequency_grid(box) * (box / model.box)).to(device)
        return _Sampling(box, lattice, model.feature_volume, kept, weight, frequency)

    @cached_property
    def operators(self) -> list[KeptPoints]:
        """Hash-grid interpolation, one per shifted copy; none for points that are hashed afresh at each step.

        Made when a projection first asks: who only decodes a run has no use for them.
        """
        points, offsets = self.lattice.points_pixels, self.lattice.offsets_pixels
        return [self.volume.lattice(points + offset) for offset in offsets] if self.keeps_operators else []


def keeps_operators(config: RunConfig, points: int, on_gpu: bool) -> bool:
    """Whether a lattice of so many points is encoded by what is kept of them, however much memory there is."""
    if config.training.projection != "lattice" or config.model.domain != "real":
        return False
    copies = points * config.training.jitter_lattices
    return copies * operator_bytes_per_point(config.model, on_gpu) <= _KEPT_OPERATORS_BYTES


def pose_loss(estimate: Pose, given: Pose, box_angstrom: float) -> Float[Tensor, " particles"]:
    """How far estimated poses are from given ones (paper, eq. 3), the shift as a fraction of the box.

    ``1/9 ||R - R0||_F + 1/2 ||t - t0||_1``; the paper sums over particles, the caller takes the mean.
    """
    # The square root has no slope at zero.
    rotation = ((estimate.rotation - given.rotation).square().sum((-2, -1)) + 1e-12).sqrt()
    shift = (estimate.shift_angstrom - given.shift_angstrom).abs().sum(-1) / box_angstrom
    return rotation / 9 + shift / 2
