from pathlib import Path

import pytest
import torch
from tiny_runs import write_set

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


@pytest.fixture(scope="session")
def swinging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom whose arm swings through 120 degrees, at SNR 0.1."""
    source = {"kind": "phantom", "arc_deg": 120}
    return write_set(tmp_path_factory.mktemp("arc"), particles=1000, box=32, source=source, snr=0.1)
