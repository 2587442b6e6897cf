from dataclasses import replace

import pytest
import torch
from support.blobs import blobs, points_within

from cryoformer_dist.config.schema import (
    DecoderConfig,
    EncoderConfig,
    HashGridConfig,
    LatentConfig,
    ModelConfig,
    PoseConfig,
)
from cryoformer_dist.model.cryoformer import CryoFormer
from cryoformer_dist.physics.fourier import volume_to_fourier
from cryoformer_dist.physics.grids import frequency_grid, lattice_points, radius_grid
from cryoformer_dist.physics.pose import rotation_from_axis_angle
from cryoformer_dist.physics.projection import project_points, project_slices

BOX = 16
SMALL = ModelConfig(
    hash_grid=HashGridConfig(levels=4, log2_table_size=9, base_resolution=4),
    decoder=DecoderConfig(queries=8, channels=16, blocks=2, hidden_width=6, density_width=12),
    latent=LatentConfig(dimensions=3, encoder=EncoderConfig(hidden_layers=2, width=8)),
    pose=PoseConfig(encoder=EncoderConfig(hidden_layers=2, width=8)),
)


def _with_decoder(**decoder: object) -> ModelConfig:
    return SMALL.model_copy(update={"decoder": SMALL.decoder.model_copy(update=decoder)})


def model(config: ModelConfig = SMALL, box: int = BOX, seed: int = 0) -> CryoFormer:
    torch.manual_seed(seed)
    return CryoFormer(config, box)


def test_density_has_a_value_per_particle_and_point_and_every_parameter_a_gradient():
    network = model()
    points = points_within(6.0, BOX)
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


def test_the_concatenation_decoder_takes_the_place_of_attention():
    network = model(_with_decoder(form="concatenation"))
    points = points_within(6.0, BOX)
    density = network.density(network.feature_volume(points), network.condition(torch.randn(5, 3)))
    assert density.shape == (5, len(points))
    (density * torch.randn_like(density)).sum().backward()
    for name, parameter in network.named_parameters():
        assert name.endswith("key.bias") or float(parameter.grad.abs().sum()) > 0, name
    flat_index = torch.nonzero((radius_grid(BOX, 3) <= 6.0).ravel())[:, 0]
    maps = network.volumes(torch.randn(2, 3), points, flat_index)
    assert float((maps[0] - maps[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("box", [32, 64])
def test_different_latents_give_different_shapes_from_the_start(box, seed):
    network = model(ModelConfig(), box, seed)
    points = points_within(0.4 * box, box)
    points = points[torch.randperm(len(points))[:2000]]
    with torch.no_grad():
        density = network.density(network.feature_volume(points), network.condition(torch.randn(24, 8)))
    over_space = density.std(1).mean()
    assert float(density.std(0).mean() / over_space) > 1
    # And not only by an offset, which images of zero mean do not show.
    shape = density - density.mean(1, keepdim=True)
    assert float(shape.std(0).mean() / over_space) > 0.1


def test_the_prior_mean_is_the_structure_without_deformation_and_its_neighbours_are_like_it():
    network = model()
    hidden = network.feature_volume(points_within(6.0, BOX))
    decoder = network.decoder
    still = decoder.fold(decoder.queries(torch.zeros(1, *decoder.structure_queries.shape)))
    mean = network.density(hidden, network.condition(torch.zeros(1, 3)))
    assert torch.allclose(mean, network.density(hidden, still), atol=1e-7)
    latent = torch.randn(20, 3)
    near, far = (network.density(hidden, network.condition(scale * latent)) - mean for scale in (0.01, 1.0))
    assert 0 < near.square().mean().item() < 1e-3 * far.square().mean().item()


def test_volumes_hold_the_density_on_the_lattice_and_nothing_outside():
    network = model()
    points = points_within(5.0, BOX)
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


@pytest.mark.parametrize("latent", ["table", "encoder", "table_then_encoder", "none"])
@pytest.mark.parametrize("pose", ["given", "table", "encoder", "encoder_then_table"])
def test_encoders_exist_only_where_the_configuration_says_so(latent, pose):
    config = SMALL.model_copy(
        update={
            "latent": SMALL.latent.model_copy(update={"form": latent}),
            "pose": SMALL.pose.model_copy(update={"form": pose}),
        }
    )
    network = model(config)
    assert (network.deformation_encoder is not None) == (latent == "encoder")
    assert (network.latent_encoder is not None) == (latent == "table_then_encoder")
    assert (network.orientation_encoder is not None) == (pose in ("encoder", "encoder_then_table"))


def test_same_seed_gives_the_same_network_and_another_another():
    first, again, other = model(), model(), model(seed=1)
    for name, parameter in first.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    assert not torch.equal(first.feature_volume.grid.table, other.feature_volume.grid.table)


class TestFourierDomain:
    """The network as the density's transform."""

    @pytest.fixture
    def network(self) -> CryoFormer:
        torch.manual_seed(0)
        network = CryoFormer(SMALL.model_copy(update={"domain": "fourier"}), BOX, 1 / (1 + torch.arange(BOX // 2.0)))
        with torch.no_grad():
            # Far from the start, where coefficients hardly vary.
            network.feature_volume.grid.table.mul_(100)
        return network

    @staticmethod
    def decoded(network: CryoFormer, latent: torch.Tensor) -> torch.Tensor:
        points = points_within(5.0, BOX)
        return network.volumes(latent, points, torch.arange(len(points)))

    def test_every_parameter_learns(self, network: CryoFormer):
        shells = 6 * torch.rand(4, 50, 3)
        found = network.coefficients(shells, network.condition(torch.randn(4, 3)))
        assert found.shape == (4, 50)
        assert found.is_complex()
        (found.real * torch.randn(4, 50) + found.imag * torch.randn(4, 50)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            if not name.endswith("key.bias"):
                assert float(parameter.grad.abs().sum()) > 0, name

    def test_coefficients_scale_with_the_spectrum_of_their_shell(self, network: CryoFormer):
        shells = torch.tensor([[[0.0, 0, 2], [0, 0, 3], [0, 0, 2.5], [0, 0, 30]]])
        folded = network.condition(torch.randn(1, 3))
        before = network.coefficients(shells, folded)[0]
        kept = network.spectrum.clone()
        network.spectrum *= torch.tensor([1.0, 1, 5, 1, 1, 1, 1, 7])
        ratio = (network.coefficients(shells, folded)[0] / before).abs().detach()
        between = (5 * kept[2] + kept[3]) / (kept[2] + kept[3])
        # Beyond the last shell: the last shell's.
        assert ratio.tolist() == pytest.approx([5, 1, float(between), 7], rel=0.02)

    def test_maps_are_real_and_differ_by_conformation(self, network: CryoFormer):
        maps = self.decoded(network, torch.randn(2, 3))
        assert maps.shape == (2, BOX, BOX, BOX)
        assert maps.dtype == torch.float32
        assert not maps.requires_grad
        shape = maps - maps.mean((1, 2, 3), keepdim=True)
        assert float((shape[0] - shape[1]).norm() / shape[0].norm()) > 0.05

    def test_the_transform_of_the_map_is_what_the_network_says_and_its_conjugate_at_minus_k(self, network: CryoFormer):
        latent = torch.randn(1, 3)
        transform = volume_to_fourier(self.decoded(network, latent)[0])
        shells = torch.tensor([[1.0, 2, 3], [-4, 0, 1], [0, -5, 2], [3, 3, 4]])
        said = network.coefficients(shells[None], network.condition(latent))[0].detach()
        x, y, z = shells.long().unbind(-1)
        assert torch.allclose(transform[z, y, x], said, atol=1e-3)
        assert torch.allclose(transform[-z, -y, -x], said.conj(), atol=1e-3)
        outside = torch.fft.ifftshift(radius_grid(BOX, 3)) > BOX / 2 - 1
        assert float(transform[outside].abs().max()) < 1e-3

    @pytest.mark.parametrize("axis", [(1.0, 0, 0), (0, 1.0, 0), (0, -1.0, 0)])
    def test_a_slice_of_the_network_is_the_projection_of_its_map(self, network: CryoFormer, axis):
        latent = torch.randn(1, 3)
        # Quarter turns bring the lattice onto itself, so that a map of so few voxels is known without interpolation.
        rotation = rotation_from_axis_angle(torch.tensor([axis]) * torch.pi / 2)
        shift = torch.tensor([[1.3, -0.7]])
        folded = network.condition(latent)
        found = project_slices(lambda shells: network.coefficients(shells, folded), rotation, shift, BOX).detach()
        voxels = self.decoded(network, latent).reshape(1, -1)
        expected = project_points(voxels, lattice_points(BOX), rotation, shift, BOX)
        # On the plane z = 0 the network says k and -k apart; the map holds their mean.
        molecule = torch.einsum("hwi,ij->hwj", frequency_grid(BOX) * BOX, rotation[0, :2])
        compared = (molecule[..., 2].abs() > 0.5) & (molecule.norm(dim=-1) <= BOX / 2 - 1)
        assert int(compared.sum()) > 60
        difference = (found[0] - expected[0])[compared].norm() / expected[0][compared].norm()
        assert float(difference) < 0.01

    def test_a_transform_that_is_that_of_a_density_gives_the_density(self, network: CryoFormer, monkeypatch):
        phantom = blobs(sigma=1.2).scaled(0.5)
        phantom = replace(phantom, sigma=1.2)

        def coefficients(shells: torch.Tensor, _: object, folded: object) -> torch.Tensor:
            frequency = shells / BOX
            mass = phantom.heights * (2 * torch.pi * phantom.sigma**2) ** 1.5
            falloff = torch.exp(-2 * torch.pi**2 * phantom.sigma**2 * frequency.square().sum(-1))
            angle = -2 * torch.pi * frequency @ phantom.centres.T
            return torch.polar(mass.expand_as(angle), angle).sum(-1) * falloff

        monkeypatch.setattr(network, "_frequency_features", lambda shells: (shells, None))
        monkeypatch.setattr(network, "_coefficients", coefficients)
        expected = phantom.voxels(BOX)
        found = self.decoded(network, torch.zeros(1, 3))[0]
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("form", ["attention", "concatenation"])
def test_outside_a_focus_mask_maps_of_all_latents_are_equal_and_inside_they_are_as_without_one(form):
    config, plain = _with_decoder(form=form), model(_with_decoder(form=form))
    torch.manual_seed(0)
    focus = torch.zeros(BOX, BOX, BOX)
    focus[:, :, 9:], focus[:, :, 8] = 1.0, 0.25
    network = CryoFormer(config, BOX)
    network.confine(focus)
    assert network.state_dict().keys() == plain.state_dict().keys()
    network.load_state_dict(plain.state_dict())
    inside = radius_grid(BOX, 3) <= 6.0
    flat_index = torch.nonzero(inside.ravel())[:, 0]
    points, latent = lattice_points(BOX)[flat_index], torch.randn(3, 3)
    maps, free = network.volumes(latent, points, flat_index), plain.volumes(latent, points, flat_index)
    assert torch.equal(maps[0, :, :, :8], maps[1, :, :, :8])
    none = plain.volumes(torch.zeros(1, 3), points, flat_index)
    torch.testing.assert_close(maps[:, :, :, :8], none[..., :8].expand(3, -1, -1, -1))
    torch.testing.assert_close(maps[:, :, :, 9:], free[:, :, :, 9:])
    torch.testing.assert_close(maps[..., 8], 0.25 * free[..., 8] + 0.75 * none[..., 8], rtol=1e-4, atol=1e-6)
    assert float((maps[0] - maps[1])[:, :, 8:].abs().max()) > 1e-4
