import pytest
import torch

from cryoformer_dist.config.schema import (
    DecoderConfig,
    EncoderConfig,
    HashGridConfig,
    LatentConfig,
    ModelConfig,
    PoseConfig,
)
from cryoformer_dist.model.cryoformer import CryoFormer
from cryoformer_dist.physics.grids import lattice_points, radius_grid

BOX = 16
SMALL = ModelConfig(
    hash_grid=HashGridConfig(levels=4, log2_table_size=9, base_resolution=4),
    decoder=DecoderConfig(queries=8, channels=16, blocks=2, hidden_width=6, density_width=12),
    latent=LatentConfig(dimensions=3, encoder=EncoderConfig(hidden_layers=2, width=8)),
    pose=PoseConfig(encoder=EncoderConfig(hidden_layers=2, width=8)),
)


def model(config: ModelConfig = SMALL, box: int = BOX, seed: int = 0) -> CryoFormer:
    torch.manual_seed(seed)
    return CryoFormer(config, box)


def test_density_has_a_value_per_particle_and_point_and_every_parameter_a_gradient():
    network = model()
    points = lattice_points(BOX, radius_pixels=6.0)
    latent = torch.randn(5, 3, requires_grad=True)
    density = network.density(network.feature_volume(points), network.condition(latent))
    assert density.shape == (5, len(points))
    (density * torch.randn_like(density)).sum().backward()
    assert float(latent.grad.abs().min()) > 0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # The bias of a key moves all logits alike, which the softmax does not see.
        if not name.endswith("key.bias"):
            assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("box", [32, 64])
def test_different_latents_give_different_shapes_from_the_start(box, seed):
    network = model(ModelConfig(), box, seed)
    points = lattice_points(box, radius_pixels=0.4 * box)
    points = points[torch.randperm(len(points))[:2000]]
    with torch.no_grad():
        density = network.density(network.feature_volume(points), network.condition(torch.randn(24, 8)))
    over_space = density.std(1).mean()
    assert float(density.std(0).mean() / over_space) > 1
    # And not only by an offset, which images of zero mean do not show.
    shape = density - density.mean(1, keepdim=True)
    assert float(shape.std(0).mean() / over_space) > 0.1


def test_prior_mean_is_one_conformation_for_all():
    network = model()
    hidden = network.feature_volume(lattice_points(BOX, radius_pixels=6.0))
    density = network.density(hidden, network.condition(torch.zeros(3, 3)))
    assert torch.allclose(density, density[:1].expand(3, -1), atol=1e-7)


def test_volumes_hold_the_density_on_the_lattice_and_nothing_outside():
    network = model()
    points = lattice_points(BOX, radius_pixels=5.0)
    inside = radius_grid(BOX, 3) <= 5.0
    flat_index = torch.nonzero(inside.ravel())[:, 0]
    latent = torch.randn(2, 3)
    maps = network.volumes(latent, points, flat_index)
    assert maps.shape == (2, BOX, BOX, BOX)
    assert not maps.requires_grad
    assert not bool(maps[:, ~inside].any())
    density = network.density(network.feature_volume(points), network.condition(latent))
    assert torch.allclose(maps[:, inside], density, atol=1e-6)
    # One voxel by hand: [z, y, x] = [9, 6, 11] is (x, y, z) = (3, -2, 1) about the centre.
    alone = network.density(network.feature_volume(torch.tensor([[3.0, -2.0, 1.0]])), network.condition(latent))
    assert maps[1, 9, 6, 11].item() == pytest.approx(alone[1, 0].item(), rel=1e-5)


@pytest.mark.parametrize("latent", ["table", "encoder", "none"])
@pytest.mark.parametrize("pose", ["given", "table", "encoder"])
def test_encoders_exist_only_where_the_configuration_says_so(latent, pose):
    config = SMALL.model_copy(
        update={
            "latent": SMALL.latent.model_copy(update={"form": latent}),
            "pose": SMALL.pose.model_copy(update={"form": pose}),
        }
    )
    network = model(config)
    assert (network.deformation_encoder is not None) == (latent == "encoder")
    assert (network.orientation_encoder is not None) == (pose == "encoder")


def test_same_seed_gives_the_same_network_and_another_another():
    first, again, other = model(), model(), model(seed=1)
    for name, parameter in first.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    assert not torch.equal(first.feature_volume.grid.table, other.feature_volume.grid.table)
