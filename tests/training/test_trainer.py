import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import (
    CPU,
    Listener,
    Stop,
    assert_same_end,
    exact_records,
    final_state,
    tiny_config,
    train,
    train_from_mask,
)

from cryoformer_dist.analysis.trained import load_trained
from cryoformer_dist.config.schema import RunConfig, TrainingConfig
from cryoformer_dist.data.batch import BatchSource, ParticleBatch, local_batches
from cryoformer_dist.data.order import Consumed
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointError, ConfigError, RunStopped, StepLeftOutWarning, TrainingError
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.runs.checkpoint import Position, checkpoints
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.runs.stop_request import StopRequest
from cryoformer_dist.runs.training_log import read_training_log
from cryoformer_dist.training import trainer as module
from cryoformer_dist.training.engine import TorchEngine
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.trainer import Trainer, particles_per_rank

REFRESHED = {"training.occupancy": "data", "training.occupancy_refresh_epochs": 1, "training.epochs": 3}
# The molecule is larger.
CUT = radius_grid(16, 3) <= 2
# Masks that cut a molecule leave much unexplained, which is told of.
pytestmark = pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.NoiseDepartureWarning")

TABLES = {"model.latent.form": "table", "model.pose.form": "table"}
ENCODERS = {"model.latent.form": "encoder", "model.pose.form": "encoder"}
ONE_AFTER_THE_OTHER = {
    "model.latent.form": "table_then_encoder",
    "model.latent.start": "linear",
    "model.pose.form": "encoder_then_table",
    "training.epochs": 1,
    "training.pose_encoding_epochs": 1,
    "training.distillation_epochs": 1,
}


@pytest.fixture(scope="module", params=[TABLES, ENCODERS], ids=["tables", "encoders"])
def whole(
    request: pytest.FixtureRequest, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path]:
    """An uninterrupted run: 11 steps of 12 in two epochs of 64, the pose encoder's 6 before them."""
    config = tiny_config(tiny_store, request.param)
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config, run)
    return config, run


def test_the_global_batch_is_shared_out_evenly_or_refused_by_name() -> None:
    assert particles_per_rank(TrainingConfig(global_batch_size=12), 3, 100) == 4
    assert particles_per_rank(TrainingConfig(global_batch_size=12), 1, 12) == 12
    # Workers of an elastic run may become any number.
    assert particles_per_rank(TrainingConfig(global_batch_size=12), 5, 100) == 2
    with pytest.raises(ConfigError, match=r"training\.global_batch_size: 12 leaves nothing for some of 13 workers"):
        particles_per_rank(TrainingConfig(global_batch_size=12), 13, 100)
    with pytest.raises(ConfigError, match=r"training\.global_batch_size: 12 exceeds the 11 particles"):
        particles_per_rank(TrainingConfig(global_batch_size=12), 1, 11)


def test_a_run_takes_the_steps_it_announces_and_reports_each_particle(whole: tuple[RunConfig, Path]) -> None:
    config, run = whole
    records = exact_records(run)
    pretraining = 6 if config.model.pose.form == "encoder" else 0
    last = pretraining + math.ceil(2 * 64 / 12)
    assert records[-1].step == records[-1].steps == last
    # Every second step, and the ends of both stages.
    expected = sorted({*range(2, last + 1, 2), *([6] if pretraining else []), last})
    assert [record.step for record in records] == expected
    kinds = [record.stage for record in records]
    assert kinds == ["pose_pretraining"] * (pretraining // 2) + ["reconstruction"] * (len(kinds) - pretraining // 2)
    assert [record.epoch for record in records if record.stage == "reconstruction"][-1] == 1
    assert all(math.isfinite(record.loss) for record in records)
    found = latest_checkpoint(run)
    assert found is not None
    assert found.position.step == last


def test_training_lowers_the_loss(tiny_store: Path, tmp_path: Path) -> None:
    changes = {"training.epochs": 12, "training.report_every_steps": 4, "training.learning_rates": {"network": 5e-3}}
    records = train(tiny_config(tiny_store, changes), tmp_path / "run").records
    assert records[-1].loss < 0.98 * records[0].loss


def test_pretraining_brings_the_encoder_nearer_to_the_given_poses(tiny_store: Path, tmp_path: Path) -> None:
    changes = ENCODERS | {"training.pose_pretraining_epochs": 20, "training.epochs": 1}
    records = train(tiny_config(tiny_store, changes), tmp_path / "run").records
    losses = [record.loss for record in records if record.stage == "pose_pretraining"]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_pretraining_leaves_a_table_of_latents_alone(tiny_store: Path, tmp_path: Path) -> None:
    changes = {"model.latent.form": "table", "model.pose.form": "encoder", "training.epochs": 1}
    train(tiny_config(tiny_store, changes), tmp_path / "run")
    visits = {one.position.step: one.read_tables()["latent"]["visits"] for one in checkpoints(tmp_path / "run")}
    # Six steps of pre-training, then six that see every particle once.
    assert visits[4].sum() == 0
    assert visits[12].tolist() == [1] * 64


@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_an_interrupted_run_ends_bit_equal_to_one_that_was_not(
    whole: tuple[RunConfig, Path], tmp_path: Path, stop_at: int
) -> None:
    config, run = whole
    with pytest.raises(Stop):
        train(config, tmp_path / "run", Listener(stop_at))
    resumed = train(config, tmp_path / "run")
    # From the last checkpoint, not from the start.
    assert resumed.records[0].step == stop_at - stop_at % 4 + 2
    assert_same_end(tmp_path / "run", run)


def test_a_run_interrupted_many_times_ends_bit_equal_too(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, run = whole
    for stop_at in (4, 6, 8):
        with pytest.raises(Stop):
            train(config, tmp_path / "run", Listener(stop_at))
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", run)


def test_a_crash_right_after_a_checkpoint_loses_no_record(
    whole: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = whole
    write = module.write_checkpoint

    def write_and_crash(*arguments: Any, **named: Any) -> Path:
        write(*arguments, **named)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_checkpoint", write_and_crash)
        with pytest.raises(Stop):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", run)


def test_a_run_of_all_stages_interrupted_in_each_ends_bit_equal_too(tiny_store: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_store, ONE_AFTER_THE_OTHER)
    train(config, tmp_path / "whole")
    # Six steps a stage, checkpoints every four: 12 lies where the encoder's poses are handed over.
    for stop_at in (4, 12, 14, 16, 22):
        with pytest.raises(Stop):
            train(config, tmp_path / "run", Listener(stop_at))
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    records = exact_records(tmp_path / "whole")
    order = [(record.stage, record.step) for record in records if not record.step % 6]
    kinds = ("pose_pretraining", "pose_encoding", "reconstruction", "latent_distillation")
    assert order == [(kind, 6 * number) for number, kind in enumerate(kinds, start=1)]


@pytest.mark.parametrize("ablation", [{"model.domain": "fourier"}, {"model.decoder.form": "concatenation"}], ids=str)
def test_an_ablation_s_interrupted_run_ends_bit_equal_too(
    tiny_store: Path, tmp_path: Path, ablation: dict[str, str]
) -> None:
    config = tiny_config(tiny_store, ablation | {"training.epochs": 1})
    train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "run", Listener(4))
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def _flat(tables: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {f"{name}.values": state["values"] for name, state in tables.items()}


def _part(name: str) -> str:
    first = name.split(".")[0]
    return first if first.endswith("_encoder") or name.endswith(".values") else "network"


def test_each_stage_moves_its_own_parts_and_none_of_the_others(tiny_store: Path, tmp_path: Path) -> None:
    # A decay that would show.
    ends = {"training.report_every_steps": 6, "training.checkpoint_every_steps": 6, "training.weight_decay": 0.5}
    config = tiny_config(tiny_store, ONE_AFTER_THE_OTHER | ends)
    train(config, tmp_path / "run")
    states = [one.read_weights() | _flat(one.read_tables()) for one in checkpoints(tmp_path / "run")]
    assert len(states) == 4
    moved = []
    for before, after in itertools.pairwise(states):
        names = {name for name, value in after.items() if not torch.equal(value, before[name])}
        moved.append({_part(name) for name in names})
    assert moved[0] == {"orientation_encoder", "network"}
    # The pose table is filled, and then learns.
    assert moved[1] == {"network", "latent", "rotation", "shift_angstrom"}
    assert moved[2] == {"latent_encoder"}


def test_a_run_that_is_stopped_keeps_its_last_step_and_goes_on_as_if_it_had_not_been(
    whole: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, undisturbed = whole
    looks = itertools.count(1)
    with monkeypatch.context() as asked:
        asked.setattr(StopRequest, "seen", lambda self: next(looks) == 5)
        with pytest.raises(RunStopped, match="stopped at step 5, with a checkpoint in"):
            train(config, tmp_path)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.position.step == read_training_log(tmp_path)[-1].step == 5
    train(config, tmp_path)
    state = final_state(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in final_state(undisturbed).items())


def test_resuming_a_finished_run_changes_nothing(whole: tuple[RunConfig, Path]) -> None:
    config, run = whole
    before, records = final_state(run), (run / "metrics.jsonl").read_bytes()
    assert train(config, run).records == []
    assert (run / "metrics.jsonl").read_bytes() == records
    for name, value in final_state(run).items():
        assert torch.equal(value, before[name])


@pytest.fixture(scope="module")
def grown(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """An uninterrupted run of 16 steps that starts from a mask far too small; refreshes at steps 6 and 11."""
    config = tiny_config(tiny_store, REFRESHED)
    run = tmp_path_factory.mktemp("grown") / "run"
    train_from_mask(config, run, CUT)
    return config, run


# Between a refresh and its checkpoint, and after that.
@pytest.mark.parametrize("stop_at", [6, 10])
def test_a_run_interrupted_around_a_refresh_of_its_occupancy_ends_bit_equal_too(
    grown: tuple[RunConfig, Path], tmp_path: Path, stop_at: int
) -> None:
    config, run = grown
    with pytest.raises(Stop):
        train_from_mask(config, tmp_path / "run", CUT, Listener(stop_at))
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", run)


def test_until_there_is_a_checkpoint_a_run_starts_again_from_its_first_mask(tiny_store: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_store, REFRESHED | {"training.checkpoint_every_steps": 14})
    train_from_mask(config, tmp_path / "whole", CUT)
    with pytest.raises(Stop):
        train_from_mask(config, tmp_path / "run", CUT, Listener(8))
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_what_a_refresh_adds_is_reported_drawn_and_decoded(grown: tuple[RunConfig, Path]) -> None:
    _, run = grown
    records = {record.step: record for record in read_training_log(run)}
    assert records[4].active_points == int(CUT.sum())
    assert records[4].residual_outside is None
    assert records[6].active_points > int(CUT.sum())
    assert 0 < records[6].residual_outside <= 1
    mask = load_trained(run).learner.mask
    assert int(mask.sum()) == records[16].active_points
    assert torch.equal(read_volume(run / "occupancy.mrc").voxels > 0.5, mask)
    assert (mask & CUT).sum() == CUT.sum()


@pytest.mark.parametrize(
    "changes",
    [{"training.occupancy_refresh_epochs": 0}, {"model.domain": "fourier"}],
    ids=str,
)
def test_a_mask_that_is_not_to_be_refreshed_stays(tiny_store: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(tiny_store, REFRESHED | changes | {"training.epochs": 2})
    records = train_from_mask(config, tmp_path / "run", CUT).records
    assert {(record.active_points, record.residual_outside) for record in records} == {(int(CUT.sum()), None)}


def test_the_seed_decides_everything(tiny_store: Path, tmp_path: Path) -> None:
    changes = TABLES | {"training.epochs": 1}
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        train(tiny_config(tiny_store, changes | {"training.seed": seed}), tmp_path / name)
    assert_same_end(tmp_path / "a", tmp_path / "b")
    assert exact_records(tmp_path / "a")[0].loss != exact_records(tmp_path / "c")[0].loss


def test_checkpoints_come_when_due_and_with_their_report(tiny_store: Path, tmp_path: Path) -> None:
    listener = train(tiny_config(tiny_store, {"training.keep_checkpoints": 2}), tmp_path / "run")
    assert [path.name for path in listener.checkpoints] == ["step-00000004", "step-00000008"]
    assert (listener.own_steps, listener.left_out_steps) == (list(range(1, 12)), 0)
    assert [one.position.step for one in checkpoints(tmp_path / "run")] == [8, 11]


def test_latents_wait_for_their_epoch_and_poses_for_theirs(tiny_store: Path, tmp_path: Path) -> None:
    changes = TABLES | {"training.freeze_latent_epochs": 1.0, "training.freeze_pose_epochs": 1.5}
    train(tiny_config(tiny_store, changes), tmp_path / "run")
    by_step = {one.position.step: one.read_tables() for one in checkpoints(tmp_path / "run")}
    moved = {
        step: {name: int((state["visits"] > 0).sum()) for name, state in tables.items()}
        for step, tables in by_step.items()
    }
    # 11 steps are two epochs: latents from step 6 on, poses from step 9 on.
    assert moved[4] == {"latent": 0, "rotation": 0, "shift_angstrom": 0}
    assert moved[8]["latent"] > 0
    assert moved[8]["rotation"] == moved[8]["shift_angstrom"] == 0
    assert moved[11]["rotation"] == moved[11]["shift_angstrom"] > 0


def test_a_prior_pulls_latents_to_zero(tiny_store: Path, tmp_path: Path) -> None:
    sizes = {}
    for prior in (0.0, 1e6):
        changes = {"model.latent.prior": prior, "training.epochs": 4}
        train(tiny_config(tiny_store, changes), tmp_path / str(prior))
        sizes[prior] = final_state(tmp_path / str(prior))["latent.values"].square().mean()
    assert sizes[1e6] < 0.5 * sizes[0.0]


def _learner(config: RunConfig, store: ParticleStore) -> Learner:
    lattice = Lattice.of(sphere(store.box_size), 2, 0)
    return Learner(config, store.particles(), store.box_size, store.pixel_size_angstrom, lattice, CPU)


def test_a_run_resumed_with_fewer_epochs_than_it_has_done_ends_as_it_is_and_one_with_more_goes_on(
    tiny_store: Path, tmp_path: Path
) -> None:
    run, longer = tmp_path / "run", TABLES | {"training.epochs": 3}
    with pytest.raises(Stop):
        # In the third epoch.
        train(tiny_config(tiny_store, longer), run, Listener(stop_at=12))
    before = latest_checkpoint(run)
    assert before is not None
    listener = train(tiny_config(tiny_store, longer | {"training.epochs": 2}), run)
    assert listener.records == []
    assert latest_checkpoint(run) == before
    train(tiny_config(tiny_store, longer | {"training.learning_rates": {"network": 1e-4}}), run)
    assert latest_checkpoint(run).position.consumed.epochs == 3  # type: ignore[union-attr]


def _poisoned(rows: set[int], store: ParticleStore) -> BatchSource:
    """Batches in which the images of some store rows are not numbers."""
    read = local_batches(store)

    def batches(*order: Any) -> Iterator[ParticleBatch]:
        for batch in read(*order):
            bad = torch.isin(batch.row, torch.tensor(sorted(rows)))
            yield replace(batch, images=torch.where(bad[:, None, None], torch.nan, batch.images))

    return batches


# At a batch of 12 and a checkpoint every 2 steps, the first batch of the second checkpoint, and later ones.
FAULTS = TABLES | {"training.report_every_steps": 2, "training.checkpoint_every_steps": 2, "training.epochs": 3}


def _all_finite(run: Path) -> bool:
    return all(
        bool(torch.isfinite(values).all())
        for checkpoint in checkpoints(run)
        for state in (checkpoint.read_weights(), *checkpoint.read_tables().values())
        for values in state.values()
    )


def test_rows_that_are_not_finite_are_named_and_left_out_and_training_goes_on(
    store: ParticleStore, tmp_path: Path
) -> None:
    config, undisturbed = tiny_config(store.path, FAULTS), tmp_path / "undisturbed"
    train(config, undisturbed)
    other_seed = tmp_path / "other"
    train(tiny_config(store.path, FAULTS | {"training.seed": 4}), other_seed)
    run, rows = tmp_path / "run", {5, 40}
    with pytest.warns(StepLeftOutWarning) as told:
        listener = train(config, run, batches_of=lambda store: _poisoned(rows, store))
    assert listener.left_out_steps == 2
    source = store.particles().source_row
    for row in rows:
        assert any(f"store rows [{row}], source rows [{source[row]}]: left out" in str(each.message) for each in told)
    newest = latest_checkpoint(run)
    assert newest is not None
    assert newest.position.left_out == (5, 40)
    assert _all_finite(run)
    # Two steps of eighteen were not taken: all others were, and reports went on.
    assert [record.step for record in exact_records(run)] == [record.step for record in exact_records(undisturbed)]
    ends = [exact_records(each)[-1].loss for each in (undisturbed, other_seed, run)]
    assert abs(ends[2] - ends[0]) <= max(abs(ends[1] - ends[0]), 0.01)


def test_a_gradient_that_is_not_finite_at_a_checkpoint_step_is_rolled_back(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = itertools.count()
    step = TorchEngine.step

    def poison(engine: TorchEngine, loss: torch.Tensor, *rest: Any) -> None:
        number = next(steps)
        parameter = next(each for each in engine._module.parameters() if each.requires_grad)
        # A finite loss, and a gradient that is not, at the step before the second checkpoint.
        spoilt = (parameter - parameter).sqrt().sum() if number == 3 else 0.0
        step(engine, loss + spoilt, *rest)

    monkeypatch.setattr(TorchEngine, "step", poison)
    with pytest.warns(StepLeftOutWarning, match=r"step 3: .*on 1 of 1 ranks.*store rows \[(\d+, ){11}\d+\]"):
        train(tiny_config(store.path, FAULTS), tmp_path / "run")
    assert _all_finite(tmp_path / "run")
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert len(newest.position.left_out) == 12


def test_training_gives_up_after_a_stated_number_and_its_checkpoints_are_whole(
    store: ParticleStore, tmp_path: Path
) -> None:
    changes = FAULTS | {"training.report_every_steps": 1, "training.checkpoint_every_steps": 1}
    run, everything = tmp_path / "run", set(range(64))
    given_up = pytest.raises(TrainingError, match=r"gives up after 10 such steps.*--resume")
    with pytest.warns(StepLeftOutWarning), given_up:
        train(tiny_config(store.path, changes), run, batches_of=lambda store: _poisoned(everything, store))
    assert _all_finite(run)


def test_no_checkpoint_is_written_of_a_table_that_is_not_finite(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(trainer: Trainer, *rest: Any) -> None:
        if trainer.position.step == 4:
            trainer.learner.tables["latent"].values[3] = torch.inf

    monkeypatch.setattr(Trainer, "_report", _before(spoil, Trainer._report))
    with pytest.raises(TrainingError, match=r"step 4: table latent, values is not finite; no checkpoint was written"):
        train(tiny_config(store.path, FAULTS), tmp_path / "run")
    assert [checkpoint.position.step for checkpoint in checkpoints(tmp_path / "run")] == [2]


def _before(first: Any, then: Any) -> Any:
    def both(*arguments: Any) -> Any:
        first(*arguments)
        return then(*arguments)

    return both


def test_a_checkpoint_of_another_table_layout_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    store = ParticleStore.open(tiny_store)
    train(tiny_config(tiny_store, TABLES), tmp_path / "run")
    config = tiny_config(tiny_store)
    learner = _learner(config, store)
    with pytest.raises(CheckpointError, match=r"tables \['latent', 'rotation', 'shift_angstrom'\].*needs \['latent'\]"):
        learner.load_table_state(latest_checkpoint(tmp_path / "run").read_tables())  # type: ignore[union-attr]


def test_a_fresh_position_is_the_beginning() -> None:
    assert Position() == Position(stage=0, stage_step=0, step=0, consumed=Consumed())
