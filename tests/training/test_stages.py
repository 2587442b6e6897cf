from pathlib import Path

import pytest
from support.tiny_runs import tiny_config

from cryoformer_dist.data.order import Consumed, ConsumedRows
from cryoformer_dist.runs.checkpoint import Position
from cryoformer_dist.training.stages import Moment, Stage, stages

PRETRAINING, ENCODING = Stage("pose_pretraining", 7), Stage("pose_encoding", 5)
RECONSTRUCTION, DISTILLATION = Stage("reconstruction", 3), Stage("latent_distillation", 4)
EPOCHS = {
    "training.epochs": 3,
    "training.distillation_epochs": 4,
    "training.pose_encoding_epochs": 5,
    "training.pose_pretraining_epochs": 7,
}
OF_POSE = {
    "given": [],
    "table": [],
    "encoder": [PRETRAINING],
    "encoder_then_table": [PRETRAINING, ENCODING],
}


def _stages(**changes: object) -> list[Stage]:
    return stages(tiny_config(Path("any.zarr"), EPOCHS | changes))


@pytest.mark.parametrize("latent", ["table", "encoder", "table_then_encoder", "none"])
@pytest.mark.parametrize("pose", OF_POSE)
def test_poses_come_before_the_map_and_the_encoder_of_latents_learns_last(pose: str, latent: str) -> None:
    expected = [*OF_POSE[pose], RECONSTRUCTION, *([DISTILLATION] if latent == "table_then_encoder" else [])]
    assert _stages(**{"model.pose.form": pose, "model.latent.form": latent}) == expected


@pytest.mark.parametrize("pose", OF_POSE)
def test_without_epochs_there_is_no_pretraining_and_nothing_else_is_missing(pose: str) -> None:
    found = _stages(**{"model.pose.form": pose, "training.pose_pretraining_epochs": 0})
    assert found == [*(stage for stage in OF_POSE[pose] if stage != PRETRAINING), RECONSTRUCTION]


def _moment(step: int, per_step: int = 4, steps: int = 20, particles: int = 10) -> Moment:
    """After a step of a stage of one rank that began with step 100."""
    before, after = (
        Position(1, done, 100 + done, Consumed(taken // particles, (ConsumedRows(1, taken % particles),)))
        for done, taken in ((step - 1, per_step * (step - 1)), (step, per_step * step))
    )
    return Moment(RECONSTRUCTION, before, after, steps)


def test_an_epoch_ends_with_the_step_that_takes_its_last_particle() -> None:
    moments = [_moment(step) for step in range(1, 21)]
    # Ten particles by four: after 2.5 steps each.
    assert [moment.position.stage_step for moment in moments if moment.ends_epoch] == [3, 5, 8, 10, 13, 15, 18, 20]
    assert [moment.passes for moment in moments[:5]] == [0, 0, 1, 1, 2]
    assert [moment.position.stage_step for moment in moments if moment.ends_stage] == [20]


def test_the_epoch_of_a_moment_is_that_in_which_its_step_was_taken() -> None:
    assert _moment(1).epoch == 0
    assert _moment(11).epoch == 1.5
