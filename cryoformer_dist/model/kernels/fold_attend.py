"""Logits, softmax over queries, density layers: from a point's hidden feature to one number per particle, in one pass.

Features, attention and activations of a point live only while its tile is worked on; the backward pass computes them
again. Kept for the whole lattice they are some 300 bytes per point and particle, and writing them costs more than
computing them twice.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Points per tile: attention and activations of a tile of 16 particles then stay in a core's cache.
_TILE_VALUES = 2**18


def fold_attend(
    hidden: Float[Tensor, "points hidden"],
    key: Float[Tensor, "particles hidden queries"],
    key_bias: Float[Tensor, "particles queries"],
    value: Float[Tensor, "particles queries width"],
    residual: Float[Tensor, "width hidden"],
    offset: Float[Tensor, " width"],
    output: Float[Tensor, " width"],
    bias: Float[Tensor, ""],
    scale: Float[Tensor, " particles"],
) -> Float[Tensor, "particles points"]:
    """``(ReLU(softmax(h M + c) V + h R^T + r) . w + b) s`` for every particle and point.

    Parameters
    ----------
    hidden
        ``h(x)`` of points that all particles share.
    key, key_bias
        ``M`` and ``c``: folded keys of each particle's queries.
    value
        ``V``: their values behind the first density layer.
    residual, offset
        ``R`` and ``r``: what that layer makes of the point itself.
    output, bias
        ``w`` and ``b``: the second density layer.
    scale
        ``s``: the unit of each particle's density. It is given, not learned, and has no gradient.

    Notes
    -----
    Equal to the same formula written out, values and gradients, to rounding (tested). Gradients are summed in a fixed
    order: the same call twice gives the same bits.
    """
    result: Tensor = _FoldAttend.apply(hidden, key, key_bias, value, residual, offset, output, bias, scale)
    return result


class _FoldAttend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        *tensors, bias, scale = inputs
        ctx.save_for_backward(*tensors, scale)
        tiles = _Tiles(*tensors)
        density = tensors[0].new_empty(tiles.particles, len(tensors[0]))
        for part, _, _, activation in tiles:
            density[:, part] = activation @ tiles.output
        return density.add_(bias).mul_(scale[:, None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, scale = ctx.saved_tensors
        hidden, _, key_bias, value, residual, _, output = tensors
        gradient, tiles = gradient * scale[:, None], _Tiles(*tensors)
        to_hidden, to_shared = torch.empty_like(hidden), hidden.new_empty(len(hidden), len(output))
        to_key, to_key_bias = torch.zeros_like(tiles.key), torch.zeros_like(tiles.key_bias)
        to_value, to_output = torch.zeros_like(value), torch.zeros_like(output)
        key_transposed = tiles.key.T.contiguous()
        # The output weight is common to everything behind the activation: it enters once, not at every point.
        weighted_value = (value * output).transpose(1, 2).contiguous()
        for part, points, attention, activation in tiles:
            incoming = gradient[:, part].contiguous()
            to_output.addmv_(activation.reshape(-1, len(output)).T, incoming.reshape(-1))
            through = activation.sign_().mul_(incoming[..., None])
            torch.sum(through, 0, out=to_shared[part])
            to_value.baddbmm_(attention.permute(1, 2, 0), through)
            to_attention = torch.bmm(through, weighted_value).transpose(0, 1)
            to_logits = attention * (to_attention - (attention * to_attention).sum(-1, keepdim=True))
            to_logits = to_logits.reshape(len(points), -1)
            to_key_bias += to_logits.sum(0)
            to_key.addmm_(points.T, to_logits)
            torch.mm(to_logits, key_transposed, out=to_hidden[part])
        to_shared *= output
        to_hidden.addmm_(to_shared, residual)
        return (
            to_hidden,
            to_key.reshape(hidden.shape[1], *key_bias.shape).transpose(0, 1),
            to_key_bias.reshape(key_bias.shape),
            to_value * output,
            to_shared.T @ hidden,
            to_shared.sum(0),
            to_output,
            gradient.sum(),
            None,
        )


class _Tiles:
    """Attention and activation, tile of points by tile of points."""

    def __init__(
        self,
        hidden: Tensor,
        key: Tensor,
        key_bias: Tensor,
        value: Tensor,
        residual: Tensor,
        offset: Tensor,
        output: Tensor,
    ) -> None:
        self.particles, features, queries = key.shape
        self.hidden, self.value, self.offset, self.output = hidden, value, offset, output
        # All particles' keys side by side: one product for the logits of a tile.
        self.key, self.key_bias = key.transpose(0, 1).reshape(features, -1), key_bias.reshape(-1)
        self.residual = residual.T
        self.size = max(64, _TILE_VALUES // (self.particles * (queries + len(output))))

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Place of each tile, its ``h``, ``(points, particles, queries)`` attention, ``(particles, points, width)``."""
        for start in range(0, len(self.hidden), self.size):
            part = slice(start, start + self.size)
            points = self.hidden[part]
            logits = torch.addmm(self.key_bias, points, self.key)
            attention = torch.softmax(logits.reshape(len(points), self.particles, -1), dim=-1)
            activation = torch.bmm(attention.transpose(0, 1), self.value)
            activation += torch.addmm(self.offset, points, self.residual)
            yield part, points, attention, activation.relu_()
