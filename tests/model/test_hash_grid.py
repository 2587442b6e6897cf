import pytest
import torch

from cryoformer_dist.config.schema import HashGridConfig, ModelConfig
from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.model import hash_grid
from cryoformer_dist.model.hash_grid import HashGrid, operator_bytes_per_point
from cryoformer_dist.model.kernels.encode import LatticeOperator, encode
from cryoformer_dist.physics import kernel_choice

SMALL = HashGridConfig(levels=4, log2_table_size=8, base_resolution=4, finest_resolution=16)


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


def test_finest_level_follows_the_box_unless_the_configuration_names_one():
    assert HashGrid(HashGridConfig(), box=128).layout.resolutions[-1] == pytest.approx(128, abs=1)
    assert HashGrid(HashGridConfig(finest_resolution=40), box=128).layout.resolutions[-1] == pytest.approx(40, abs=1)


def backed_by(backend: str) -> HashGrid:
    torch.manual_seed(0)
    return HashGrid(SMALL.model_copy(update={"backend": backend}), box=16)


def test_all_backends_start_from_the_same_table_and_read_it_alike(kernel_device):
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(1)).to(kernel_device)
    ours, theirs = (backed_by(backend).to(kernel_device) for backend in ("torch", "triton"))
    assert torch.equal(ours.table, theirs.table)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    lattices = [grid.at_lattice(grid.operator(points)) for grid in (ours, theirs)]
    assert torch.allclose(*lattices, atol=1e-7)
    assert torch.allclose(theirs(points), lattices[0], atol=1e-7)


def test_triton_off_a_gpu_is_refused_with_the_remedy(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(BackendUnavailableError, match="triton needs a CUDA device, and this is cpu; set it to torch"):
        backed_by("triton")(torch.rand(5, 3))


def test_triton_that_is_not_installed_is_refused_when_the_grid_is_built(monkeypatch):
    monkeypatch.setattr(kernel_choice, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"triton is not installed.*model\.hash_grid\.backend: torch"):
        backed_by("triton")
    backed_by("torch")


def test_auto_is_triton_on_a_gpu_and_torch_elsewhere_with_one_table(monkeypatch):
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    by_torch = backed_by("auto")
    assert isinstance(by_torch.operator(points), LatticeOperator)
    monkeypatch.setattr(hash_grid, "uses_triton", lambda kernels, device: kernels == "auto")
    by_triton = backed_by("auto")
    assert by_triton.operator(points) is points
    assert by_triton.state_dict().keys() == by_torch.state_dict().keys()
    assert torch.equal(by_triton.table, by_torch.table)
    # The interpreter's features, forwards and backwards, are torch's.
    gradients = []
    for grid, operator in ((by_torch, LatticeOperator(by_torch.layout, points)), (by_triton, points)):
        gradients.append(torch.autograd.grad(grid.at_lattice(operator).square().sum(), grid.table)[0])
    assert torch.allclose(*gradients, atol=1e-6)


def test_auto_with_kernels_of_torch_is_torch_on_a_gpu():
    grid = HashGrid(SMALL, box=16, kernels="torch")
    assert grid._choose(torch.device("cuda")) is encode


def test_auto_on_a_gpu_without_triton_is_refused_and_not_replaced(monkeypatch):
    monkeypatch.setattr(kernel_choice, "find_spec", lambda name: None)
    grid = backed_by("auto")
    with pytest.raises(BackendUnavailableError, match=r"triton is not installed.*model\.kernels: torch"):
        grid._choose(torch.device("cuda"))
    assert grid._choose(torch.device("cpu")) is encode


@pytest.mark.parametrize("backend", ["auto", "torch", "triton", "tinycudann"])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_what_a_plan_charges_is_what_encodes(backend, kernels):
    model = ModelConfig(hash_grid=HashGridConfig(backend=backend), kernels=kernels)
    named = {"auto": ("torch", "triton" if kernels == "auto" else "torch")}.get(backend, (backend, backend))
    assert (model.encoder(on_gpu=False), model.encoder(on_gpu=True)) == named
    if backend in ("auto", "torch"):
        grid = HashGrid(model.hash_grid, 16, kernels)
        for on_gpu, device in ((False, "cpu"), (True, "cuda")):
            by_torch = grid._choose(torch.device(device)) is encode
            assert by_torch == (model.encoder(on_gpu) == "torch")
            assert (operator_bytes_per_point(model, on_gpu) > 12) == by_torch
