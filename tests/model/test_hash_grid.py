from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.config.schema import HashGridConfig
from cryoformer_dist.model.hash_grid import GridLayout, HashGrid, _Interpolate, corner_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hash_grid.npz"
CONFIGURATIONS = ("growth_1.5", "growth_2.0", "finest_128", "finest_256")
SMALL = HashGridConfig(levels=4, log2_table_size=8, base_resolution=4, finest_resolution=16)


def golden_file(path: Path, configuration: str = "") -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {
            name.removeprefix(configuration + "/"): file[name]
            for name in file.files
            if not configuration or name.startswith(configuration + "/")
        }


def golden_grid(golden: dict[str, np.ndarray]) -> HashGrid:
    grid = HashGrid(HashGridConfig(base_resolution=int(golden["base"])), box=64)
    grid.layout = GridLayout.of(16, int(golden["base"]), float(golden["growth"]), 2**15)
    table = np.sin(0.37 * np.arange(2 * grid.layout.entries)).astype(np.float32).reshape(-1, 2)
    grid.table = torch.nn.Parameter(torch.from_numpy(table))
    return grid


def assert_as_tiny_cuda_nn(golden: dict[str, np.ndarray]) -> None:
    grid = golden_grid(golden)
    layout = grid.layout
    np.testing.assert_array_equal(np.float32(layout.scales), golden["scale"])
    np.testing.assert_array_equal(layout.resolutions, golden["resolution"])
    np.testing.assert_array_equal(layout.offsets, golden["offset"])

    points = torch.from_numpy(golden["x"]).requires_grad_()
    entry, _ = layout.corners(points)
    within_level = entry - torch.tensor(layout.offsets[:-1])[:, None]
    np.testing.assert_array_equal(within_level.numpy(), golden["index"])

    output = grid(points)
    np.testing.assert_allclose(output.detach().numpy(), golden["output"], rtol=0, atol=1e-6)
    slopes = [torch.autograd.grad(column.sum(), points, retain_graph=True)[0] for column in output.unbind(1)]
    # A slope is a difference of table rows times the scale of its level.
    unit = np.repeat(golden["scale"], 2)[None, :, None]
    np.testing.assert_allclose(torch.stack(slopes, 1).numpy() / unit, golden["dydx"] / unit, rtol=0, atol=1e-6)

    with torch.no_grad():
        np.testing.assert_allclose(grid.at_lattice(grid.operator(points.detach())), golden["output"], rtol=0, atol=1e-6)


def test_twenty_points_agree_with_tiny_cuda_nn():
    golden = golden_file(GOLDEN)
    assert golden["x"].shape == (20, 3)
    assert_as_tiny_cuda_nn(golden)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_eight_hundred_points_agree_with_tiny_cuda_nn(shared_data, configuration):
    golden = golden_file(shared_data / "golden" / "tiny_cuda_nn_grid.npz", configuration)
    assert golden["x"].shape == (200, 3)
    assert_as_tiny_cuda_nn(golden)


def test_coarse_levels_are_dense_and_fine_ones_full_tables():
    layout = GridLayout.of(levels=6, base_resolution=4, growth=2.0, table_size=2**10)
    sizes = np.diff(layout.offsets)
    assert layout.resolutions == (4, 8, 16, 32, 64, 128)
    assert sizes.tolist() == [64, 512, 1024, 1024, 1024, 1024]
    assert layout.entries == sum(sizes)


def test_dense_level_gives_every_vertex_an_entry_of_its_own():
    layout = GridLayout.of(levels=1, base_resolution=4, growth=1.0, table_size=2**10)
    axis = (torch.arange(3) + 0.25) / layout.scales[0]
    entry, fraction = layout.corners(torch.cartesian_prod(axis, axis, axis))
    assert torch.allclose(fraction, torch.tensor(0.75), atol=1e-6)
    assert sorted(entry.unique().tolist()) == list(range(4**3))


def test_corner_weights_sum_to_one_and_pick_the_corner_a_point_sits_on():
    fraction = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(corner_weights(fraction).sum(-1), torch.ones(100), atol=1e-6)
    for corner in range(8):
        on_corner = torch.tensor([float(corner >> axis & 1) for axis in range(3)])
        assert corner_weights(on_corner).tolist() == [float(number == corner) for number in range(8)]


def test_linear_field_on_the_vertices_is_interpolated_exactly():
    grid = HashGrid(HashGridConfig(levels=1, features_per_level=1, base_resolution=8, finest_resolution=8), box=8)
    side, scale = grid.layout.resolutions[0], grid.layout.scales[0]
    z, y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 3, indexing="ij")
    with torch.no_grad():
        grid.table[: side**3, 0] = (2 * x - 3 * y + 5 * z).ravel()
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.05
    vertex = points * scale + 0.5
    expected = vertex @ torch.tensor([2.0, -3.0, 5.0])
    assert torch.allclose(grid(points)[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("features", [1, 2, 4])
def test_lattice_operator_equals_direct_interpolation_in_value_and_gradient(features):
    torch.manual_seed(0)
    grid = HashGrid(SMALL.model_copy(update={"features_per_level": features}), box=16)
    points = torch.rand(300, 3)
    weight = torch.randn(300, grid.width)
    direct, lattice = grid(points), grid.at_lattice(grid.operator(points))
    assert torch.allclose(direct, lattice, rtol=0, atol=1e-8)
    (from_direct,) = torch.autograd.grad((direct * weight).sum(), grid.table)
    (from_lattice,) = torch.autograd.grad((lattice * weight).sum(), grid.table)
    assert float(from_direct.abs().max()) > 1
    assert torch.allclose(from_direct, from_lattice, rtol=1e-5, atol=1e-5)


def test_lattice_gradient_is_the_same_bit_for_bit_every_time():
    torch.manual_seed(0)
    grid = HashGrid(SMALL, box=16)
    operator = grid.operator(torch.rand(500, 3))
    weight = torch.randn(500, grid.width)
    gradients = [torch.autograd.grad((grid.at_lattice(operator) * weight).sum(), grid.table)[0] for _ in range(2)]
    assert torch.equal(*gradients)


def test_slope_in_the_points_equals_finite_differences_inside_cells():
    torch.manual_seed(0)
    grid = HashGrid(SMALL, box=16).double()
    points = torch.rand(200, 3, dtype=torch.float64)
    _, fraction = grid.layout.corners(points)
    inside = ((fraction > 0.01) & (fraction < 0.99)).all(-1).all(-1)
    points = points[inside].requires_grad_()
    assert len(points) > 100
    weight = torch.randn(grid.width, dtype=torch.float64)
    (slope,) = torch.autograd.grad((grid(points) @ weight).sum(), points)
    step = 1e-5
    for axis in range(3):
        along = torch.eye(3, dtype=torch.float64)[axis] * step
        with torch.no_grad():
            difference = (grid(points + along) - grid(points - along)) @ weight / (2 * step)
        assert torch.allclose(slope[:, axis], difference, rtol=1e-7, atol=1e-8)


def test_table_gradient_equals_finite_differences():
    torch.manual_seed(0)
    grid = HashGrid(SMALL, box=16).double()
    points = torch.rand(20, 3, dtype=torch.float64, requires_grad=True)
    entry, fraction = grid.layout.corners(points)
    weights = corner_weights(fraction).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda table, w: _Interpolate.apply(table, entry, w), (grid.table, weights))


def test_finest_level_follows_the_box_unless_the_configuration_names_one():
    assert HashGrid(HashGridConfig(), box=128).layout.resolutions[-1] == pytest.approx(128, abs=1)
    assert HashGrid(HashGridConfig(finest_resolution=40), box=128).layout.resolutions[-1] == pytest.approx(40, abs=1)
