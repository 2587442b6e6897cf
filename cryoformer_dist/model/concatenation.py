"""The decoder without spatial cross-attention: an ablation of the paper's Table 2."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import DecoderConfig
from cryoformer_dist.model.decoder import DeformedQueries, orthogonal_linear


class ConcatenationDecoder(DeformedQueries):
    """Density from an MLP of a point's feature concatenated with the mean deformation-aware query.

    Two hidden layers where the attention decoder has attention and one; the first is linear in both parts, so the
    point's share is computed once per step and the conformation's once per particle.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        channels, hidden, width = config.channels, config.hidden_width, config.density_width
        self.density_scale = config.density_scale
        self.spatial_feature = nn.Linear(hidden, width)
        nn.init.normal_(self.spatial_feature.weight, std=math.sqrt(2 / hidden))
        self.conformation = orthogonal_linear(channels, width, gain=1.4)
        self.density_hidden = orthogonal_linear(width, width, gain=1.4)
        self.density_output = nn.Linear(width, 1)

    def fold(self, queries: Float[Tensor, "particles queries channels"]) -> Float[Tensor, "particles width"]:
        """The conformation's share of the first layer; scaled up because a mean of many queries is small."""
        mean = queries.mean(1) * math.sqrt(queries.shape[1])
        share: Tensor = self.conformation(mean)
        return share

    def density(
        self,
        hidden: Float[Tensor, "*shared points hidden"],
        folded: Float[Tensor, "particles width"],
        scale: Float[Tensor, " particles"] | None = None,
    ) -> Float[Tensor, "particles points"]:
        """Density of each particle at each point, as `DeformationDecoder.density`."""
        first = torch.relu(self.spatial_feature(hidden) + folded[:, None])
        second = torch.relu(self.density_hidden(first))
        density = (second @ self.density_output.weight[0] + self.density_output.bias) * self.density_scale
        return density if scale is None else density * scale[:, None]
