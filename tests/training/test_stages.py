from pathlib import Path

import pytest
from support.tiny_runs import tiny_config

from cryoformer_dist.training.stages import Stage, stages

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
