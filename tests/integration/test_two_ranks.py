import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rank_processes import run_on_ranks
from support.tiny_runs import Listener, Stop, final_state, prepare_from_mask, tiny_config, train, train_prepared

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import BatchSource, ParticleBatch, local_batches
from cryoformer_dist.data.order import Consumed
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import StepLeftOutWarning
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.pose import rotation_angle_deg, rotation_from_6d
from cryoformer_dist.ranks import rank_and_world
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.runs.training_log import read_training_log
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training import train_rank as worker

CHANGES = {
    "model.pose.form": "table",
    "training.global_batch_size": 16,
    "training.occupancy": "data",
    "training.occupancy_refresh_epochs": 1,
}
# Of an object that fills more: the refresh must add to it.
CUT = radius_grid(16, 3) <= 2


def _one_rank_poisoned(run: str) -> str:
    """What training says of which the second rank has images at its third step that are not numbers."""
    rank = rank_and_world()[0]

    def batches_of(store: ParticleStore) -> BatchSource:
        def batches(*order: Any) -> Iterator[ParticleBatch]:
            for number, batch in enumerate(local_batches(store)(*order)):
                if (rank, number) == (1, 2) and not Path(f"{run}-poisoned").exists():
                    batch.images[3] = torch.nan
                    Path(f"{run}-poisoned").write_text(str([int(batch.row[3])]))
                yield batch

        return batches

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", StepLeftOutWarning)
        train_prepared(WorkingFolder.on_disk(Path(run)), Listener(), batches_of)
    return " ".join(str(each.message) for each in told if each.category is StepLeftOutWarning)


def test_a_loss_of_one_rank_that_is_not_finite_is_left_out_by_both_and_the_leader_tells(
    tiny_store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    prepare_from_mask(tiny_config(tiny_store, CHANGES), run, CUT)
    ranks = run_on_ranks(2, _one_rank_poisoned, str(run))
    rows = Path(f"{run}-poisoned").read_text()
    assert ranks[0].startswith("step 2: loss or gradient not finite on 1 of 2 ranks"), ranks
    assert f"store rows {rows}," in ranks[0]
    assert not ranks[1]
    assert len(latest_checkpoint(run).position.left_out) == 1  # type: ignore[union-attr]


def _train_on_rank(run: str, stop_at: int | None) -> dict[str, Any]:
    """What one training process has learned, and the losses it was told; nothing of one that is stopped."""
    learners: list[Any] = []
    original = worker.Trainer

    def make_trainer(learner: Any, *rest: Any) -> Any:
        learners.append(learner)
        return original(learner, *rest)

    worker.Trainer = make_trainer  # type: ignore[assignment,misc]
    listener = Listener(stop_at)
    try:
        train_prepared(WorkingFolder.on_disk(Path(run)), listener)
    except Stop:
        return {}
    state = learners[0].objectives.model.state_dict()
    for name, table in learners[0].table_state().items():
        state |= {f"{name}.{key}": value for key, value in table.items()}
    state["occupancy"] = learners[0].occupancy_state()["flat_index"]
    return {"state": state, "losses": [record.loss for record in listener.records]}


def _train_on_two(config: RunConfig, run: Path, stop_at: int | None = None) -> list[dict[str, Any]]:
    prepare_from_mask(config, run, CUT)
    return _train_on(2, run, stop_at)


def _train_on(world: int, run: Path, stop_at: int | None = None) -> list[dict[str, Any]]:
    return run_on_ranks(world, _train_on_rank, str(run), stop_at)


def test_two_ranks_learn_the_same_in_the_same_mask_and_the_checkpoint_is_what_both_have(
    tiny_store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = _train_on_two(tiny_config(tiny_store, CHANGES), run)
    saved = final_state(run)
    for rank in ranks:
        assert rank["state"].keys() == saved.keys()
        for name, value in saved.items():
            assert torch.equal(rank["state"][name], value), name
    # Each saw its own half, both report the whole.
    assert ranks[0]["losses"] == ranks[1]["losses"]
    assert {record.workers for record in read_training_log(run)} == {2}
    assert read_training_log(run)[-1].step == 8
    visits = saved["latent.visits"]
    assert visits.min() >= 1
    assert int(visits.sum()) == 2 * 64
    assert len(saved["occupancy"]) > int(CUT.sum())


def test_two_ranks_hand_all_poses_over_and_learn_the_same_in_every_stage(tiny_store: Path, tmp_path: Path) -> None:
    changes = {
        "model.pose.form": "encoder_then_table",
        "model.latent.form": "table_then_encoder",
        "model.latent.start": "linear",
        "model.latent.refinement": "search",
        # 63 particles: one more than two ranks can share out evenly.
        "dataset.hold_out": 1,
        "training.global_batch_size": 16,
        "training.epochs": 1,
        "training.pose_encoding_epochs": 1,
        "training.distillation_epochs": 1,
    }
    run = tmp_path / "run"
    ranks = _train_on_two(tiny_config(tiny_store, changes), run)
    saved = final_state(run)
    for rank in ranks:
        for name, value in saved.items():
            assert torch.equal(rank["state"][name], value), name
    assert torch.isfinite(saved["latent.values"][:63]).all()
    assert not saved["latent.visits"].any()
    given = ParticleStore.open(tiny_store).particles().pose()
    angle = rotation_angle_deg(rotation_from_6d(saved["rotation.values"]), given.rotation)
    # The encoder has hardly learned: only what was not handed over is still where it was given.
    assert float(angle[:63].min()) > 0.5
    assert float(angle[63]) < 0.1


def test_a_run_of_two_ranks_goes_on_alone_with_what_was_left(tiny_store: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_store, CHANGES)
    run = tmp_path / "run"
    _train_on_two(config, run, stop_at=6)
    train(config, run)
    found = latest_checkpoint(run)
    assert found is not None
    assert found.position.consumed == Consumed(2)
    assert found.position.step == 8
    assert final_state(run)["latent.visits"].tolist() == pytest.approx([2] * 64)
    records = read_training_log(run)
    assert [(record.step, record.workers) for record in records] == [(2, 2), (4, 2), (6, 1), (8, 1)]


@pytest.mark.slow
def test_from_two_ranks_to_one_to_three_the_loss_falls_along_one_curve(tiny_store: Path, tmp_path: Path) -> None:
    # 60 particles and batches of 12: whole steps on one, two and three ranks, a report at the end of each epoch.
    changes = {
        "dataset.hold_out": 4,
        "training.global_batch_size": 12,
        "training.epochs": 30,
        "training.report_every_steps": 5,
        "training.checkpoint_every_steps": 50,
    }
    config = tiny_config(tiny_store, CHANGES | changes)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    _train_on_two(config, whole)
    _train_on_two(config, moved, stop_at=50)
    _train_on(1, moved, stop_at=100)
    _train_on(3, moved)
    losses = [np.array([record.loss for record in read_training_log(run)]) for run in (whole, moved)]
    assert [record.workers for record in read_training_log(moved)] == [2] * 10 + [1] * 10 + [3] * 10
    fall = losses[0][0] - losses[0][-1]
    assert np.abs(losses[1] - losses[0]).max() < 0.1 * fall, (losses, fall)


# All 60 particles in every step: which rank owns which then changes nothing but the order of sums.
EVERYBODY = {
    "dataset.hold_out": 4,
    "training.global_batch_size": 60,
    "training.epochs": 6,
    "training.checkpoint_every_steps": 2,
    "training.warmup_steps": 0,
    "training.imitation_steps": 4,
    "model.latent.start": "linear",
    "model.latent.refinement": "search",
}


@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.UndecidedLatentsWarning")
@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.MostlyJunkWarning")
def test_steps_of_all_particles_end_at_the_same_weights_latents_and_poses_on_any_ranks_and_across_them(
    tiny_store: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_store, CHANGES | EVERYBODY)
    runs = {name: tmp_path / name for name in ("one", "two", "three", "moved")}
    for run in runs.values():
        prepare_from_mask(config, run, CUT)
    for world, name in enumerate(("one", "two", "three"), start=1):
        _train_on(world, runs[name])
    _train_on(2, runs["moved"], stop_at=2)
    _train_on(1, runs["moved"], stop_at=4)
    _train_on(3, runs["moved"])
    assert [record.workers for record in read_training_log(runs["moved"])] == [2, 1, 3]
    alone = final_state(runs["one"])
    for name in ("two", "three", "moved"):
        for key, value in final_state(runs[name]).items():
            torch.testing.assert_close(
                value, alone[key], rtol=1e-3, atol=1e-4, msg=lambda told, key=key: f"{key}: {told}"
            )
