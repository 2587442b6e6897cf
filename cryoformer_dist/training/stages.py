"""What a run goes through, one objective after another, and where in it training is."""

from dataclasses import dataclass
from typing import Literal

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.runs.checkpoint import Position

StageKind = Literal["pose_pretraining", "pose_encoding", "reconstruction", "latent_distillation"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of training with one objective.

    Attributes
    ----------
    kind
        ``pose_pretraining``: the orientation encoder learns the given poses. ``pose_encoding``: encoder and a rigid map
        learn from the images. ``reconstruction``: everything that the configuration names learns from the images.
        ``latent_distillation``: an encoder learns, from images that the finished network renders, the latents they were
        rendered at.
    epochs
        Passes over the particles.
    """

    kind: StageKind
    epochs: int

    @property
    def compares_images(self) -> bool:
        """Whether its loss is between particles and projections, at first by low frequencies if so configured."""
        return self.kind in ("pose_encoding", "reconstruction")


def stages(config: RunConfig) -> list[Stage]:
    """The stages of a run, in order."""
    training, pose, latent = config.training, config.model.pose.form, config.model.latent.form
    found: list[Stage] = []
    if pose in ("encoder", "encoder_then_table") and training.pose_pretraining_epochs:
        found.append(Stage("pose_pretraining", training.pose_pretraining_epochs))
    if pose == "encoder_then_table":
        found.append(Stage("pose_encoding", training.pose_encoding_epochs))
    found.append(Stage("reconstruction", training.epochs))
    if latent == "table_then_encoder":
        found.append(Stage("latent_distillation", training.distillation_epochs))
    return found


@dataclass(frozen=True, slots=True)
class Moment:
    """Where training is when a step has been taken.

    Attributes
    ----------
    stage
        Under way.
    before, position
        Before and after the step.
    steps
        Of the stage in all.
    """

    stage: Stage
    before: Position
    position: Position
    steps: int

    @property
    def progress(self) -> float:
        """Share of the stage that was done before the step."""
        return self.before.stage_step / self.steps

    @property
    def epoch(self) -> float:
        """Epochs of the stage that were done before the step, with fraction."""
        return self.progress * self.stage.epochs

    @property
    def passes(self) -> int:
        """Whole passes over the particles that the stage has made."""
        return self.position.consumed.epochs

    @property
    def ends_epoch(self) -> bool:
        """Whether the step has ended a pass."""
        return self.passes > self.before.consumed.epochs

    @property
    def ends_stage(self) -> bool:
        """Whether it was the stage's last step."""
        return self.position.stage_step == self.steps
