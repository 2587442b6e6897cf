"""The query-based deformation transformer (paper, section 3.4).

The paper writes N for particles and for queries; here they are ``particles`` and ``queries``. Its spatial attention is
read as one point = one token attending to the queries: the literal shapes would give every point N tokens.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import DecoderConfig
from cryoformer_dist.model.kernels.fold_attend import fold_attend
from cryoformer_dist.physics.kernel_choice import Kernels, uses_triton


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention (paper, eq. 1)."""
    return torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1) @ value


class _Projections(nn.Module):
    """Learned query, key, value and output maps of one attention, orthogonal at the start.

    Unit gain decides whether conformations are ever told apart: with torch's default the product of three small factors
    leaves the network at the mean map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (orthogonal_linear(channels, channels) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.output(attention(self.query(query), self.key(key), self.value(value)))


def orthogonal_linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer that starts as a scaled isometry without bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)
    return layer


class DeformationBlock(nn.Module):
    """Pre-norm self-attention of the queries, their attention to the deformation feature, feed-forward.

    ``Q += P Att(LN Q, LN Q, LN Q)``, ``Q += P Att(LN Q, F_D, LN Q)``, ``Q += FFN(LN Q)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attention, self.deformation_attention = _Projections(channels), _Projections(channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels)
        )

    def forward(
        self,
        queries: Float[Tensor, "particles queries channels"],
        deformation: Float[Tensor, "particles queries channels"],
    ) -> Float[Tensor, "particles queries channels"]:
        """Queries that have met each other and the deformation feature."""
        normed = self.norms[0](queries)
        queries = queries + self.self_attention(normed, normed, normed)
        normed = self.norms[1](queries)
        # Values are the queries, as in the paper: with values from F_D the network memorises views instead.
        queries = queries + self.deformation_attention(normed, deformation, normed)
        return queries + self.feed_forward(self.norms[2](queries))


@dataclass(frozen=True, slots=True)
class FoldedQueries:
    """One conformation, ready to be evaluated at any point from ``h(x)`` alone.

    Attributes
    ----------
    key
        ``(particles, hidden, queries)``: logits are ``h @ key + key_bias``.
    key_bias
        ``(particles, queries)``.
    value
        ``(particles, queries, density_width)``: values after the first density layer.
    """

    key: Float[Tensor, "particles hidden queries"]
    key_bias: Float[Tensor, "particles queries"]
    value: Float[Tensor, "particles queries density_width"]


class DeformedQueries(nn.Module):
    """Structure queries that learn of a conformation: what every decoder begins with.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.structure_queries = nn.Parameter(torch.randn(config.queries, config.channels))
        self.blocks = nn.ModuleList(DeformationBlock(config.channels) for _ in range(config.blocks))

    def queries(
        self, deformation: Float[Tensor, "particles queries channels"]
    ) -> Float[Tensor, "particles queries channels"]:
        """Structure queries after they have met the deformation feature ``F_D``."""
        queries = self.structure_queries.expand(len(deformation), -1, -1)
        for block in self.blocks:
            queries = block(queries, deformation)
        return queries


class DeformationDecoder(DeformedQueries):
    """Structure queries, made deformation-aware, then asked for the density at a point.

    Parameters
    ----------
    config
        Sizes.
    outputs
        Numbers per point: one for a density, two for a Fourier coefficient.
    kernels
        Who computes densities: by the tensors' device, or torch.
    """

    def __init__(self, config: DecoderConfig, outputs: int = 1, kernels: Kernels = "auto") -> None:
        super().__init__(config)
        self.kernels, self.products = kernels, config.products
        channels, hidden = config.channels, config.hidden_width
        self.temperature, self.density_scale = config.temperature, config.density_scale
        self.spatial_feature = nn.Linear(hidden, channels)
        nn.init.normal_(self.spatial_feature.weight, std=math.sqrt(2 / hidden))
        self.spatial_key, self.spatial_value = (orthogonal_linear(channels, channels) for _ in range(2))
        self.density_hidden = orthogonal_linear(channels, config.density_width, gain=1.4)
        self.density_output = nn.Linear(config.density_width, outputs)

    def fold(self, queries: Float[Tensor, "particles queries channels"]) -> FoldedQueries:
        """Absorb every linear map between ``h`` and the density's hidden layer; exact, not an approximation.

        With ``F_S = W2 h + b2``: logits ``tau F_S K^T / sqrt(C) = h M + c``, and ``W_a (a V)`` = ``a (V W_a^T)``.
        """
        key, value = self.spatial_key(queries), self.spatial_value(queries)
        scaled = key * (self.temperature / math.sqrt(key.shape[-1]))
        return FoldedQueries(
            key=(scaled @ self.spatial_feature.weight).transpose(1, 2),
            key_bias=scaled @ self.spatial_feature.bias,
            value=value @ self.density_hidden.weight.T,
        )

    def attention_map(
        self, hidden: Float[Tensor, "*shared points hidden"], folded: FoldedQueries
    ) -> Float[Tensor, "particles points queries"]:
        """Weight of every query at every point: the 3D attention map (paper, fig. 8)."""
        return torch.softmax(torch.baddbmm(folded.key_bias[:, None], _per_particle(hidden, folded), folded.key), dim=-1)

    def density(
        self,
        hidden: Float[Tensor, "*shared points hidden"],
        folded: FoldedQueries,
        scale: Float[Tensor, " particles"] | None = None,
    ) -> Float[Tensor, "particles points"]:
        """Density of each particle at each point.

        Parameters
        ----------
        hidden
            ``(points, hidden)`` shared by the batch, or ``(particles, points, hidden)`` in the ray path.
        folded
            From `fold`.
        scale
            What each particle's density is multiplied by, without a gradient; nothing unless it is given.
        """
        weight, bias = self.density_output.weight[0], self.density_output.bias[0]
        unit = hidden.new_full((len(folded.key),), self.density_scale)
        unit = unit if scale is None else unit * scale
        if hidden.dim() == 3:
            return (self._activation(hidden, folded) @ weight + bias) * unit[:, None]
        residual, offset = self._residual()
        tensors = (hidden, folded.key, folded.key_bias, folded.value, residual, offset, weight, bias, unit)
        if uses_triton(self.kernels, hidden.device):
            from cryoformer_dist.model.kernels.fold_attend_triton import fold_attend as fold_attend_triton

            return fold_attend_triton(*tensors, self.products)
        return fold_attend(*tensors)

    def coefficients(
        self, hidden: Float[Tensor, "*shared points hidden"], folded: FoldedQueries
    ) -> Complex[Tensor, "particles points"]:
        """Fourier coefficient of each particle at each point, of unit scale; as `density`, for two outputs."""
        return torch.view_as_complex(self.density_output(self._activation(hidden, folded)))

    def _activation(self, hidden: Tensor, folded: FoldedQueries) -> Tensor:
        """Hidden layer of the density at each point."""
        residual, offset = self._residual()
        shared = _per_particle(hidden @ residual.T + offset, folded)
        return torch.relu(torch.baddbmm(shared, self.attention_map(hidden, folded), folded.value))

    def _residual(self) -> tuple[Tensor, Tensor]:
        """Linear map from ``h`` to the density's hidden layer that passes the attention by."""
        residual = self.density_hidden.weight @ self.spatial_feature.weight
        return residual, self.density_hidden.weight @ self.spatial_feature.bias + self.density_hidden.bias


def _per_particle(values: Tensor, folded: FoldedQueries) -> Tensor:
    return values if values.dim() == 3 else values[None].expand(len(folded.key), -1, -1)
