import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import CPU, MEMORY, prepare_from_mask, tiny_config, train, write_set

from cryoformer_dist.data.order import Consumed
from cryoformer_dist.data.residual_noise import NoiseDeparture
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import (
    DensityMaskedAwayWarning,
    MaskNotEnlargedWarning,
    NoiseDepartureWarning,
    SlowEncodingWarning,
)
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.physics.lattice import Lattice, mask_of
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.training import objectives, occupancy_refresh
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.memory import Workload, plan_memory
from cryoformer_dist.training.occupancy_refresh import OccupancyRefresh, refresh_occupancy, refresh_sample
from cryoformer_dist.training.particles import RankParticles
from cryoformer_dist.training.reporting import Interval
from cryoformer_dist.training.stages import Moment, Position, Stage

BOX = 24


def _widened(mask: torch.Tensor, by: int) -> torch.Tensor:
    return torch.nn.functional.max_pool3d(mask[None, None].float(), 2 * by + 1, 1, by)[0, 0] > 0


def test_a_moving_lobe_that_was_masked_away_comes_back_and_empty_space_stays_empty(tmp_path: Path) -> None:
    store = write_set(tmp_path, 400, BOX, source={"kind": "phantom", "arc_deg": 100}, snr=0.1)
    states = [read_volume(path).voxels for path in sorted((tmp_path / "particles" / "truth").glob("volume_*.mrc"))]
    dense = torch.stack([voxels > 0.04 * voxels.max() for voxels in states]) & sphere(BOX)
    # Only what no state moves may hold density at first: the arm, wherever it is, is cut off.
    first = dense.all(0)
    arm, empty = dense.any(0) & ~first, sphere(BOX) & ~_widened(dense.any(0), 2)
    changes = {
        "model.hash_grid.finest_resolution": 16,
        "training.epochs": 3,
        "training.global_batch_size": 20,
        "training.occupancy": "data",
        "training.occupancy_refresh_epochs": 1,
        "training.report_every_steps": 20,
        "training.checkpoint_every_steps": 20,
    }
    config = tiny_config(store, changes)
    prepare_from_mask(config, tmp_path / "run", first)
    records = train(config, tmp_path / "run").records
    found = [one.read_occupancy() for one in checkpoints(tmp_path / "run")]
    masks = [first, *(mask_of(one["flat_index"], BOX) for one in found)]
    assert (masks[-1] & arm).sum() > 0.9 * arm.sum()
    assert (masks[-1] & empty).sum() < 0.02 * empty.sum()
    for earlier, later in itertools.pairwise(masks):
        assert not (earlier & ~later).any()
    outside = [record.residual_outside for record in records if record.residual_outside is not None]
    assert outside[0] > 0.2
    assert outside[-1] < 0.05


@pytest.mark.parametrize(("rows", "taken"), [(300, 300), (4_000, 2_000), (20_000, 5_000), (1_000_000, 10_000)])
def test_a_quarter_of_the_particles_is_looked_at_within_bounds(rows: int, taken: int) -> None:
    trained = 3 * torch.arange(rows).numpy()
    assert refresh_sample(trained).tolist() == trained[:taken].tolist()


def _learner(store: ParticleStore, changes: dict[str, Any] | None = None) -> Learner:
    lattice = Lattice.of(sphere(16) & (torch.arange(16) < 4), 1, 0)
    config = tiny_config(store.path, changes)
    return Learner(config, store.particles(), store.box_size, store.pixel_size_angstrom, lattice, CPU)


def test_a_mask_never_shrinks_and_the_user_is_told_when_much_stays_outside(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, stage = _learner(store), Stage("reconstruction", 9)
    first = learner.mask

    def refreshed(y: int | None, x: int = 0) -> bool:
        residual = 0.01 * torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
        if y is not None:
            residual[8, y, x] = 100.0
        monkeypatch.setattr(occupancy_refresh, "residual_map", lambda *_: residual)
        before = learner.active_points
        refresh_occupancy(learner, stage, 1.0, iter(()), lambda points: None)
        return learner.active_points > before

    assert refreshed(8, 7)
    grown = learner.mask
    assert not (first & ~grown).any()
    assert grown[8, 8, 7]
    # The same place again is inside now; elsewhere once more is much, twice in a row.
    assert not refreshed(8, 7)
    assert refreshed(8, 12)
    with pytest.warns(DensityMaskedAwayWarning, match=r"100% of the residual.*training\.occupancy to sphere"):
        assert refreshed(3, 8)
    assert not (grown & ~learner.mask).any()
    assert len(learner.objectives.fine.operators[0].gather) == 2 * int(learner.mask.sum())
    assert not refreshed(None)
    assert learner.residual_outside == 0


def _refresh(
    learner: Learner,
    store: ParticleStore,
    memory: WorkerMemory,
    monkeypatch: pytest.MonkeyPatch,
    departure: NoiseDeparture = NoiseDeparture(0, 1, 1.0, 0.01),
    passes: int = 0,
) -> Interval:
    """One refresh that finds much at a place outside the mask."""
    residual = torch.zeros(16, 16, 16)
    residual[8, 8, 9] = 1.0
    monkeypatch.setattr(occupancy_refresh, "residual_map", lambda *_: residual)
    monkeypatch.setattr(occupancy_refresh.ResidualNoise, "departure", lambda _: departure)
    rows = np.arange(len(store))
    particles = RankParticles(rows, store.shard_size, lambda *_: iter(()), lambda *_: iter(()), 12, 0, 1, lambda: None)
    moment = Moment(Stage("reconstruction", 9), Position(), Position(consumed=Consumed(passes)), 10)
    interval = Interval(CPU)
    OccupancyRefresh(learner, particles, memory).run(moment, interval)
    return interval


def test_residuals_that_are_not_the_noise_are_told_of_once_maps_should_explain_the_images(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, memory = _learner(store), WorkerMemory(2**50)
    strong, slight = NoiseDeparture(1, 4, 1.3, 0.02), NoiseDeparture(0, 1, 0.92, 0.01)
    unsure = NoiseDeparture(1, 4, 1.3, 0.11)
    # Early, and where it is little, it is only recorded: a warning would be an error.
    assert _refresh(learner, store, memory, monkeypatch, strong, 4).noise_departure == pytest.approx(0.3)
    assert _refresh(learner, store, memory, monkeypatch, slight, 5).noise_departure == pytest.approx(0.08)
    assert _refresh(learner, store, memory, monkeypatch, unsure, 5).noise_departure == pytest.approx(0.3)
    length = 16 * learner.objectives.pixel_size_angstrom / 4
    with pytest.warns(NoiseDepartureWarning, match=rf"1\.30 times.* {length:.3g} A .* optics group 2"):
        _refresh(learner, store, memory, monkeypatch, strong, 5)


def test_a_mask_that_outgrows_the_memory_is_planned_again_and_refused_by_name(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = _learner(store)
    first, before = learner.mask, learner.active_points

    def needed(points: int) -> int:
        work = Workload(16, points, len(store), len(store), store.shard_size)
        return plan_memory(learner.config, work, 12, MEMORY).peak

    with pytest.warns(MaskNotEnlargedWarning, match=r"the mask stays as it is: .* a worker needs about .* --box"):
        _refresh(learner, store, WorkerMemory(needed(before)), monkeypatch)
    assert torch.equal(learner.mask, first)
    assert learner.residual_outside == pytest.approx(1)
    # No warning: it would be an error.
    learner.residual_outside = None
    _refresh(learner, store, WorkerMemory(needed(int(sphere(16).sum()))), monkeypatch)
    assert learner.active_points > before


def test_a_mask_that_grows_beyond_stored_operators_is_told_of_on_a_gpu(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = WorkerMemory(2**50, on_gpu=True)
    for backend, told in (("torch", True), ("auto", False)):
        learner = _learner(store, {"model.hash_grid.backend": backend, "training.jitter_lattices": 1})
        kept = objectives.operator_bytes_per_point(learner.config.model, on_gpu=True) * learner.active_points
        monkeypatch.setattr(objectives, "_KEPT_OPERATORS_BYTES", kept)
        if told:
            with pytest.warns(SlowEncodingWarning, match=r"set model\.hash_grid\.backend: triton"):
                _refresh(learner, store, gpu, monkeypatch)
        else:
            _refresh(learner, store, gpu, monkeypatch)


def test_a_mask_that_the_user_gave_stays_and_what_it_cuts_off_is_told(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = _learner(store, {"training.occupancy": "data", "training.mask": "own.mrc"})
    first, residual = learner.mask, torch.zeros(16, 16, 16)
    residual[8, 8, 9] = 1.0
    monkeypatch.setattr(occupancy_refresh, "residual_map", lambda *_: residual)

    def refresh() -> None:
        refresh_occupancy(learner, Stage("reconstruction", 9), 1.0, iter(()), lambda points: None)

    # Once may be chance.
    refresh()
    with pytest.warns(DensityMaskedAwayWarning, match=r"100% of the residual lies outside training\.mask, which stays"):
        refresh()
    assert torch.equal(learner.mask, first)
    assert learner.residual_outside == pytest.approx(1)
