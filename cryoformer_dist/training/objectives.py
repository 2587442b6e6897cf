"""What the two stages minimise."""

from jaxtyping import Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.model.cryoformer import CryoFormer
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import (
    comparable_frequencies,
    fourier_to_image,
    image_to_fourier,
    mean_squared_error_half_plane,
)
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.projection import project_points, project_rays
from cryoformer_dist.training.occupancy import Lattice


class Objectives(nn.Module):
    """Per-particle losses of a batch; the engine's module, so that both stages train one network.

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
    """

    def __init__(self, config: RunConfig, box: int, pixel_size_angstrom: float, lattice: Lattice) -> None:
        super().__init__()
        self.model = CryoFormer(config.model, box)
        self.box, self.pixel_size_angstrom = box, pixel_size_angstrom
        self.projection = config.training.projection
        self.lattice = lattice
        self.operators = [
            self.model.feature_volume.lattice(lattice.points_pixels + offset) for offset in lattice.offsets_pixels
        ]
        self.register_buffer("weight", comparable_frequencies(box), persistent=False)
        self.register_buffer("frequency", frequency_grid(box), persistent=False)
        self.weight: Tensor
        self.frequency: Tensor

    def forward(
        self, stage: str, batch: ParticleBatch, latent: Tensor | None, pose: Pose | None, copy: int
    ) -> tuple[Float[Tensor, " particles"], Float[Tensor, "particles dimensions"]]:
        """Loss of each particle, and its latent vector.

        Parameters
        ----------
        stage
            ``pose_pretraining`` or ``reconstruction``.
        batch
            Images and metadata.
        latent
            ``(particles, dimensions)``, or ``None`` to encode the images.
        pose
            Poses to render at, or ``None`` to encode the images.
        copy
            Which shifted copy of the lattice to use.
        """
        if stage == "pose_pretraining":
            error = pose_loss(self.encode_pose(batch), batch.pose, self.box * self.pixel_size_angstrom)
            return error, error.new_zeros(len(error), self.model.latent_dimensions)
        pose = self.encode_pose(batch) if pose is None else pose
        latent = self.encode_latent(batch) if latent is None else latent
        transfer = self._transfer(batch)
        residual = self.render(latent, pose, batch, copy) * transfer - image_to_fourier(batch.images)
        return mean_squared_error_half_plane(residual, self.weight), latent

    def render(self, latent: Tensor, pose: Pose, batch: ParticleBatch, copy: int) -> Tensor:
        """Half-plane transform of each particle's projection, before the CTF."""
        pixel = batch.pixel_size_angstrom[:, None]
        magnification = self.pixel_size_angstrom / pixel
        shift_pixels = -pose.shift_angstrom / pixel
        folded = self.model.condition(latent)
        if self.projection == "rays":

            def density_at(points: Tensor) -> Tensor:
                return self.model.density(self._hidden_at(points), folded) / magnification

            rotation = pose.rotation / magnification[..., None]
            # Rounding must not drop points on the sphere's face, which the lattice has.
            radius_pixels = self.box / 2 - 1 + 1e-3
            return project_rays(density_at, rotation, shift_pixels, self.box, radius_pixels)
        hidden = self.model.feature_volume.at_lattice(self.operators[copy])
        points = self.lattice.points_pixels + self.lattice.offsets_pixels[copy]
        density = self.model.density(hidden, folded) * magnification.square()
        rotation = pose.rotation * magnification[..., None]
        return project_points(density, points, rotation, shift_pixels, self.box)

    def encode_pose(self, batch: ParticleBatch) -> Pose:
        """Pose of each particle as the orientation encoder sees it (paper, section 3.2)."""
        if self.model.orientation_encoder is None:
            raise ValueError("this model has no orientation encoder: set model.pose.form to encoder")
        rotation, shift = self.model.orientation_encoder(self._encoder_input(batch))
        return Pose(rotation, shift * (self.box * self.pixel_size_angstrom))

    def encode_latent(self, batch: ParticleBatch) -> Tensor:
        """Latent vector of each particle as the deformation encoder sees it."""
        if self.model.deformation_encoder is None:
            raise ValueError("this model has no deformation encoder: set model.latent.form to encoder")
        latent: Tensor = self.model.deformation_encoder(self._encoder_input(batch))
        return latent

    def _hidden_at(self, points: Tensor) -> Tensor:
        hidden: Tensor = self.model.feature_volume(points.reshape(-1, 3))
        return hidden.reshape(*points.shape[:2], -1)

    def _transfer(self, batch: ParticleBatch) -> Tensor:
        frequency = self.frequency[None] / batch.pixel_size_angstrom[:, None, None, None]
        return contrast_transfer_function(batch.ctf, frequency)

    def _encoder_input(self, batch: ParticleBatch) -> Tensor:
        """Phase-flipped images of unit variance: an MLP should not have to learn the microscope."""
        flipped = image_to_fourier(batch.images) * self._transfer(batch).sign()
        images = fourier_to_image(flipped, self.box)
        return images / images.std(dim=(-2, -1), keepdim=True).clamp_min(1e-6)


def pose_loss(estimate: Pose, given: Pose, box_angstrom: float) -> Float[Tensor, " particles"]:
    """How far estimated poses are from given ones (paper, eq. 3), the shift as a fraction of the box.

    ``1/9 ||R - R0||_F + 1/2 ||t - t0||_1``; the paper sums over particles, the caller takes the mean.
    """
    # The square root has no slope at zero.
    rotation = ((estimate.rotation - given.rotation).square().sum((-2, -1)) + 1e-12).sqrt()
    shift = (estimate.shift_angstrom - given.shift_angstrom).abs().sum(-1) / box_angstrom
    return rotation / 9 + shift / 2
