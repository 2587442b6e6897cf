from pathlib import Path

import pytest
import torch

from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.data.store import ParticleStore


@pytest.fixture(scope="session")
def store(tiny_store: Path) -> ParticleStore:
    return ParticleStore.open(tiny_store)


@pytest.fixture
def batch(store: ParticleStore) -> ParticleBatch:
    """The first six particles of the tiny store."""
    rows = torch.arange(6).numpy()
    return make_batch(ImageBlock(store.read_images(rows), rows, rows * 0), store.particles())
