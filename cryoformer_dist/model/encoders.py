"""MLP image encoders of the paper (section 3.2)."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import EncoderConfig
from cryoformer_dist.physics.pose import rotation_from_6d
from cryoformer_dist.ranks import mean_over_ranks, rank_and_world

# Of the running statistics of latents.
_MOMENTUM = 0.02


def in_float32(output: nn.Linear, activation: Tensor) -> Tensor:
    """The last layer, not in bfloat16 whatever those before it ran in: rotations are made of its numbers."""
    with torch.autocast(activation.device.type, enabled=False):
        numbers: Tensor = output(activation.float())
    return numbers


class ImageEncoder(nn.Module):
    """Image to numbers through hidden ReLU layers.

    Parameters
    ----------
    config
        Depth and width.
    box
        Side of the images.
    outputs
        Numbers per image.
    output_gain
        Standard deviation of the outputs at the start, for unit activations.
    """

    def __init__(self, config: EncoderConfig, box: int, outputs: int, output_gain: float) -> None:
        super().__init__()
        widths = [box * box, *[config.width] * config.hidden_layers]
        layers = [nn.Linear(inputs, units) for inputs, units in pairwise(widths)]
        self.hidden = nn.ModuleList(layers)
        self.output = nn.Linear(config.width, outputs)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.output.weight, std=output_gain * config.width**-0.5)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Float[Tensor, "particles box box"]) -> Float[Tensor, "particles outputs"]:
        """Numbers of each image."""
        activation = images.flatten(1)
        for layer in self.hidden:
            activation = torch.relu(layer(activation))
        return in_float32(self.output, activation)


class OrientationEncoder(nn.Module):
    """Image to rotation (6D, Zhou et al. 2019) and in-plane shift.

    Parameters
    ----------
    config
        Depth and width.
    box
        Side of the images.
    """

    # Shifts are a few percent of the box; outputs are of order one.
    _SHIFT_UNIT = 0.05

    def __init__(self, config: EncoderConfig, box: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(config, box, outputs=8, output_gain=1.0)

    def forward(
        self, images: Float[Tensor, "particles box box"]
    ) -> tuple[Float[Tensor, "particles 3 3"], Float[Tensor, "particles 2"]]:
        """Rotation, and shift as a fraction of the box."""
        numbers = self.encoder(images)
        return rotation_from_6d(numbers[:, :6]), numbers[:, 6:] * self._SHIFT_UNIT


class AlignedEncoder(nn.Module):
    """Centred, in-plane turned image and the direction it was seen from, to latent vector.

    Not the paper's: its encoder sees neither pose, and learns the noise of its training images. This one is trained on
    projected images, of which there are as many as one likes.

    Parameters
    ----------
    config
        Depth (here in residual blocks of two layers) and width.
    box
        Side of the images.
    dimensions
        Length of the latent vector.
    """

    def __init__(self, config: EncoderConfig, box: int, dimensions: int) -> None:
        super().__init__()
        width = config.width
        self.first = nn.Linear(box * box + 12, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(max(1, config.hidden_layers // 2))
        )
        self.output = nn.Linear(width, dimensions)

    def forward(
        self, images: Float[Tensor, "particles box box"], direction: Float[Tensor, "particles 3"]
    ) -> Float[Tensor, "particles dimensions"]:
        """Latent vector of each image.

        Parameters
        ----------
        images
            Centred and turned so that views from one direction look the same; unit variance.
        direction
            Unit vector of the beam in the molecule's frame.
        """
        products = (direction[:, :, None] * direction[:, None]).flatten(1)
        # A few numbers beside a thousand pixels: scaled up so that they are heard.
        activation = self.first(torch.cat([images.flatten(1), 3 * direction, 3 * products], dim=1))
        for block in self.blocks:
            activation = activation + block(activation)
        return in_float32(self.output, torch.relu(activation))


class DeformationEncoder(nn.Module):
    """Image to latent vector, normalised over the batch of all ranks so that it starts at the prior's scale.

    Parameters
    ----------
    config, box, dimensions
        As of `AlignedEncoder`.
    """

    def __init__(self, config: EncoderConfig, box: int, dimensions: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(config, box, outputs=dimensions, output_gain=1.0)
        # Latents far below unit scale never wake the decoder up; this is the cheapest way to hold the scale.
        self.normalise = nn.BatchNorm1d(dimensions, affine=False, momentum=_MOMENTUM)

    def forward(self, images: Float[Tensor, "particles box box"]) -> Float[Tensor, "particles dimensions"]:
        """Latent vector of each image."""
        numbers = self.encoder(images)
        world = rank_and_world()[1]
        if self.training and world > 1:
            return self._normalised_over_ranks(numbers, world)
        if len(numbers) > 1 or not self.training:
            return self.normalise(numbers)
        # One image has no spread of its own: it is normalised by those that came before it.
        mean, variance = self.normalise.running_mean, self.normalise.running_var
        return nn.functional.batch_norm(numbers, mean, variance, eps=self.normalise.eps)

    def _normalised_over_ranks(self, numbers: Tensor, world: int) -> Tensor:
        """As one rank would with all images; torch's own way to do so is for GPUs only. Ranks have equally many."""
        norm, count = self.normalise, world * len(numbers)
        mean = mean_over_ranks(numbers.mean(0))
        centred = numbers - mean
        variance = mean_over_ranks(centred.square().mean(0))
        with torch.no_grad():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            norm.running_mean.lerp_(mean, _MOMENTUM)
            norm.running_var.lerp_(variance * count / (count - 1), _MOMENTUM)
            norm.num_batches_tracked.add_(1)
        return centred * (variance + norm.eps).rsqrt()
