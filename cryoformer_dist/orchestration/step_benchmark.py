"""Training steps on random particles: how fast a machine is, and how much memory it needs, before there are data."""

import time
from dataclasses import MISSING, dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.training.engine import Engine, TorchEngine
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.stages import stages

_PIXEL_SIZE_ANGSTROM = 3.0


@dataclass(frozen=True, slots=True)
class StepBenchmark:
    """A network, an engine and one batch of random particles.

    Attributes
    ----------
    learner, engine, batch
        As in a run; all particles of the batch are all there are.
    """

    learner: Learner
    engine: Engine
    batch: ParticleBatch

    @staticmethod
    def of(config: RunConfig, mask: Bool[Tensor, "box box box"], batch: int, device: torch.device) -> "StepBenchmark":
        """Set up what a run of ``config`` has on one worker, ``batch`` particles to it."""
        box = mask.shape[-1]
        particles = random_particles(batch)
        lattice = Lattice.of(mask, config.training.jitter_lattices, config.seed)
        learner = Learner(config, particles, box, _PIXEL_SIZE_ANGSTROM, lattice, device)
        rows = np.arange(batch)
        images = np.random.default_rng(0).standard_normal((batch, box, box), dtype=np.float32).astype(np.float16)
        made = make_batch(ImageBlock(images, rows, np.zeros_like(rows)), particles).to(device)
        return StepBenchmark(learner, TorchEngine(learner.objectives, config.training, device), made)

    def step(self, number: int) -> None:
        """One step of the reconstruction stage, with everything taking part that will in the end."""
        learner, batch = self.learner, self.batch
        training = learner.config.training
        stage = next(stage for stage in stages(learner.config) if stage.kind == "reconstruction")
        inputs = learner.inputs(stage, batch, epoch=stage.epochs)
        copy = number % training.jitter_lattices
        errors, latent = self.engine.forward(stage.kind, batch, inputs.latent, inputs.pose, copy, 0, False)
        loss, _ = learner.loss(errors, latent)
        self.engine.step(loss, 1.0)
        learner.update_tables(batch, inputs.leaves, 1.0)

    def images_per_second(self, seconds: float) -> float:
        """Throughput over about so many seconds, after one step that does not count."""
        self.step(0)
        self._wait()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            steps += 1
            self.step(steps)
            # Otherwise a GPU would only be handed work for so many seconds.
            self._wait()
        return steps * len(self.batch) / (time.perf_counter() - start)

    def _wait(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)


def ball(box: int, occupancy: float) -> Bool[Tensor, "box box box"]:
    """A centred ball that fills a fraction of the box, at most the inscribed one."""
    radius = box * (occupancy * 3 / (4 * np.pi)) ** (1 / 3)
    inside: Tensor = radius_grid(box, 3) <= min(radius, box / 2 - 1)
    return inside


def random_particles(count: int) -> StoredParticles:
    """Particles of a 300 kV microscope with random poses and defoci."""
    numbers = np.random.default_rng(0)
    values = {
        "rotation": random_rotations(count, torch.Generator().manual_seed(0)).numpy(),
        "shift_angstrom": numbers.normal(size=(count, 2)).astype(np.float32),
        "defocus_u_angstrom": numbers.uniform(1e4, 2e4, count).astype(np.float32),
        "voltage_kv": np.full(count, 300, np.float32),
        "spherical_aberration_mm": np.full(count, 2.7, np.float32),
        "amplitude_contrast": np.full(count, 0.1, np.float32),
        "pixel_size_angstrom": np.full(count, _PIXEL_SIZE_ANGSTROM, np.float32),
        "optics_group": np.zeros(count, np.int32),
        "half_set": np.zeros(count, np.int8),
        "source_row": np.arange(count),
        "uid": np.arange(count, dtype=np.uint64),
    }
    values["defocus_v_angstrom"] = values["defocus_u_angstrom"]
    zeros = np.zeros(count, np.float32)
    names = [field.name for field in fields(StoredParticles) if field.default is MISSING]
    return StoredParticles(**{name: values.get(name, zeros) for name in names})  # type: ignore[arg-type]
