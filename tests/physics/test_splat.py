from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.physics import kernel_choice
from cryoformer_dist.physics import splat as splat_module
from cryoformer_dist.physics.kernel_choice import uses_triton
from cryoformer_dist.physics.projection import project_points
from cryoformer_dist.physics.splat import splat

PARTICLES, POINTS, SIZE = 2, 300, 14

Splat = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


@pytest.fixture(params=["torch", "triton"])
def on_device(request, kernel_device) -> tuple[Splat, str]:
    """An implementation, and where it runs."""
    if request.param == "torch":
        return (lambda *tensors_and_size: splat(*tensors_and_size, "torch")), kernel_device
    from cryoformer_dist.physics.splat_triton import splat as by_triton

    return by_triton, kernel_device


@pytest.fixture
def inputs() -> list[Tensor]:
    """Densities, points and where particles have them, in float64: ragged, within and without the grid.

    In fractions of so few bits that float32 holds every place exactly: rounding is not to be judged. Some points lie on
    the grid's lines.
    """
    generator = torch.Generator().manual_seed(0)

    def fractions(*shape: int, scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale * 128).round() / 128

    density = torch.randn(PARTICLES, POINTS, generator=generator).double()
    points = fractions(POINTS, 3, scale=SIZE / 2)
    points[::50] = points[::50].round()
    rotation, shift = fractions(PARTICLES, 2, 3, scale=1), fractions(PARTICLES, 2, scale=2)
    rotation[0], shift[0] = torch.eye(3)[:2], shift[0].round()
    return [density, points, rotation, shift]


def bspline(distance: Tensor) -> Tensor:
    """Cubic B-spline (de Boor), written as in the books."""
    x = distance.abs()
    near, far = 2 / 3 - x**2 + x**3 / 2, (2 - x).clamp(min=0) ** 3 / 6
    return torch.where(x < 1, near, far)


def written_out(density: Tensor, points: Tensor, rotation: Tensor, shift: Tensor, size: int) -> Tensor:
    """Every point's density times the spline of its periodic distance to every grid point."""
    position = points @ rotation.transpose(1, 2) + shift[:, None]
    from_line = torch.remainder(position[..., None] - torch.arange(size) + size / 2, size) - size / 2
    along_x, along_y = bspline(from_line).unbind(2)
    return torch.einsum("bp,bpy,bpx->byx", density, along_y, along_x)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double().cpu() - expected).detach().norm() / expected.detach().norm())


def test_every_density_is_spread_by_the_spline_of_its_distance(on_device, inputs):
    implementation, device = on_device
    found = implementation(*(tensor.float().to(device) for tensor in inputs), SIZE)
    assert relative(found, written_out(*inputs, SIZE)) < 2e-6


def asked_of(tensors: list[Tensor]) -> list[Tensor]:
    """Density, rotation and shift, told to ask for a gradient."""
    return [tensors[number].requires_grad_() for number in (0, 2, 3)]


def test_gradients_in_density_and_pose_are_those_of_the_formula(on_device, inputs):
    implementation, device = on_device
    weight = torch.randn(PARTICLES, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tensors = [tensor.float().to(device) for tensor in inputs]
    leaves, exact = asked_of(tensors), asked_of(inputs)
    found = torch.autograd.grad((implementation(*tensors, SIZE) * weight.float().to(device)).sum(), leaves)
    expected = torch.autograd.grad((written_out(*inputs, SIZE) * weight).sum(), exact)
    for name, one, other in zip(("density", "rotation", "shift"), found, expected, strict=True):
        assert relative(one, other) < 2e-6, name


@pytest.mark.parametrize("alone", [2, 3], ids=["rotation", "shift"])
def test_a_pose_may_ask_for_half_of_its_gradient(on_device, inputs, alone):
    implementation, device = on_device
    tensors = [tensor.float().to(device) for tensor in inputs]
    leaf, exact = tensors[alone].requires_grad_(), inputs[alone].requires_grad_()
    (found,) = torch.autograd.grad(implementation(*tensors, SIZE).square().sum() / 2, leaf)
    (expected,) = torch.autograd.grad(written_out(*inputs, SIZE).square().sum() / 2, exact)
    assert relative(found, expected) < 5e-6


def test_density_gradient_does_not_ask_for_the_pose(on_device, inputs):
    implementation, device = on_device
    tensors = [tensor.float().to(device) for tensor in inputs]
    density = tensors[0].requires_grad_()
    (found,) = torch.autograd.grad(implementation(*tensors, SIZE).square().sum() / 2, density)
    exact = inputs[0].requires_grad_()
    (expected,) = torch.autograd.grad(written_out(*inputs, SIZE).square().sum() / 2, exact)
    assert relative(found, expected) < 5e-6


def test_triton_keeps_nothing_of_a_point_and_particle_where_poses_are_given(inputs):
    from cryoformer_dist.physics.splat_triton import splat as by_triton

    tensors = [tensor.float() for tensor in inputs]
    kept: list[Tensor] = []
    for number, expected in ((0, 0), (2, PARTICLES * POINTS)):
        kept.clear()
        leaves = [tensor.clone() for tensor in tensors]
        leaves[0].requires_grad_()
        leaves[number].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda it: it):
            by_triton(*leaves, SIZE)
        assert sum(tensor.numel() for tensor in kept if tensor.shape == (PARTICLES, POINTS)) == expected


def test_the_whole_density_arrives_around_its_point(on_device):
    implementation, device = on_device
    points = torch.tensor([[3.25, 8.5, 4.0], [-0.5, 19.75, -7.0]], device=device)
    place = (torch.eye(3, device=device)[None, :2].contiguous(), torch.zeros(1, 2, device=device))
    grid = implementation(torch.tensor([[2.0, 3.0]], device=device), points, *place, 20)[0].cpu()
    assert float(grid.sum()) == pytest.approx(5, rel=1e-6)
    only_first = implementation(torch.tensor([[2.0, 0.0]], device=device), points, *place, 20)[0].cpu()
    axis = torch.arange(20.0)
    assert float((only_first.sum(0) * axis).sum() / 2) == pytest.approx(3.25, abs=1e-5)
    assert float((only_first.sum(1) * axis).sum() / 2) == pytest.approx(8.5, abs=1e-5)


def test_torch_has_the_derivatives_of_what_it_computes():
    generator = torch.Generator().manual_seed(4)
    shapes = ((2, 6), (6, 3), (2, 2, 3), (2, 2))
    density, points, rotation, shift = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    leaves = (density.requires_grad_(), rotation.requires_grad_(), shift.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, r, s: splat(d, 10 * points, r, s, 10), leaves)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_in_fixed_point_the_order_of_points_changes_not_one_bit(kernel_device, inputs):
    from cryoformer_dist.physics.splat_triton import splat as by_triton

    density, points, *place = (tensor.float().to(kernel_device) for tensor in inputs)
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(2)).to(kernel_device)
    grid = by_triton(density, points, *place, SIZE)
    assert torch.equal(grid, by_triton(density[:, order], points[order], *place, SIZE))
    assert relative(grid, written_out(*inputs, SIZE)) < 1e-6


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_fixed_point_neither_overflows_nor_loses_small_densities(kernel_device, inputs, scale):
    from cryoformer_dist.physics.splat_triton import splat as by_triton

    density, *places = (tensor.to(kernel_device) for tensor in inputs)
    found = by_triton((density * scale).float(), *(tensor.float() for tensor in places), SIZE)
    assert relative(found / scale, written_out(*inputs, SIZE)) < 1e-6


# The interpreter's conversion warns, a device's does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fixed_point_does_not_hide_a_density_that_is_not_finite(kernel_device, value):
    from cryoformer_dist.physics.splat_triton import splat as by_triton

    density = torch.tensor([[1.0, value], [1.0, 2.0]], device=kernel_device)
    places = (torch.zeros(shape, device=kernel_device) for shape in ((2, 3), (2, 2, 3), (2, 2)))
    grid = by_triton(density, *places, 8)
    assert bool(grid[0].isnan().all())
    assert bool(grid[1].isfinite().all())


def test_projection_asks_the_device_unless_torch_is_named(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    density, points = torch.randn(2, 30, generator=generator), torch.randn(30, 3, generator=generator)
    pose = (torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2))
    expected, asked = project_points(density, points, *pose, 8), []
    monkeypatch.setattr(splat_module, "uses_triton", lambda choice, device: asked.append(choice) or True)
    found = project_points(density, points, *pose, 8, "torch")
    assert asked == ["torch"]
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_gpu_means_triton_unless_torch_is_named():
    assert uses_triton("auto", torch.device("cuda"))
    assert not uses_triton("torch", torch.device("cuda"))
    assert not uses_triton("auto", torch.device("cpu"))


def test_a_gpu_without_triton_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(kernel_choice, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"triton is not installed.*model\.kernels: torch"):
        uses_triton("auto", torch.device("cuda"))
    assert not uses_triton("torch", torch.device("cuda"))
