from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoformer_dist.model.grid_layout import GridLayout, corner_weights
from cryoformer_dist.model.kernels import encode as torch_backend

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "hash_grid.npz"
SMALL = GridLayout.of(levels=4, base_resolution=4, growth=1.6, table_size=2**8)
POINTS = 300

Encode = Callable[[Tensor, Tensor, GridLayout], Tensor]


@pytest.fixture(params=["torch", "triton"])
def on_device(request, kernel_device) -> tuple[Encode, str]:
    """An implementation, and where it runs."""
    if request.param == "torch":
        return torch_backend.encode, kernel_device
    from cryoformer_dist.model.kernels.encode_triton import encode

    return encode, kernel_device


def golden_file(path: Path, configuration: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {
            name.removeprefix(configuration + "/"): file[name]
            for name in file.files
            if name.startswith(configuration + "/")
        }


def golden_table(golden: dict[str, np.ndarray]) -> tuple[Tensor, GridLayout]:
    layout = GridLayout.of(16, int(golden["base"]), float(golden["growth"]), 2**15)
    return torch.from_numpy(np.sin(0.37 * np.arange(2 * layout.entries)).astype(np.float32)).reshape(-1, 2), layout


def assert_as_tiny_cuda_nn(golden: dict[str, np.ndarray]) -> None:
    table, layout = golden_table(golden)
    np.testing.assert_array_equal(np.float32(layout.scales), golden["scale"])
    np.testing.assert_array_equal(layout.resolutions, golden["resolution"])
    np.testing.assert_array_equal(layout.offsets, golden["offset"])

    points = torch.from_numpy(golden["x"]).requires_grad_()
    entry, _ = layout.corners(points)
    within_level = entry - torch.tensor(layout.offsets[:-1])[:, None]
    np.testing.assert_array_equal(within_level.numpy(), golden["index"])

    output = torch_backend.encode(table, points, layout)
    np.testing.assert_allclose(output.detach().numpy(), golden["output"], rtol=0, atol=1e-6)
    slopes = [torch.autograd.grad(column.sum(), points, retain_graph=True)[0] for column in output.unbind(1)]
    # A slope is a difference of table rows times the scale of its level.
    unit = np.repeat(golden["scale"], 2)[None, :, None]
    np.testing.assert_allclose(torch.stack(slopes, 1).numpy() / unit, golden["dydx"] / unit, rtol=0, atol=1e-6)

    by_lattice = torch_backend.LatticeOperator(layout, points.detach()).of(table)
    np.testing.assert_allclose(by_lattice, golden["output"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("configuration", ["growth_1.5", "finest_128"])
def test_twenty_points_agree_with_tiny_cuda_nn(configuration):
    golden = golden_file(GOLDEN, configuration)
    assert golden["x"].shape == (20, 3)
    assert_as_tiny_cuda_nn(golden)


@pytest.mark.parametrize("configuration", ["growth_1.5", "growth_2.0", "finest_128", "finest_256"])
def test_eight_hundred_points_agree_with_tiny_cuda_nn(shared_data, configuration):
    golden = golden_file(shared_data / "golden" / "tiny_cuda_nn_grid.npz", configuration)
    assert golden["x"].shape == (200, 3)
    assert_as_tiny_cuda_nn(golden)


@pytest.mark.parametrize("configuration", ["growth_1.5", "finest_128"])
def test_triton_agrees_with_tiny_cuda_nn(kernel_device, configuration):
    from cryoformer_dist.model.kernels.encode_triton import encode

    golden = golden_file(GOLDEN, configuration)
    table, layout = golden_table(golden)
    found = encode(table.to(kernel_device), torch.from_numpy(golden["x"]).to(kernel_device), layout).cpu().numpy()
    # The interpreter rounds a fused multiply-add twice: a place may be off by its last bit along each of three axes,
    # between rows that differ by two.
    slack = 0 if kernel_device == "cuda" else 6 * np.repeat(np.spacing(golden["scale"]), 2)
    assert (np.abs(found - golden["output"]) <= 1e-6 + slack).all()
    assert (np.abs(golden["output"]) > 0.1).mean() > 0.5


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    """Table and points in float64; no point so near to a cell's border that rounding could change its slope."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4 * POINTS, 3, generator=generator).double()
    _, fraction = SMALL.corners(points)
    points = points[((fraction > 0.01) & (fraction < 0.99)).all(-1).all(-1)][:POINTS]
    assert len(points) == POINTS
    return torch.randn(SMALL.entries, 2, generator=generator).double(), points


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double().cpu() - expected).detach().norm() / expected.detach().norm())


def test_features_and_gradients_are_those_of_the_float64_reference(on_device, inputs):
    implementation, device = on_device
    weight = torch.randn(POINTS, 8, generator=torch.Generator().manual_seed(1)).double()
    leaves = [tensor.float().to(device).requires_grad_() for tensor in inputs]
    found = implementation(*leaves, SMALL)
    exact = [tensor.requires_grad_() for tensor in inputs]
    expected = torch_backend.encode(*exact, SMALL)
    assert relative(found, expected) < 5e-6
    found_gradients = torch.autograd.grad((found * weight.float().to(device)).sum(), leaves)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), exact)
    for name, one, other in zip(("table", "points"), found_gradients, expected_gradients, strict=True):
        assert relative(one, other) < 5e-6, name


@pytest.mark.parametrize("features", [1, 4])
def test_any_power_of_two_of_features_is_interpolated(on_device, inputs, features):
    implementation, device = on_device
    table = torch.randn(SMALL.entries, features, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = implementation(table.float().to(device), inputs[1].float().to(device), SMALL)
    assert relative(found, torch_backend.encode(table, inputs[1], SMALL)) < 5e-6


def test_triton_refuses_to_promise_the_same_bits_twice(inputs):
    from cryoformer_dist.model.kernels.encode_triton import encode

    table, points = (tensor.float() for tensor in inputs)
    features = encode(table.requires_grad_(), points[:5], SMALL)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match=r"set model\.hash_grid\.backend: torch"):
            features.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_slope_in_the_points_equals_finite_differences_inside_cells(inputs):
    table, points = inputs
    points.requires_grad_()
    weight = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (slope,) = torch.autograd.grad((torch_backend.encode(table, points, SMALL) @ weight).sum(), points)
    step = 1e-5
    for axis in range(3):
        along = torch.eye(3, dtype=torch.float64)[axis] * step
        with torch.no_grad():
            ends = [torch_backend.encode(table, points + sign * along, SMALL) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) @ weight / (2 * step)
        assert torch.allclose(slope[:, axis], difference, rtol=1e-7, atol=1e-8)


def test_table_gradient_equals_finite_differences(inputs):
    table, points = inputs
    entry, fraction = SMALL.corners(points[:20])
    weights = corner_weights(fraction).detach().requires_grad_()
    interpolate = torch_backend._Interpolate.apply
    assert torch.autograd.gradcheck(lambda rows, w: interpolate(rows, entry, w), (table.requires_grad_(), weights))
