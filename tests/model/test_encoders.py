import pytest
import torch
from support.rank_processes import run_on_ranks

from cryoformer_dist.config.schema import EncoderConfig
from cryoformer_dist.model.encoders import AlignedEncoder, DeformationEncoder, ImageEncoder, OrientationEncoder
from cryoformer_dist.ranks import rank_and_world, sum_over_ranks

CONFIG = EncoderConfig(hidden_layers=3, width=32)
BOX = 16


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def test_encoder_has_the_layers_it_was_asked_for():
    encoder = ImageEncoder(CONFIG, BOX, outputs=5, output_gain=1.0)
    shapes = [tuple(parameter.shape) for name, parameter in encoder.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, BOX * BOX), (32, 32), (32, 32), (5, 32)]
    assert encoder(torch.randn(7, BOX, BOX)).shape == (7, 5)


@pytest.mark.parametrize("gain", [0.1, 1.0])
def test_paper_sized_encoder_starts_at_the_asked_scale_and_tells_images_apart(gain):
    numbers = ImageEncoder(EncoderConfig(), 32, outputs=200, output_gain=gain)(torch.randn(64, 32, 32))
    # Ten random ReLU layers leave the mean square where it was, within their own luck.
    assert gain / 3 < numbers.square().mean().sqrt().item() < gain * 3
    assert numbers.std(0).mean().item() > 0.1 * gain


def test_orientations_are_rotations_and_shifts_are_small():
    rotation, shift = OrientationEncoder(CONFIG, BOX)(torch.randn(20, BOX, BOX))
    assert (rotation.shape, shift.shape) == ((20, 3, 3), (20, 2))
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(20, -1, -1), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(20), atol=1e-5)
    # A fraction of the box.
    assert 0 < shift.abs().max().item() < 0.3


def test_orientation_learns_through_the_gram_schmidt():
    encoder = OrientationEncoder(CONFIG, BOX)
    rotation, shift = encoder(torch.randn(20, BOX, BOX))
    ((rotation * torch.randn(20, 3, 3)).sum() + shift.sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_latents_of_a_batch_have_the_scale_of_the_prior():
    encoder = DeformationEncoder(CONFIG, BOX, dimensions=4)
    latent = encoder(3 * torch.randn(200, BOX, BOX) + 1)
    assert latent.shape == (200, 4)
    assert torch.allclose(latent.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(latent.std(0), torch.ones(4), atol=0.01)


def test_a_batch_of_one_is_normalised_by_those_before_it():
    encoder = DeformationEncoder(CONFIG, BOX, dimensions=4)
    images = torch.randn(30, BOX, BOX)
    encoder(images)
    alone = encoder(images[:1])
    statistics = encoder.normalise.running_mean.clone()
    assert torch.allclose(alone, encoder.eval()(images)[:1], atol=1e-5)
    assert torch.equal(encoder.normalise.running_mean, statistics)


def test_trained_encoder_gives_an_image_the_same_latent_in_any_company():
    encoder = DeformationEncoder(CONFIG, BOX, dimensions=4)
    images = torch.randn(30, BOX, BOX)
    encoder(images)
    encoder.eval()
    assert torch.allclose(encoder(images[:1]), encoder(images)[:1], atol=1e-5)


def directions(particles: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(particles, 3), dim=1)


def test_aligned_encoder_starts_near_the_scale_of_the_prior_and_tells_images_and_directions_apart():
    encoder = AlignedEncoder(EncoderConfig(), 32, dimensions=4)
    images, direction = torch.randn(64, 32, 32), directions(64)
    latent = encoder(images, direction)
    assert latent.shape == (64, 4)
    assert 0.05 < latent.std(0).mean().item() < 5
    of_images = encoder(images, direction[:1].expand(64, -1)).std(0).mean()
    of_directions = encoder(images[:1].expand(64, -1, -1), direction).std(0).mean()
    # A thousand pixels do not drown the twelve numbers of the direction.
    assert of_images.item() > 0.02
    assert of_directions.item() > 0.1 * of_images.item()


def test_aligned_encoder_tells_a_direction_from_its_opposite():
    encoder = AlignedEncoder(CONFIG, BOX, dimensions=4)
    images, direction = torch.randn(20, BOX, BOX), directions(20)
    # The two see each other's mirror image: products of the direction alone would not do.
    assert (encoder(images, direction) - encoder(images, -direction)).abs().mean().item() > 1e-3


def test_aligned_encoder_gives_an_image_the_same_latent_in_any_company():
    encoder = AlignedEncoder(CONFIG, BOX, dimensions=4)
    images, direction = torch.randn(30, BOX, BOX), directions(30)
    assert torch.allclose(encoder(images[:1], direction[:1]), encoder(images, direction)[:1], atol=1e-5)


@pytest.mark.parametrize(("layers", "blocks"), [(1, 1), (2, 1), (5, 2), (10, 5)])
def test_aligned_encoder_has_a_residual_block_for_every_two_layers_and_all_of_it_learns(layers, blocks):
    encoder = AlignedEncoder(EncoderConfig(hidden_layers=layers, width=8), BOX, dimensions=4)
    assert len(encoder.blocks) == blocks
    encoder(torch.randn(20, BOX, BOX), directions(20)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def _encode_a_half():
    rank = rank_and_world()[0]
    encoder, images, wanted = _encoder_images_and_latents()
    half = slice(3 * rank, 3 * rank + 3)
    latent = encoder(images[half])
    (latent - wanted[half]).square().mean().backward()
    gradients = [sum_over_ranks(parameter.grad) / 2 for parameter in encoder.parameters()]
    return latent.detach(), gradients, encoder.state_dict()


def _encoder_images_and_latents():
    torch.manual_seed(0)
    return DeformationEncoder(CONFIG, BOX, dimensions=4), torch.randn(6, BOX, BOX), torch.randn(6, 4)


def test_two_ranks_normalise_latents_together_as_one_does_all():
    encoder, images, wanted = _encoder_images_and_latents()
    latent = encoder(images)
    (latent - wanted).square().mean().backward()
    for rank, (its, gradients, state) in enumerate(run_on_ranks(2, _encode_a_half)):
        torch.testing.assert_close(its, latent[3 * rank : 3 * rank + 3].detach(), rtol=1e-4, atol=1e-5)
        for gradient, parameter in zip(gradients, encoder.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
        for name, value in encoder.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)
