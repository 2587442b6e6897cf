from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoformer_dist.config.schema import DecoderConfig
from cryoformer_dist.model import decoder as decoder_module
from cryoformer_dist.model.decoder import DeformationDecoder
from cryoformer_dist.model.kernels import fold_attend as torch_backend

NAMES = ("hidden", "key", "key_bias", "value", "residual", "offset", "output", "bias")
# Points, particles, queries, width: ragged tiles, groups of particles not full, every size once, the largest of all.
CASES = ((150, 9, 64, 64), (130, 3, 16, 32), (70, 2, 128, 16), (33, 1, 32, 128), (40, 1, 128, 128))

FoldAttend = Callable[..., Tensor]


def inputs(points: int, particles: int, queries: int, width: int) -> list[Tensor]:
    """In float64, what float32 holds: rounding them is not to be judged."""
    generator = torch.Generator().manual_seed(points)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = [
        normal(points, 16).relu(),
        # As the decoder makes it: features last in memory.
        (0.7 * normal(particles, queries, 16)).transpose(1, 2),
        normal(particles, queries),
        normal(particles, queries, width),
        0.3 * normal(width, 16),
        normal(width),
        normal(width),
        normal(),
        # The unit of each particle's density, the one input that has no gradient.
        normal(particles).exp(),
    ]
    return [tensor.double() for tensor in tensors]


def learned(tensors: list[Tensor]) -> list[Tensor]:
    """The inputs that have a gradient, told to ask for it."""
    return [tensor.requires_grad_() for tensor in tensors[: len(NAMES)]]


def written_out(
    hidden: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    residual: Tensor,
    offset: Tensor,
    output: Tensor,
    bias: Tensor,
    scale: Tensor,
) -> Tensor:
    """The formula of `fold_attend`, everything kept."""
    attention = torch.softmax(hidden @ key + key_bias[:, None], dim=-1)
    return (torch.relu(attention @ value + hidden @ residual.T + offset) @ output + bias) * scale[:, None]


@pytest.fixture(params=["torch", "triton"])
def on_device(request, kernel_device) -> tuple[FoldAttend, str]:
    """An implementation in full float32 products, and where it runs."""
    if request.param == "torch":
        return torch_backend.fold_attend, kernel_device
    from cryoformer_dist.model.kernels.fold_attend_triton import fold_attend

    # The interpreter multiplies in float32 whatever it is told; the kernels for tensor cores have the larger tiles.
    products = "ieee" if kernel_device == "cuda" else "tf32"
    return (lambda *tensors: fold_attend(*tensors, products)), kernel_device


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm())


def differences(implementation: FoldAttend, device: str, case: tuple[int, int, int, int]) -> dict[str, float]:
    """Relative error of densities and of every gradient against the formula in float64."""
    exact = inputs(*case)
    leaves = [tensor.float().to(device) for tensor in exact]
    weight = torch.randn(case[1], case[0], generator=torch.Generator().manual_seed(1))
    wanted, expected_of = learned(leaves), learned(exact)
    found, expected = implementation(*leaves), written_out(*exact)
    gradients = torch.autograd.grad((found * weight.to(device)).sum(), wanted)
    expected_gradients = torch.autograd.grad((expected * weight.double()).sum(), expected_of)
    errors = {name: relative(*pair) for name, *pair in zip(NAMES, gradients, expected_gradients, strict=True)}
    return {"density": relative(found, expected), **errors}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_densities_and_gradients_are_those_of_the_formula(on_device, case):
    errors = differences(*on_device, case)
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.gpu
@pytest.mark.parametrize(("products", "worst"), [("tf32", 2e-3), ("bf16", 2e-2)])
def test_tensor_cores_round_operands_and_nothing_else(cuda, products, worst):
    from cryoformer_dist.model.kernels.fold_attend_triton import fold_attend

    errors = differences(lambda *tensors: fold_attend(*tensors, products), cuda, (3000, 9, 64, 64))
    assert errors["density"] < worst, errors
    # A rounded activation near zero may switch sides, and a gradient with it.
    assert max(errors.values()) < 20 * worst, errors


def test_the_same_call_twice_gives_the_same_bits(on_device):
    implementation, device = on_device
    leaves = [tensor.float().to(device) for tensor in inputs(*CASES[1])]
    wanted = learned(leaves)
    results = []
    for _ in range(2):
        density = implementation(*leaves)
        results.append([density, *torch.autograd.grad(density.square().sum(), wanted)])
    for name, one, other in zip(("density", *NAMES), *results, strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(("queries", "width"), [(24, 64), (64, 256), (8, 16)])
def test_triton_refuses_sizes_that_no_tile_has(queries, width):
    from cryoformer_dist.model.kernels.fold_attend_triton import fold_attend

    tensors = [tensor.float() for tensor in inputs(10, 2, queries, width)]
    with pytest.raises(ValueError, match=rf"not 16, {queries} and {width}; take those, or set model\.kernels: torch"):
        fold_attend(*tensors)


def test_torch_has_the_derivatives_of_what_it_computes():
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 4), (3, 4, 5), (3, 5), (3, 5, 6), (6, 4), (6,), (6,), (), (3,))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    learned(tensors)
    assert torch.autograd.gradcheck(torch_backend.fold_attend, tensors)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_decoder_asks_the_device_unless_torch_is_named(monkeypatch, kernels):
    torch.manual_seed(0)
    decoder = DeformationDecoder(DecoderConfig(queries=16, channels=16, density_width=16), kernels=kernels)
    folded = decoder.fold(decoder.queries(torch.randn(2, 16, 16)))
    hidden, asked = torch.rand(20, 16), []
    scale = torch.tensor([0.5, 3.0])
    expected = decoder.density(hidden, folded, scale)
    assert torch.allclose(expected, decoder.density(hidden, folded) * scale[:, None], rtol=1e-6, atol=0)

    def as_on_a_gpu(choice: str, device: torch.device) -> bool:
        asked.append((choice, device.type))
        return True

    monkeypatch.setattr(decoder_module, "uses_triton", as_on_a_gpu)
    assert torch.allclose(decoder.density(hidden, folded, scale), expected, rtol=0, atol=1e-6)
    assert asked == [(kernels, "cpu")]


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_decoder_on_a_gpu_has_the_densities_it_has_on_a_cpu(cuda, kernels):
    torch.manual_seed(0)
    decoder = DeformationDecoder(DecoderConfig(queries=16, channels=32, density_width=32), kernels=kernels)
    hidden, deformation = torch.rand(500, 16), torch.randn(5, 16, 32)
    expected = decoder.density(hidden, decoder.fold(decoder.queries(deformation)))
    decoder.to(cuda)
    found = decoder.density(hidden.to(cuda), decoder.fold(decoder.queries(deformation.to(cuda))))
    assert torch.allclose(found.cpu(), expected, atol=2e-3 * float(expected.abs().max()))
