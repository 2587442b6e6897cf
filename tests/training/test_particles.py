from collections.abc import Iterator

import numpy as np
import pytest

from cryoformer_dist.data.batch import ParticleBatch, local_batches
from cryoformer_dist.data.order import Consumed, ParticleOrder
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.training.particles import RankParticles


def _particles(store: ParticleStore, rank: int, world: int, alive: list[int], source: str = "") -> RankParticles:
    """Of each source its name is kept in ``alive`` when it is asked."""

    def named(name: str) -> object:
        def batches(order: ParticleOrder, rank: int, world: int, size: int) -> Iterator[ParticleBatch]:
            assert name == source or not source
            yield from local_batches(store)(order, rank, world, size)

        return batches

    return RankParticles(
        rows=np.arange(61),
        shard_rows=store.shard_size,
        batches=named("batches"),  # type: ignore[arg-type]
        samples=named("samples"),  # type: ignore[arg-type]
        batch_size=7,
        rank=rank,
        world=world,
        alive=lambda: alive.append(rank),
    )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_together_read_every_particle_and_as_many_each(store: ParticleStore, world: int) -> None:
    seen, signs = [], []
    for rank in range(world):
        alive: list[int] = []
        batches = list(_particles(store, rank, world, alive).read_once((0, 1)))
        seen.append([row for batch in batches for row in batch.row.tolist()])
        signs.append((len(alive), len(batches)))
    assert len({len(rows) for rows in seen}) == 1
    assert all(given == made for given, made in signs)
    for rank, rows in enumerate(seen):
        share = _particles(store, rank, world, []).share.tolist()
        assert sorted(rows[: len(share)]) == share
        # The first again makes them as many as another rank's.
        assert rows[len(share) :] == rows[: len(rows) - len(share)]
    assert sorted(row for rank in range(world) for row in _particles(store, rank, world, []).share) == list(range(61))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_pass_amid_training_reads_no_particle_twice(store: ParticleStore, world: int) -> None:
    seen, alive = [], []
    for rank in range(world):
        particles = _particles(store, rank, world, alive, "samples")
        mine = [row for batch in particles.read_own_amid_training((0, 1)) for row in batch.row.tolist()]
        assert sorted(mine) == particles.share.tolist()
        seen += mine
    assert sorted(seen) == list(range(61))
    assert len(alive) == sum(-(-len(_particles(store, rank, world, []).share) // 7) for rank in range(world))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_together_read_a_sample_each_its_own_once(store: ParticleStore, world: int) -> None:
    sample = np.arange(40)
    everyone = [_particles(store, rank, world, []) for rank in range(world)]
    read = [
        [row for batch in particles.read_sample_amid_training(sample, (0, 1)) for row in batch.row.tolist()]
        for particles in everyone
    ]
    assert sorted(row for rows in read for row in rows) == sample.tolist()
    for particles, rows in zip(everyone, read, strict=True):
        assert set(rows) <= set(particles.share)


def test_amid_training_the_other_source_is_asked(store: ParticleStore) -> None:
    order = _particles(store, 0, 1, []).order((0, 1), 1, Consumed())
    assert list(_particles(store, 0, 1, [], "batches").read(order))
    assert list(_particles(store, 0, 1, [], "batches").read_once((0, 1)))
    assert list(_particles(store, 0, 1, [], "samples").read_own_amid_training((0, 1)))
    sample = _particles(store, 0, 1, [], "samples").read_sample_amid_training(np.arange(5), (0, 1))
    assert sorted(row for batch in sample for row in batch.row.tolist()) == [0, 1, 2, 3, 4]
