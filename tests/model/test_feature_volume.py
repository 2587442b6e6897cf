import pytest
import torch
from support.blobs import points_within

from cryoformer_dist.config.schema import HashGridConfig
from cryoformer_dist.model import feature_volume
from cryoformer_dist.model.feature_volume import FeatureVolume

BOX = 16
CONFIG = HashGridConfig(levels=4, log2_table_size=9, base_resolution=4)


@pytest.fixture
def volume() -> FeatureVolume:
    torch.manual_seed(0)
    return FeatureVolume(CONFIG, BOX, hidden_width=6)


def test_lattice_path_equals_querying_the_points(volume):
    points = points_within(7.0, BOX) + 0.3
    weight = torch.randn(len(points), 6)
    by_lattice, by_points = volume.at_lattice(volume.lattice(points)), volume(points)
    assert by_points.shape == (len(points), 6)
    assert by_points.std().item() > 0.01
    assert torch.allclose(by_lattice, by_points, atol=1e-6)
    parameters = dict(volume.named_parameters())
    first = torch.autograd.grad((by_lattice * weight).sum(), list(parameters.values()))
    second = torch.autograd.grad((by_points * weight).sum(), list(parameters.values()))
    for name, a, b in zip(parameters, first, second, strict=True):
        assert float(b.abs().max()) > 0, name
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4), name


def test_centre_of_the_box_is_the_centre_of_the_unit_cube(volume):
    centre = torch.relu(volume.hidden(volume.grid(torch.full((1, 3), 0.5))))
    assert torch.equal(volume(torch.zeros(1, 3)), centre)
    corner = torch.relu(volume.hidden(volume.grid(torch.zeros(1, 3))))
    assert torch.equal(volume(torch.full((1, 3), -BOX / 2)), corner)


def test_every_point_of_the_inscribed_sphere_lies_in_the_unit_cube(volume):
    points = points_within(BOX / 2 - 1, BOX) + 0.5
    assert float((points / BOX + 0.5).min()) >= 0
    assert float((points / BOX + 0.5).max()) <= 1


def test_points_receive_gradients(volume):
    points = torch.rand(20, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(volume(points).sum(), points)
    assert bool((slope.abs().sum(-1) > 0).all())


def test_tiles_give_the_feature_and_the_gradients_of_all_points_at_once(volume, monkeypatch):
    monkeypatch.setattr(feature_volume, "TILE_POINTS", 100)
    points = points_within(7.0, BOX) + 0.3
    weight, parameters = torch.randn(len(points), 6), list(volume.parameters())
    whole, tiled = volume(points), volume.in_tiles(points)
    assert torch.allclose(tiled, whole, atol=1e-6)
    gradients = [torch.autograd.grad((hidden * weight).sum(), parameters) for hidden in (whole, tiled)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
