import pytest
import torch

from cryoformer_dist.config.schema import DecoderConfig
from cryoformer_dist.model.decoder import DeformationBlock, DeformationDecoder, attention, orthogonal_linear

CONFIG = DecoderConfig(queries=6, channels=8, blocks=2, hidden_width=5, density_width=7, temperature=1.7)
PARTICLES, POINTS = 3, 40


@pytest.fixture
def decoder() -> DeformationDecoder:
    torch.manual_seed(0)
    decoder = DeformationDecoder(CONFIG).double()
    # Away from the start, where biases are zero and would hide a mistake.
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


@pytest.fixture
def hidden() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(POINTS, CONFIG.hidden_width, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def deformation() -> torch.Tensor:
    shape = (PARTICLES, CONFIG.queries, CONFIG.channels)
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def test_attention_with_one_key_copies_its_value_and_with_equal_keys_averages():
    query, value = torch.randn(4, 3), torch.randn(5, 2)
    assert torch.allclose(attention(query, torch.randn(1, 3), value[:1]), value[:1].expand(4, -1))
    assert torch.allclose(attention(query, torch.ones(5, 3), value), value.mean(0).expand(4, -1), atol=1e-6)


def test_attention_equals_torch():
    query, key, value = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(attention(query, key, value), expected, atol=1e-6)


def unfolded_density(decoder: DeformationDecoder, hidden: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """The density written as in the paper, point features and all: what `fold` must not change."""
    feature = decoder.spatial_feature(hidden)
    keys = decoder.spatial_key(queries) * decoder.temperature
    output = attention(feature, keys, decoder.spatial_value(queries)) + feature
    return decoder.density_output(torch.relu(decoder.density_hidden(output)))[..., 0] * decoder.density_scale


def test_folding_changes_nothing_but_rounding(decoder, hidden, deformation):
    with torch.no_grad():
        queries = decoder.queries(deformation)
        folded = decoder.density(hidden, decoder.fold(queries))
        written_out = unfolded_density(decoder, hidden, queries)
    assert folded.shape == (PARTICLES, POINTS)
    assert float(written_out.std()) > 0.01
    assert float((folded - written_out).abs().max()) < 1e-12


def test_folding_keeps_every_gradient(decoder, hidden, deformation):
    weight = torch.randn(PARTICLES, POINTS, dtype=torch.float64)
    leaves = {**dict(decoder.named_parameters()), "hidden": hidden, "deformation": deformation}

    def gradients(fold: bool) -> dict[str, torch.Tensor]:
        queries = decoder.queries(deformation)
        density = decoder.density(hidden, decoder.fold(queries)) if fold else unfolded_density(decoder, hidden, queries)
        found = torch.autograd.grad((density * weight).sum(), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    folded, written_out = gradients(True), gradients(False)
    largest = max(float(gradient.abs().max()) for gradient in written_out.values())
    for name, gradient in written_out.items():
        assert float((folded[name] - gradient).abs().max()) < 1e-12 * max(1, largest), name
        # The bias of a key moves all logits of a point alike, which the softmax does not see.
        if not name.endswith("key.bias"):
            assert float(gradient.abs().max()) > 1e-9, name


def test_density_at_shared_points_equals_density_at_each_particles_own_points(decoder, hidden, deformation):
    folded = decoder.fold(decoder.queries(deformation))
    own = hidden[None] + torch.linspace(0, 0.5, PARTICLES, dtype=torch.float64)[:, None, None]
    together = decoder.density(own, folded)
    assert torch.allclose(together[0], decoder.density(hidden, folded)[0], atol=1e-14)
    for particle in range(PARTICLES):
        assert torch.allclose(together[particle], decoder.density(own[particle], folded)[particle], atol=1e-14)


def test_attention_map_is_a_distribution_over_queries(decoder, hidden, deformation):
    weight = decoder.attention_map(hidden, decoder.fold(decoder.queries(deformation)))
    assert weight.shape == (PARTICLES, POINTS, CONFIG.queries)
    assert bool((weight >= 0).all())
    assert torch.allclose(weight.sum(-1), torch.ones(PARTICLES, POINTS, dtype=torch.float64), atol=1e-14)
    assert weight.std(1).max().item() > 1e-3


def test_temperature_sharpens_attention(decoder, hidden, deformation):
    queries = decoder.queries(deformation)
    blunt = decoder.attention_map(hidden, decoder.fold(queries)).square().sum(-1)
    decoder.temperature *= 4
    sharp = decoder.attention_map(hidden, decoder.fold(queries)).square().sum(-1)
    assert float((sharp > blunt).double().mean()) > 0.95


def test_density_scales_with_the_density_unit(decoder, hidden, deformation):
    folded = decoder.fold(decoder.queries(deformation))
    before = decoder.density(hidden, folded)
    decoder.density_scale *= 3
    assert torch.allclose(decoder.density(hidden, folded), 3 * before)


def test_particles_do_not_see_each_other(decoder, hidden, deformation):
    together = decoder.queries(deformation)
    for particle in range(PARTICLES):
        alone = decoder.queries(deformation[particle : particle + 1])
        assert torch.allclose(alone[0], together[particle], atol=1e-13)


def test_block_does_not_mind_the_order_of_queries():
    torch.manual_seed(3)
    block = DeformationBlock(8)
    queries, deformation = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    order = torch.randperm(6)
    permuted = block(queries[:, order], deformation[:, order])
    assert torch.allclose(permuted, block(queries, deformation)[:, order], atol=1e-5)


def test_orthogonal_layer_keeps_lengths_times_its_gain():
    torch.manual_seed(4)
    layer = orthogonal_linear(8, 8, gain=1.4)
    vectors = torch.randn(10, 8)
    assert torch.allclose(layer(vectors).norm(dim=-1), 1.4 * vectors.norm(dim=-1), rtol=1e-5)
