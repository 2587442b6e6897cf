"""Images in memory that are read like a particle store."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.physics.ctf import CTF_NUMBERS, CTFParams
from cryoformer_dist.physics.pose import Pose


@dataclass
class _Images:
    """What is read of a store, without one."""

    images: np.ndarray
    stored: StoredParticles
    pixel_size_angstrom: float

    @property
    def box_size(self) -> int:
        return int(self.images.shape[-1])

    def read_images(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]

    def particles(self) -> StoredParticles:
        return self.stored


def stored_images(images: torch.Tensor, pose: Pose, ctf: CTFParams, pixel_size_angstrom: torch.Tensor) -> ParticleStore:
    """Stands for a store of these images; the map's pixel size is that of the first."""
    count = len(images)
    particles = StoredParticles(
        rotation=pose.rotation.numpy(),
        shift_angstrom=pose.shift_angstrom.numpy(),
        optics_group=np.zeros(count, np.int32),
        half_set=np.zeros(count, np.int8),
        source_row=np.arange(count),
        uid=np.zeros(count, np.uint64),
        pixel_size_angstrom=pixel_size_angstrom.numpy(),
        noise_filter=ctf.noise_filter,
        **{name: getattr(ctf, name).numpy() for name in CTF_NUMBERS},
    )
    return cast(ParticleStore, _Images(images.numpy(), particles, float(pixel_size_angstrom[0])))
