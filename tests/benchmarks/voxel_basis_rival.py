"""A decoder of voxel bases: density(x; z) = B_0(x) + sum_k w_k(z) B_k(x), with an image encoder, in the spirit of SFBP.

After Kimanius, Jamali, Scheres 2022, "Sparse Fourier Backpropagation in Cryo-EM Reconstruction" (NeurIPS 35). As there:
a VAE whose encoder is a residual MLP on the phase-flipped image, a linear map from latent to basis weights (their
default depth), 16 latent dimensions and 16 bases (their defaults), everything trained by Adam. Unlike there: bases are
voxels in real space inside our mask, projected by our splat (theirs are Fourier voxels without a mask, cut by trilinear
slices with a sparse gradient, which is what makes theirs fast); the encoder is narrower (theirs is 1024 wide); B_0
starts from the back-projection; no embedding of image indices, no B-factor branch.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cpu_clock import CpuClock
from linear_rival import decode_linear
from particle_set import Contender, ParticleSet, Snapshot
from torch import Tensor, nn

from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.physics.fourier import (
    comparable_frequencies,
    fourier_to_image,
    mean_squared_error_half_plane,
    shifted,
)
from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.projection import project_points

LATENT_DIMENSIONS = 16
DEPTH = 3
BATCH = 32
NETWORK_RATE = 1e-3
# Adam moves a voxel by about this share of the consensus map's root-mean-square density per step.
BASIS_RATE = 0.003
# As cryoDRGN's default, 1 / 8.
PRIOR = 0.125


class VoxelBasis(nn.Module):
    """Encoder, weights and bases."""

    def __init__(self, consensus: Tensor, box: int, bases: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(box**2, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(DEPTH))
        self.last = nn.Linear(width, 2 * LATENT_DIMENSIONS)
        self.weights = nn.Linear(LATENT_DIMENSIONS, bases)
        # In units of the density, so that one rate fits every data set.
        self.scale = float(consensus.square().mean().sqrt())
        self.maps = nn.Parameter(torch.cat([consensus[None] / self.scale, 1e-2 * torch.randn(bases, len(consensus))]))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(images.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(nn.functional.gelu(hidden))
        mean, log_variance = self.last(nn.functional.gelu(hidden)).chunk(2, dim=1)
        return mean, log_variance.clamp(-8, 2)

    def density(self, latent: Tensor) -> Tensor:
        mixing = nn.functional.pad(self.weights(latent), (1, 0), value=1.0)
        return mixing @ self.maps * self.scale


def voxel_basis(data: ParticleSet, bases: int, width: int) -> Contender:
    """VAE with so many voxel bases and an encoder of ``width``."""
    folder = data.folder / f"voxel-basis-{bases}-{width}"
    return Contender(
        name=f"voxel basis, {bases} bases, {width} wide",
        train=partial(_train, data, folder, bases, width),
        epochs=CpuClock(folder).read,
        snapshot=partial(_snapshot, data, folder),
    )


def _train(data: ParticleSet, folder: Path, bases: int, width: int, epochs: int) -> None:
    clock = CpuClock(folder)
    done = max(clock.read(), default=0)
    if done >= epochs:
        return
    spent = clock.spent() or data.preparation_cpu_seconds
    start = time.process_time()
    torch.manual_seed(0)
    box, inside = data.store.box_size, data.mask.ravel()
    points = lattice_points(box)[inside]
    images = CroppedImages.of(data.store, np.arange(len(data.store)), box)
    model = VoxelBasis(data.consensus.voxels.ravel()[inside], box, bases, width)
    rest = [parameter for name, parameter in model.named_parameters() if name != "maps"]
    groups = [{"params": rest, "lr": NETWORK_RATE}, {"params": [model.maps], "lr": BASIS_RATE}]
    optimiser = torch.optim.Adam(groups)
    if done:
        state = torch.load(folder / "latest.pt")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(done + 1, epochs + 1):
        # A resumed training sees the same order and the same noise.
        torch.manual_seed(epoch)
        loss = _epoch(model, optimiser, images, points, box)
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, folder / "latest.pt")
        torch.save(_state(model, images, box) | {"loss": loss}, folder / f"epoch_{epoch:03d}.pt")
        clock.append(epoch, spent + time.process_time() - start)


def _epoch(
    model: VoxelBasis, optimiser: torch.optim.Optimizer, images: CroppedImages, points: Tensor, box: int
) -> float:
    """One pass; the mean of the data term, 1 for a perfect model of the signal."""
    weight, losses = comparable_frequencies(box), []
    for chosen in torch.randperm(len(images.rotation)).split(BATCH):
        batch = images[chosen]
        mean, log_variance = model.encode(centred_and_flipped(batch, box))
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        projection = project_points(model.density(latent), points, batch.rotation, batch.shift_pixels, box)
        error = mean_squared_error_half_plane(projection * batch.transfer - batch.coefficients, weight).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        # Minus twice the log likelihood per pixel, hence the 2.
        loss = error + 2 * PRIOR * divergence / box**2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(error.item())
    return float(np.mean(losses))


def centred_and_flipped(images: CroppedImages, box: int) -> Tensor:
    """What the encoder sees: images shifted back to the centre, times the sign of their CTF."""
    return fourier_to_image(shifted(images.coefficients * images.transfer.sign(), -images.shift_pixels), box)


@torch.no_grad()
def _state(model: VoxelBasis, images: CroppedImages, box: int) -> dict[str, Tensor]:
    """Weights of all particles and bases: all that is needed to judge an epoch."""
    weights = [model.weights(model.encode(centred_and_flipped(block, box))[0]) for _, block in images.blocks(BATCH)]
    return {"weights": torch.cat(weights), "maps": model.maps.detach() * model.scale}


def _snapshot(data: ParticleSet, folder: Path, epoch: int) -> Snapshot:
    state = torch.load(folder / f"epoch_{epoch:03d}.pt")
    inside = torch.nonzero(data.mask.ravel())[:, 0]
    # The map from latent to weights is linear, so weights serve as latents.
    return Snapshot(state["weights"].numpy(), partial(decode_linear, state["maps"], inside, data.store.box_size))
