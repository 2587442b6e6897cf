import pytest
import torch

from cryoformer_dist.config.schema import DecoderConfig
from cryoformer_dist.model.concatenation import ConcatenationDecoder

CONFIG = DecoderConfig(form="concatenation", queries=6, channels=8, blocks=2, hidden_width=5, density_width=7)
PARTICLES, POINTS = 3, 40


@pytest.fixture
def decoder() -> ConcatenationDecoder:
    torch.manual_seed(0)
    return ConcatenationDecoder(CONFIG).double()


def _hidden(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(*shape, CONFIG.hidden_width, generator=generator, dtype=torch.float64)


def _queries(decoder: ConcatenationDecoder, particles: int = PARTICLES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (particles, CONFIG.queries, CONFIG.channels)
    return decoder.queries(torch.randn(shape, generator=generator, dtype=torch.float64))


def test_the_density_is_an_mlp_of_the_feature_beside_the_mean_query(decoder):
    hidden, queries = _hidden(POINTS), _queries(decoder)
    mean = queries.mean(1) * CONFIG.queries**0.5
    joined = torch.cat([hidden.expand(PARTICLES, -1, -1), mean[:, None].expand(-1, POINTS, -1)], dim=-1)
    weight = torch.cat([decoder.spatial_feature.weight, decoder.conformation.weight], dim=1)
    bias = decoder.spatial_feature.bias + decoder.conformation.bias
    first = torch.relu(joined @ weight.T + bias)
    expected = decoder.density_output(torch.relu(decoder.density_hidden(first)))[..., 0] * CONFIG.density_scale
    found = decoder.density(hidden, decoder.fold(queries))
    assert found.shape == (PARTICLES, POINTS)
    assert torch.allclose(found, expected, atol=1e-13)
    assert found.std().item() > 1e-3


def test_density_at_shared_points_equals_density_at_each_particles_own_points(decoder):
    folded = decoder.fold(_queries(decoder))
    own = _hidden(PARTICLES, POINTS)
    together = decoder.density(own, folded)
    for particle in range(PARTICLES):
        alone = decoder.density(own[particle], folded)[particle]
        assert torch.allclose(together[particle], alone, atol=1e-14)
    assert not torch.allclose(together[0], decoder.density(own[1], folded)[0], atol=1e-3)


def test_particles_do_not_see_each_other(decoder):
    queries, hidden = _queries(decoder), _hidden(POINTS)
    together = decoder.density(hidden, decoder.fold(queries))
    for particle in range(PARTICLES):
        alone = decoder.density(hidden, decoder.fold(queries[particle : particle + 1]))
        assert torch.allclose(alone[0], together[particle], atol=1e-13)


def test_conformations_differ_in_shape_from_the_start(decoder):
    density = decoder.density(_hidden(200), decoder.fold(_queries(decoder, 24)))
    # Not only by an offset, which images of zero mean do not show.
    shape = density - density.mean(1, keepdim=True)
    assert (shape.std(0).mean() / density.std(1).mean()).item() > 0.1


def test_every_parameter_learns(decoder):
    density = decoder.density(_hidden(POINTS), decoder.fold(_queries(decoder)))
    (density * torch.randn_like(density)).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        # The bias of a key moves all logits alike, which the softmax does not see.
        if not name.endswith("key.bias"):
            assert float(parameter.grad.abs().sum()) > 0, name


def test_the_order_of_queries_is_of_no_consequence(decoder):
    queries = _queries(decoder)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert torch.allclose(decoder.fold(queries[:, order]), decoder.fold(queries), atol=1e-13)
