import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from cryoformer_dist.config.schema import HashGridConfig
from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.model.grid_layout import GridLayout
from cryoformer_dist.model.hash_grid import HashGrid
from cryoformer_dist.model.kernels.encode import encode

SMALL = HashGridConfig(levels=4, log2_table_size=8, base_resolution=4, finest_resolution=16)


def backed_by(backend: str) -> HashGrid:
    torch.manual_seed(0)
    return HashGrid(SMALL.model_copy(update={"backend": backend}), box=16)


def test_tinycudann_that_is_not_installed_is_refused_with_the_recipe(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(
        BackendUnavailableError, match=r"tinycudann cannot be loaded.*setuptools<82.*no-build-isolation"
    ):
        backed_by("tinycudann")


def test_tinycudann_built_for_another_machine_is_refused_with_its_reason(monkeypatch, tmp_path):
    (tmp_path / "tinycudann.py").write_text("raise EnvironmentError('Unknown compute capability')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    with pytest.raises(BackendUnavailableError, match="Unknown compute capability"):
        backed_by("tinycudann")


class LikeTinyCudaNN(nn.Module):
    """``tinycudann.Encoding`` as far as we use it: flat parameters, and the definition of the grid."""

    def __init__(self, inputs: int, configuration: dict, dtype: torch.dtype) -> None:
        super().__init__()
        assert (inputs, configuration["otype"], dtype) == (3, "HashGrid", torch.float32)
        self.features = configuration["n_features_per_level"]
        self.layout = GridLayout.of(
            configuration["n_levels"],
            configuration["base_resolution"],
            configuration["per_level_scale"],
            2 ** configuration["log2_hashmap_size"],
        )
        self.params = nn.Parameter(torch.zeros(self.layout.entries * self.features))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return encode(self.params.reshape(-1, self.features), points, self.layout)


def test_tinycudann_works_on_our_table(monkeypatch):
    module = ModuleType("tinycudann")
    module.Encoding = LikeTinyCudaNN
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    ours, theirs = backed_by("torch"), backed_by("tinycudann")
    assert theirs.state_dict().keys() == {"table"}
    points = torch.rand(50, 3)
    found = theirs.at_lattice(theirs.operator(points))
    assert torch.equal(found, ours(points))
    expected = torch.autograd.grad(ours(points).square().sum(), ours.table)
    assert torch.equal(torch.autograd.grad(found.square().sum(), theirs.table)[0], expected[0])


def test_tinycudann_with_another_layout_is_refused(monkeypatch):
    class Wider(LikeTinyCudaNN):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            self.params = nn.Parameter(torch.zeros(self.params.numel() + 8))

    module = ModuleType("tinycudann")
    module.Encoding = Wider
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    with pytest.raises(BackendUnavailableError, match=r"keeps .* parameters where the layout"):
        backed_by("tinycudann")


@pytest.mark.gpu
def test_tinycudann_itself_agrees_with_torch(cuda):
    pytest.importorskip("tinycudann", exc_type=(ImportError, OSError))
    ours, theirs = (backed_by(backend).to(cuda) for backend in ("torch", "tinycudann"))
    points = torch.rand(1000, 3, device=cuda)
    found, expected = theirs(points), ours(points)
    assert torch.allclose(found, expected, atol=1e-6)
    weight = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((out * weight).sum(), g.table)[0] for out, g in ((found, theirs), (expected, ours))
    ]
    assert torch.allclose(*gradients, atol=1e-4)
