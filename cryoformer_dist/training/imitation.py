"""Where the network starts from: it imitates the consensus map and the linear model, without looking at an image.

From random weights the first epoch's gradients, of images in which noise is ten times the signal, have to find what
back-projection and linear model have found before. Imitating them needs no image. A large batch gains most, whose
steps are few (docs/architecture.md has the measurements).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.config.schema import RunConfig, TrainingConfig
from cryoformer_dist.data.order import Rows
from cryoformer_dist.physics.volume import interpolate
from cryoformer_dist.progress import Progress
from cryoformer_dist.ranks import broadcast_from_leader
from cryoformer_dist.runs.directory import load_consensus, load_first_maps, load_mask
from cryoformer_dist.training.engine import learning_rate_factor, parameter_groups
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.memory import FEWEST_STEPS
from cryoformer_dist.training.objectives import Objectives

# One step in so many is a warm-up. Without noise rates may be higher: those of a batch so many times the usual one.
_WARMUP, _BATCHES = 8, 16
_CONFORMATIONS = 16
_STEPS_OF_LARGE_BATCHES = 150


@dataclass(frozen=True, slots=True)
class LinearMaps:
    """Maps that a latent moves along straight lines.

    Attributes
    ----------
    mean
        ``(box, box, box)``: of all particles.
    changes
        ``(maps, coarse, coarse, coarse)``: the change per unit of each of the first latent dimensions, as the linear
        model fits it to images that are cropped and have noise of variance 1 again.
    """

    mean: Float[Tensor, "box box box"]
    changes: Float[Tensor, "maps coarse coarse coarse"]

    @staticmethod
    def of_run(run: Path, device: torch.device) -> "LinearMaps":
        """What a prepared run starts from."""
        return LinearMaps((load_consensus(run).voxels * load_mask(run)).to(device), load_first_maps(run).to(device))

    def density_at(
        self, points_pixels: Float[Tensor, "points 3"], latent: Float[Tensor, "particles dimensions"]
    ) -> Float[Tensor, "particles points"]:
        """Density of conformations at points in pixels of the box."""
        spacing = self.mean.shape[-1] / self.changes.shape[-1]
        # A coarse point stands for spacing^3 fine ones, and cropped images are divided by spacing (`read_cropped`).
        changes = torch.stack([interpolate(change, points_pixels / spacing) for change in self.changes]) / spacing**2
        return interpolate(self.mean, points_pixels) + latent[:, : len(changes)] @ changes


def count_imitation_steps(config: RunConfig, trained: int) -> int:
    """Steps in which a run's network imitates its linear model before it sees an image.

    Parameters
    ----------
    config
        Its batch settled; ``training.imitation_steps: auto`` is none where the run has steps enough to learn by.
    trained
        Particles of a pass.
    """
    training = config.training
    lattice = config.model.domain == "real" and training.projection == "lattice"
    if not (config.model.latent.starts_linear and lattice):
        return 0
    if training.imitation_steps != "auto":
        return training.imitation_steps
    few = training.batch_ratio * training.learning_rates.at_batch * FEWEST_STEPS > trained * training.epochs
    return _STEPS_OF_LARGE_BATCHES if training.batch_ratio > 1 and few else 0


def imitate(
    learner: Learner, maps: LinearMaps, rows: Rows, at_a_time: int, steps: int, progress: Progress | None = None
) -> None:
    """Fit a network that has seen nothing to linear maps; it ends the same on every rank.

    Parameters
    ----------
    learner
        Its first latents are those that the maps belong to.
    maps
        What to imitate.
    rows
        Of the particles whose latents are drawn.
    at_a_time
        Conformations that fit into memory together, as the particles of a step do.
    steps
        How many.
    progress
        Called with steps done and in all.
    """
    objectives, training = learner.objectives, _with_imitation_rates(learner.config.training, steps)
    optimizer = torch.optim.AdamW(parameter_groups(objectives, training), betas=(0.9, 0.99))
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        random = np.random.default_rng([learner.config.seed, step])
        copy = int(random.integers(training.jitter_lattices))
        drawn = random.choice(rows, _CONFORMATIONS)
        optimizer.zero_grad(set_to_none=True)
        latents = learner.latents[torch.from_numpy(drawn).to(learner.device)]
        for latent in torch.split(latents, at_a_time):
            (_error(objectives, maps, latent, copy) / len(drawn)).backward()  # type: ignore[no-untyped-call]
        for group, rate in zip(optimizer.param_groups, peak_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(training, step, step / steps)
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)
    with torch.no_grad():
        # On a GPU sums have no fixed order.
        for parameter in objectives.parameters():
            parameter.copy_(broadcast_from_leader(parameter))


def _error(objectives: Objectives, maps: LinearMaps, latent: Tensor, copy: int) -> Float[Tensor, ""]:
    """Squared error of conformations relative to the mean map, summed over them."""
    points, density = objectives.density(latent, copy, coarse=True)
    with torch.no_grad():
        wanted, scale = maps.density_at(points, latent), interpolate(maps.mean, points).square().mean()
    return (density - wanted).square().mean(1).sum() / scale


def _with_imitation_rates(training: TrainingConfig, steps: int) -> TrainingConfig:
    """With the rates of a larger batch, and a warm-up of a share of the steps."""
    size = _BATCHES * training.learning_rates.at_batch
    warmup = _BATCHES * steps // _WARMUP
    return training.model_copy(update={"global_batch_size": size, "warmup_steps": warmup})
