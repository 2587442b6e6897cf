"""`fold_attend` on a GPU: nothing per point and particle but the density is ever written to memory.

The forward pass and each of the two backward passes go over the points once and compute attention and activation anew.
The *point-major* pass loops over the particles at a tile of points, for the gradients that all particles share; the
*particle-major* pass loops over tiles for one particle, for the gradients of its folded queries. Sums over programs are
partial sums added by torch: no atomics, so the same call twice gives the same bits. The density is a sum over the units
of its hidden layer, and so is every gradient: a program of a backward pass takes a slice of the units, as many as its
registers hold. The gradient of a point enters after the products where it can, so that half-precision operands keep
their range.

Kernels are exempt from the shape checks of the tests, which would look at Triton's own annotations.
"""

from dataclasses import dataclass
from typing import Any, Literal, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32
from torch import Tensor

from cryoformer_dist.model.kernels.sizes import require_kernel

Products = Literal["ieee", "tf32", "bf16"]

# Particles that follow one another on a tile of points in the forward pass.
GROUP = 8
# Programs of a backward pass: several per multiprocessor, and few enough that their partial sums stay small.
_PROGRAMS = 1024


@dataclass(frozen=True, slots=True)
class Launch:
    """How one kernel is cut.

    Attributes
    ----------
    block
        Points per tile.
    units
        Of the density's hidden layer, per program.
    warps
        Per program.
    stages
        Loads under way at once.
    """

    block: int
    units: int
    warps: int
    stages: int = 3


def launches(queries: int, width: int, products: Products) -> tuple[Launch, Launch, Launch]:
    """Of the forward, point-major and particle-major kernels.

    The largest tiles that registers hold, found by compiling for Hopper, where tests see that nothing is spilled; and
    that fit the 99 KiB of shared memory that a program has on the smallest cards since Ampere.
    """
    half = min(width, 32)
    # The values of a particle take 64 KiB in float32: no room for the next particle's beside them, nor for more points.
    crowded = products != "bf16" and min(queries, width) > 64
    stages = 2 if crowded else 3
    if products == "ieee":
        # Without tensor cores, for comparison: threads hold whole operands, so tiles are small.
        return Launch(16, width, 8, stages), Launch(16, half, 8), Launch(32, half, 8)
    forward = Launch(128, width, 4)
    if max(queries, width) > 64:
        forward = Launch(32 if crowded else 64, width, 8, stages)
    if queries > 64:
        point_major = Launch(64, 16, 4, stages=1) if products == "bf16" else Launch(64, 16, 8)
        return forward, point_major, Launch(32, half, 8)
    units = min(width, 64) if products == "bf16" else half
    return forward, Launch(64, units, 4), Launch(64, units, 4)


@triton.jit
@no_type_check
def _add_product(total, left, right, PRODUCTS: tl.constexpr):
    """``total + left @ right``, accumulated in float32."""
    if PRODUCTS == "bf16":
        total = tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), total)
    else:
        total = tl.dot(left, right, total, input_precision=PRODUCTS)
    return total


@triton.jit
@no_type_check
def _attention(hidden, key, key_bias, BLOCK: tl.constexpr, QUERIES: tl.constexpr, PRODUCTS: tl.constexpr):
    """Softmax over queries, ``(BLOCK, QUERIES)``."""
    logits = _add_product(tl.zeros([BLOCK, QUERIES], tl.float32), hidden, key, PRODUCTS) + key_bias[None, :]
    raised = tl.exp(logits - tl.max(logits, 1)[:, None])
    return raised / tl.sum(raised, 1)[:, None]


@triton.jit
@no_type_check
def _to_logits(attention, through, value, BLOCK: tl.constexpr, QUERIES: tl.constexpr, PRODUCTS: tl.constexpr):
    """Gradient in the logits of what arrives behind the activation."""
    to_attention = _add_product(tl.zeros([BLOCK, QUERIES], tl.float32), through, tl.trans(value), PRODUCTS)
    return attention * (to_attention - tl.sum(attention * to_attention, 1)[:, None])


@triton.jit
@no_type_check
def _matrix(pointer, rows, columns, stride):
    return tl.load(pointer + rows[:, None] * stride + columns[None, :])


@triton.jit
@no_type_check
def _hidden_tile(hidden_ptr, point, feature, points, FEATURES: tl.constexpr):
    where = hidden_ptr + point[:, None] * FEATURES + feature[None, :]
    return tl.load(where, mask=(point < points)[:, None], other=0.0)


@triton.jit
@no_type_check
def _incoming(gradient_ptr, scale_ptr, particle, point, points):
    """Gradient of a tile's densities before they were scaled."""
    gradient = tl.load(gradient_ptr + particle * points + point, mask=point < points, other=0.0)
    return gradient * tl.load(scale_ptr + particle)


@triton.jit
@no_type_check
def _slice(AXIS: tl.constexpr, SLICE: tl.constexpr):
    """Units of the density's hidden layer that a program works on."""
    return tl.program_id(AXIS) * SLICE + tl.arange(0, SLICE)


@triton.jit
@no_type_check
def forward(
    hidden_ptr,
    key_ptr,
    key_bias_ptr,
    value_ptr,
    residual_ptr,
    output_ptr,
    scale_ptr,
    bias_ptr,
    density_ptr,
    points,
    particles,
    FEATURES: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Grid (points / BLOCK, particles / GROUP): densities of a group of particles at a tile of points."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature, query, unit = tl.arange(0, FEATURES), tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    output, bias = tl.load(output_ptr + unit), tl.load(bias_ptr)
    residual = _matrix(residual_ptr, unit, feature, FEATURES)
    hidden = _hidden_tile(hidden_ptr, point, feature, points, FEATURES)
    shared = _add_product(tl.zeros([BLOCK, WIDTH], tl.float32), hidden, tl.trans(residual), PRODUCTS)
    first = tl.program_id(1).to(tl.int64) * GROUP
    for step in range(0, tl.minimum(GROUP, particles - tl.program_id(1) * GROUP)):
        particle = first + step
        key = _matrix(key_ptr + particle * FEATURES * QUERIES, feature, query, QUERIES)
        key_bias = tl.load(key_bias_ptr + particle * QUERIES + query)
        value = _matrix(value_ptr + particle * QUERIES * WIDTH, query, unit, WIDTH)
        attention = _attention(hidden, key, key_bias, BLOCK, QUERIES, PRODUCTS)
        activation = tl.maximum(_add_product(shared, attention, value, PRODUCTS), 0.0)
        density = (tl.sum(activation * output[None, :], 1) + bias) * tl.load(scale_ptr + particle)
        tl.store(density_ptr + particle * points + point, density, mask=point < points)


@triton.jit
@no_type_check
def backward_point_major(
    hidden_ptr,
    key_ptr,
    key_bias_ptr,
    value_ptr,
    residual_ptr,
    output_ptr,
    scale_ptr,
    gradient_ptr,
    to_hidden_ptr,
    to_residual_ptr,
    points,
    particles,
    tiles,
    FEATURES: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Grid (programs, slices): a slice's share of the gradient in ``h`` at ``tiles`` tiles, its own in the residual."""
    feature, query, unit = tl.arange(0, FEATURES), tl.arange(0, QUERIES), _slice(1, SLICE)
    output = tl.load(output_ptr + unit)
    residual = _matrix(residual_ptr, unit, feature, FEATURES)
    to_residual = tl.zeros([SLICE, FEATURES], tl.float32)
    slice_number = tl.program_id(1).to(tl.int64)
    for step in range(0, tiles):
        point = (tl.program_id(0) * tiles + step) * BLOCK + tl.arange(0, BLOCK)
        hidden = _hidden_tile(hidden_ptr, point, feature, points, FEATURES)
        shared = _add_product(tl.zeros([BLOCK, SLICE], tl.float32), hidden, tl.trans(residual), PRODUCTS)
        to_hidden = tl.zeros([BLOCK, FEATURES], tl.float32)
        to_shared = tl.zeros([BLOCK, SLICE], tl.float32)
        for number in range(0, particles):
            # 64 bits, whatever a loop's counter has.
            particle = tl.full([], 0, tl.int64) + number
            key = _matrix(key_ptr + particle * FEATURES * QUERIES, feature, query, QUERIES)
            key_bias = tl.load(key_bias_ptr + particle * QUERIES + query)
            value = _matrix(value_ptr + particle * QUERIES * WIDTH, query, unit, WIDTH)
            incoming = _incoming(gradient_ptr, scale_ptr, particle, point, points)
            attention = _attention(hidden, key, key_bias, BLOCK, QUERIES, PRODUCTS)
            lit = _add_product(shared, attention, value, PRODUCTS) > 0.0
            through = tl.where(lit, output[None, :], 0.0)
            to_logits = _to_logits(attention, through, value, BLOCK, QUERIES, PRODUCTS) * incoming[:, None]
            to_hidden = _add_product(to_hidden, to_logits, tl.trans(key), PRODUCTS)
            to_shared += tl.where(lit, incoming[:, None], 0.0)
        to_shared *= output[None, :]
        to_hidden = _add_product(to_hidden, to_shared, residual, PRODUCTS)
        to_residual = _add_product(to_residual, tl.trans(to_shared), hidden, PRODUCTS)
        where = to_hidden_ptr + (slice_number * points + point[:, None]) * FEATURES + feature[None, :]
        tl.store(where, to_hidden, mask=(point < points)[:, None])
    part = to_residual_ptr + tl.program_id(0) * WIDTH * FEATURES
    tl.store(part + unit[:, None] * FEATURES + feature[None, :], to_residual)


@triton.jit
@no_type_check
def backward_particle_major(
    hidden_ptr,
    key_ptr,
    key_bias_ptr,
    value_ptr,
    residual_ptr,
    output_ptr,
    scale_ptr,
    gradient_ptr,
    to_key_ptr,
    to_key_bias_ptr,
    to_value_ptr,
    to_output_ptr,
    points,
    tiles,
    FEATURES: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Grid (chunks, particles, slices): a slice's share of one particle's gradients, over ``tiles`` tiles of points."""
    particle = tl.program_id(1).to(tl.int64)
    feature, query, unit = tl.arange(0, FEATURES), tl.arange(0, QUERIES), _slice(2, SLICE)
    output = tl.load(output_ptr + unit)
    residual = _matrix(residual_ptr, unit, feature, FEATURES)
    key = _matrix(key_ptr + particle * FEATURES * QUERIES, feature, query, QUERIES)
    key_bias = tl.load(key_bias_ptr + particle * QUERIES + query)
    value = _matrix(value_ptr + particle * QUERIES * WIDTH, query, unit, WIDTH)
    to_key = tl.zeros([QUERIES, FEATURES], tl.float32)
    to_key_bias = tl.zeros([QUERIES], tl.float32)
    to_value = tl.zeros([QUERIES, SLICE], tl.float32)
    to_output = tl.zeros([SLICE], tl.float32)
    for step in range(0, tiles):
        point = (tl.program_id(0) * tiles + step) * BLOCK + tl.arange(0, BLOCK)
        hidden = _hidden_tile(hidden_ptr, point, feature, points, FEATURES)
        incoming = _incoming(gradient_ptr, scale_ptr, particle, point, points)
        attention = _attention(hidden, key, key_bias, BLOCK, QUERIES, PRODUCTS)
        before = _add_product(tl.zeros([BLOCK, SLICE], tl.float32), hidden, tl.trans(residual), PRODUCTS)
        before = _add_product(before, attention, value, PRODUCTS)
        to_output += tl.sum(tl.maximum(before, 0.0) * incoming[:, None], 0)
        through = tl.where(before > 0.0, output[None, :], 0.0)
        to_logits = _to_logits(attention, through, value, BLOCK, QUERIES, PRODUCTS) * incoming[:, None]
        to_value = _add_product(to_value, tl.trans(attention * incoming[:, None]), through, PRODUCTS)
        to_key = _add_product(to_key, tl.trans(to_logits), hidden, PRODUCTS)
        to_key_bias += tl.sum(to_logits, 0)
    part = tl.program_id(0) * tl.num_programs(1) + particle
    tl.store(to_value_ptr + part * QUERIES * WIDTH + query[:, None] * WIDTH + unit[None, :], to_value)
    tl.store(to_output_ptr + part * WIDTH + unit, to_output)
    # Every slice of units adds to the gradients in front of the softmax.
    part = part * tl.num_programs(2) + tl.program_id(2)
    tl.store(to_key_ptr + part * FEATURES * QUERIES + feature[None, :] * QUERIES + query[:, None], to_key)
    tl.store(to_key_bias_ptr + part * QUERIES + query, to_key_bias)


def fold_attend(
    hidden: Float32[Tensor, "points hidden"],
    key: Float32[Tensor, "particles hidden queries"],
    key_bias: Float32[Tensor, "particles queries"],
    value: Float32[Tensor, "particles queries width"],
    residual: Float32[Tensor, "width hidden"],
    offset: Float32[Tensor, " width"],
    output: Float32[Tensor, " width"],
    bias: Float32[Tensor, ""],
    scale: Float32[Tensor, " particles"],
    products: Products = "ieee",
) -> Float32[Tensor, "particles points"]:
    """As `fold_attend.fold_attend`, its matrix products in a chosen precision.

    Parameters
    ----------
    products
        ``ieee``: float32, without tensor cores; ``tf32``: operands rounded to 11 bits; ``bf16``: to 8 bits. Sums are in
        float32 always, and nothing outside the products is rounded.

    Raises
    ------
    ConfigError
        Sizes that no tile has.
    """
    _, features, queries = key.shape
    require_kernel(features, queries, len(output))
    # The weights of a point sum to one: an offset on every value is one on what they mix.
    tensors = (hidden, key, key_bias, value + offset, residual, output, scale, bias)
    result: Tensor = _FoldAttend.apply(products, *(tensor.contiguous() for tensor in tensors))
    return result


class _FoldAttend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Products, *inputs: Tensor) -> Tensor:
        hidden, key, key_bias, value, residual, output, scale, bias = inputs
        # What only products see is rounded once, here: programs read key and value again for every tile of points.
        operand = torch.bfloat16 if products == "bf16" else torch.float32
        hidden, key, value, residual = (tensor.to(operand) for tensor in (hidden, key, value, residual))
        tensors = (hidden, key, key_bias, value, residual, output, scale)
        ctx.save_for_backward(*tensors)
        ctx.products = products
        (particles, _, queries), points = key.shape, len(hidden)
        launch, _, _ = launches(queries, len(output), products)
        density = output.new_empty(particles, points)
        grid = (triton.cdiv(points, launch.block), triton.cdiv(particles, GROUP))
        constants = _constants(tensors, launch, products)
        forward[grid](*tensors, bias, density, points, particles, **constants, GROUP=GROUP, **_options(launch))
        return density

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_hidden, to_residual = _shared_gradients(tensors, gradient, ctx.products)
        to_key, to_key_bias, to_value, to_output = _particle_gradients(tensors, gradient, ctx.products)
        to_bias = torch.dot(gradient.sum(1), tensors[-1])
        return None, to_hidden, to_key, to_key_bias, to_value, to_residual, to_output, None, to_bias


def _constants(tensors: tuple[Tensor, ...], launch: Launch, products: Products) -> dict[str, int | str]:
    _, key, _, _, _, output, _ = tensors
    _, features, queries = key.shape
    sizes = {"FEATURES": features, "QUERIES": queries, "WIDTH": len(output)}
    return {**sizes, "BLOCK": launch.block, "PRODUCTS": products}


def _options(launch: Launch) -> dict[str, int]:
    return {"num_warps": launch.warps, "num_stages": launch.stages}


def _split(points: int, block: int, programs: int) -> tuple[int, int]:
    """Programs that share the points, and tiles of each."""
    tiles = triton.cdiv(points, block)
    each = triton.cdiv(tiles, min(tiles, max(programs, 1)))
    return triton.cdiv(tiles, each), each


def _shared_gradients(tensors: tuple[Tensor, ...], gradient: Tensor, products: Products) -> tuple[Tensor, Tensor]:
    hidden, key, _, _, residual, output, _ = tensors
    _, launch, _ = launches(key.shape[2], len(output), products)
    slices = len(output) // launch.units
    programs, tiles = _split(len(hidden), launch.block, _PROGRAMS // slices)
    to_hidden = gradient.new_empty(slices, *hidden.shape)
    to_residual = gradient.new_empty(programs, *residual.shape)
    backward_point_major[(programs, slices)](
        *(*tensors, gradient, to_hidden, to_residual, len(hidden), len(key), tiles),
        **_constants(tensors, launch, products),
        SLICE=launch.units,
        **_options(launch),
    )
    return to_hidden.sum(0), to_residual.sum(0)


def _particle_gradients(tensors: tuple[Tensor, ...], gradient: Tensor, products: Products) -> tuple[Tensor, ...]:
    hidden, key, key_bias, value, _, output, _ = tensors
    _, _, launch = launches(key.shape[2], len(output), products)
    slices = len(output) // launch.units
    chunks, tiles = _split(len(hidden), launch.block, _PROGRAMS // (slices * len(key)))
    to_key, to_key_bias = (gradient.new_empty(chunks, len(key), slices, *like.shape[1:]) for like in (key, key_bias))
    to_value = gradient.new_empty(chunks, *value.shape)
    to_output = gradient.new_empty(chunks, len(key), len(output))
    backward_particle_major[(chunks, len(key), slices)](
        *(*tensors, gradient, to_key, to_key_bias, to_value, to_output, len(hidden), tiles),
        **_constants(tensors, launch, products),
        SLICE=launch.units,
        **_options(launch),
    )
    return to_key.sum((0, 2)), to_key_bias.sum((0, 2)), to_value.sum(0), to_output.sum((0, 1))
