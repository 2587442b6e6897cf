"""One training step of ours as the loop takes it: the real learner and engine, random images."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from roofline import Peaks, encode_count, fold_attend_count, splat_count
from torch import Tensor

from cryoformer_dist.config.schema import (
    DatasetConfig,
    DecoderConfig,
    HashGridConfig,
    LatentConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from cryoformer_dist.data.batch import ImageBlock, make_batch
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.training.engine import DeepSpeedEngine, Engine, TorchEngine
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.stages import Stage

PIXEL_ANGSTROM = 3.0
# Random images have nothing to teach: weights that hardly move keep every step alike.
_RATE_FACTOR = 1e-3

Filling = Literal["sphere", "10 %", "5 %"]
EngineName = Literal["torch", "deepspeed"]
SHARES = {"10 %": 0.1, "5 %": 0.05}


@dataclass(frozen=True)
class Network:
    """A size to time."""

    name: str
    model: ModelConfig

    def on(self, device: torch.device) -> ModelConfig:
        """With the hash-grid backend for a device: on a GPU a constant matrix of a large lattice would not fit."""
        model = self.model
        grid = model.hash_grid
        kept = {name: getattr(grid, name) for name in ("levels", "base_resolution", "finest_resolution")}
        backend = "triton" if device.type == "cuda" else "torch"
        return ModelConfig(
            hash_grid=HashGridConfig(backend=backend, **kept), decoder=model.decoder, latent=model.latent
        )


SMALL = Network(
    "small",
    ModelConfig(
        hash_grid=HashGridConfig(levels=7, base_resolution=4, finest_resolution=48),
        decoder=DecoderConfig(queries=16, channels=32, density_width=32),
    ),
)
DEFAULT = Network("default", ModelConfig())
_PAPER_GRID = HashGridConfig(levels=16, base_resolution=16)
_PAPER_DECODER = {"queries": 64, "channels": 64, "density_width": 64}
PAPER = Network("paper's size", ModelConfig(hash_grid=_PAPER_GRID, decoder=DecoderConfig(**_PAPER_DECODER)))
PAPER_ENCODER = Network(
    "paper's size and encoder",
    ModelConfig(hash_grid=_PAPER_GRID, decoder=DecoderConfig(**_PAPER_DECODER), latent=LatentConfig(form="encoder")),
)
PAPER_BF16 = Network(
    "paper's size, bf16 products",
    ModelConfig(hash_grid=_PAPER_GRID, decoder=DecoderConfig(**_PAPER_DECODER, products="bf16")),
)


def mask_of(filling: Filling, box: int) -> Tensor:
    """The sphere inside the box, or the ball about its centre that fills so much of the box."""
    if filling == "sphere":
        return sphere(box)
    distance = radius_grid(box, 3)
    return distance <= distance.ravel().kthvalue(round(SHARES[filling] * box**3)).values


class TrainingStep:
    """Forward, backward, optimiser and latent table of one batch.

    Parameters
    ----------
    network
        What to train.
    box, particles
        Side of the images and how many a step has.
    filling
        Share of the box where density is evaluated; ``None`` is the ray path, which asks everywhere.
    device
        Where.
    engine
        What averages gradients and updates weights; DeepSpeed's needs a process group, of one rank too.
    """

    def __init__(
        self,
        network: Network,
        box: int,
        particles: int,
        filling: Filling | None,
        device: torch.device,
        engine: EngineName = "torch",
    ) -> None:
        training = TrainingConfig(
            engine=engine, occupancy="sphere", projection="rays" if filling is None else "lattice"
        )
        config = RunConfig(dataset=DatasetConfig(store="none"), model=network.on(device), training=training)
        # Rays do not look at the lattice: one point stands for it.
        mask = radius_grid(box, 3) == 0 if filling is None else mask_of(filling, box)
        # A run draws from several shifted copies; a step uses one.
        lattice = Lattice.of(mask, copies=1, seed=0)
        stored = random_particles(particles)
        self._learner = Learner(config, stored, box, PIXEL_ANGSTROM, lattice, device)
        module = self._learner.objectives
        if engine == "deepspeed":
            self._engine: Engine = DeepSpeedEngine(module, training, device, particles)
        else:
            self._engine = TorchEngine(module, training, device)
        images = np.random.default_rng(0).standard_normal((particles, box, box)).astype(np.float16)
        rows = np.arange(particles)
        self._batch = make_batch(ImageBlock(images, rows, np.zeros_like(rows)), stored).to(device)
        self._network, self._rays = network, filling is None
        self.points = box**3 if filling is None else len(lattice.points_pixels)
        self.particles = particles

    def __call__(self) -> None:
        """As the loop's step, without its reports."""
        learner, batch = self._learner, self._batch
        inputs = learner.inputs(Stage("reconstruction", 20), batch, epoch=10)
        errors, latent = self._engine.forward("reconstruction", batch, inputs.latent, inputs.pose, 0)
        loss, _ = learner.loss(errors, latent)
        if not bool(torch.isfinite(loss)):
            raise ArithmeticError("the loss of random images is not finite")
        self._engine.step(loss, _RATE_FACTOR)
        learner.update_tables(batch, inputs.leaves, _RATE_FACTOR)

    def roofline_seconds(self, peaks: Peaks) -> float:
        """Least time for the three kernels alone, forward and backward, one after another."""
        decoder, grid = self._network.model.decoder, self._network.model.hash_grid
        products = decoder.products if len(peaks.operations_per_second) > 1 else "ieee"
        encoded = self.points * (self.particles if self._rays else 1)
        total = 0.0
        for direction in ("fwd", "bwd"):
            attended = fold_attend_count(
                self.points, self.particles, decoder.hidden_width, decoder.queries, decoder.density_width, direction
            )
            total += peaks.seconds(encode_count(encoded, grid.levels, grid.features_per_level, direction))
            total += peaks.seconds(attended, products)
            # Rays are summed where they are.
            total += 0.0 if self._rays else peaks.seconds(splat_count(self.points, self.particles, direction))
        return total


def random_particles(count: int) -> StoredParticles:
    """Metadata of particles at random poses under an ordinary microscope."""
    generator = np.random.default_rng(0)

    def constant(value: float, kind: type = np.float32) -> np.ndarray:
        return np.full(count, value, dtype=kind)

    defocus = generator.uniform(1e4, 2.5e4, count).astype(np.float32)
    return StoredParticles(
        rotation=random_rotations(count, torch.Generator().manual_seed(0)).numpy(),
        shift_angstrom=generator.normal(0, PIXEL_ANGSTROM, (count, 2)).astype(np.float32),
        defocus_u_angstrom=defocus,
        defocus_v_angstrom=defocus,
        defocus_angle_deg=constant(0),
        phase_shift_deg=constant(0),
        optics_group=constant(0, np.int32),
        half_set=constant(0, np.int8),
        source_row=np.arange(count),
        uid=np.arange(count, dtype=np.uint64),
        voltage_kv=constant(300),
        spherical_aberration_mm=constant(2.7),
        amplitude_contrast=constant(0.1),
        pixel_size_angstrom=constant(PIXEL_ANGSTROM),
    )
