"""What a run goes through, one objective after another."""

from dataclasses import dataclass
from typing import Literal

from cryoformer_dist.config.schema import RunConfig

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
