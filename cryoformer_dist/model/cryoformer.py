"""CryoFormer: latent vector to density anywhere in space."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import ModelConfig
from cryoformer_dist.model.decoder import DeformationDecoder, FoldedQueries
from cryoformer_dist.model.encoders import DeformationEncoder, OrientationEncoder
from cryoformer_dist.model.feature_volume import FeatureVolume


class CryoFormer(nn.Module):
    """The network without its per-particle tables: those are rows of data, kept beside it.

    Parameters
    ----------
    config
        Sizes and which encoders exist.
    box
        Side of the images in pixels.
    """

    def __init__(self, config: ModelConfig, box: int) -> None:
        super().__init__()
        self.box = box
        self.latent_dimensions = config.latent.dimensions
        decoder = config.decoder
        self.feature_volume = FeatureVolume(config.hash_grid, box, decoder.hidden_width)
        self.decoder = DeformationDecoder(decoder)
        self.deformation_tokens = nn.Linear(config.latent.dimensions, decoder.queries * decoder.channels)
        # Unit-variance latents become unit-variance tokens.
        nn.init.normal_(self.deformation_tokens.weight, std=config.latent.dimensions**-0.5)
        nn.init.zeros_(self.deformation_tokens.bias)
        self.deformation_encoder = (
            DeformationEncoder(config.latent.encoder, box, config.latent.dimensions)
            if config.latent.form == "encoder"
            else None
        )
        self.orientation_encoder = (
            OrientationEncoder(config.pose.encoder, box) if config.pose.form == "encoder" else None
        )

    def condition(self, latent: Float[Tensor, "particles dimensions"]) -> FoldedQueries:
        """A conformation per latent vector, ready for `density`."""
        decoder = self.decoder
        tokens = self.deformation_tokens(latent)
        deformation = tokens.reshape(len(latent), *decoder.structure_queries.shape)
        return decoder.fold(decoder.queries(deformation))

    def density(
        self, hidden: Float[Tensor, "*shared points hidden"], folded: FoldedQueries
    ) -> Float[Tensor, "particles points"]:
        """Density of each particle at points whose spatial feature is ``hidden``."""
        return self.decoder.density(hidden, folded)

    @torch.no_grad()
    def volumes(
        self,
        latent: Float[Tensor, "states dimensions"],
        points_pixels: Float[Tensor, "points 3"],
        flat_index: Tensor,
    ) -> Float[Tensor, "states box box box"]:
        """Maps of given latent vectors.

        Parameters
        ----------
        latent
            One row per map.
        points_pixels
            Points that may hold density, in pixels about the centre.
        flat_index
            Place of each point in ``volume.ravel()``; all other voxels are zero.
        """
        hidden = self.feature_volume(points_pixels)
        maps = latent.new_zeros(len(latent), self.box**3)
        for state, vector in enumerate(latent):
            maps[state, flat_index] = self.density(hidden, self.condition(vector[None]))[0]
        return maps.reshape(-1, self.box, self.box, self.box)
