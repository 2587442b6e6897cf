"""A trained run, ready to be asked: latents and poses of its particles, and maps of any latent."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import ImageBlock, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.physics.pose import rotation_from_6d
from cryoformer_dist.training.checkpoint import Checkpoint, latest_checkpoint
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.run_directory import load_lattice, load_run, selected_rows

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class DecodedState:
    """One conformation at the points of the lattice.

    Attributes
    ----------
    density
        ``(points,)``.
    attention
        ``(points, queries)``: weight of every query at every point.
    """

    density: Float[np.ndarray, " points"]
    attention: Float[np.ndarray, "points queries"]


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What a run has learned.

    Attributes
    ----------
    latents
        ``(particles, dimensions)`` of the trained particles, in store order.
    source_row
        ``(particles,)``: row of each in the source file.
    rotation, shift_angstrom
        Poses as trained.
    stored_rotation, stored_shift_angstrom
        Poses that training started from.
    """

    config: RunConfig
    manifest: dict[str, Any]
    checkpoint: Checkpoint
    source: Path
    latents: Float[np.ndarray, "particles dimensions"]
    source_row: Int[np.ndarray, " particles"]
    rotation: Float[np.ndarray, "particles 3 3"]
    shift_angstrom: Float[np.ndarray, "particles 2"]
    stored_rotation: Float[np.ndarray, "particles 3 3"]
    stored_shift_angstrom: Float[np.ndarray, "particles 2"]
    learner: Learner

    def decode(self, latents: Float[np.ndarray, "states dimensions"]) -> Float[np.ndarray, "states box box box"]:
        """Maps of latent vectors, in density units."""
        lattice = self.learner.objectives.lattice
        vectors = torch.from_numpy(np.asarray(latents, dtype=np.float32))
        model = self.learner.objectives.model
        return model.volumes(vectors, lattice.points_pixels, lattice.flat_index).numpy()

    def decode_states(self, latents: Float[np.ndarray, "states dimensions"]) -> Iterator[DecodedState]:
        """Density and 3D attention of latent vectors at the lattice's points, one state at a time."""
        model = self.learner.objectives.model
        with torch.no_grad():
            hidden = model.feature_volume(self.learner.objectives.lattice.points_pixels)
        for vector in torch.from_numpy(np.asarray(latents, dtype=np.float32)):
            # Not round the yield: the caller would go on without gradients.
            with torch.no_grad():
                folded = model.condition(vector[None])
                density, attention = model.density(hidden, folded)[0], model.decoder.attention_map(hidden, folded)[0]
            yield DecodedState(density.numpy(), attention.numpy())

    @property
    def poses_refined(self) -> bool:
        """Whether training changed the poses."""
        return self.config.model.pose.form != "given"


def load_trained(run: Path) -> TrainedRun:
    """Read a run's newest checkpoint.

    Raises
    ------
    CheckpointError
        If the run has none yet.
    """
    config, manifest = load_run(run)
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise CheckpointError(f"{run}: no checkpoint yet; train it first, or `--resume` it")
    store = ParticleStore.open(manifest["store"])
    particles = store.particles()
    # One unshifted lattice is enough to decode.
    single = config.model_copy(update={"training": config.training.model_copy(update={"jitter_lattices": 1})})
    learner = Learner(
        single,
        particles,
        store.box_size,
        store.pixel_size_angstrom,
        load_lattice(single, run),
        torch.device("cpu"),
    )
    learner.objectives.model.load_state_dict(checkpoint.weights())
    learner.load_table_state(checkpoint.tables())
    learner.objectives.eval()
    rows = selected_rows(config, store)
    latents, rotation, shift = _estimates(learner, store, rows)
    return TrainedRun(
        config=config,
        manifest=manifest,
        checkpoint=checkpoint,
        source=Path(store.attributes["source"]["path"]),
        latents=latents,
        source_row=particles.source_row[rows],
        rotation=rotation,
        shift_angstrom=shift,
        stored_rotation=particles.rotation[rows],
        stored_shift_angstrom=particles.shift_angstrom[rows],
        learner=learner,
    )


@torch.no_grad()
def _estimates(learner: Learner, store: ParticleStore, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, rotations and shifts of rows, from tables or by encoding their images."""
    model, particles = learner.config.model, store.particles()
    latent = np.zeros((len(rows), model.latent.dimensions), dtype=np.float32)
    rotation, shift = particles.rotation[rows].copy(), particles.shift_angstrom[rows].copy()
    if model.latent.form == "table":
        latent = learner.tables["latent"].values[rows].numpy()
    if model.pose.form == "table":
        rotation = rotation_from_6d(learner.tables["rotation"].values[rows]).numpy()
        shift = learner.tables["shift_angstrom"].values[rows].numpy()
    if "encoder" not in (model.latent.form, model.pose.form):
        return latent, rotation, shift
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        batch = make_batch(ImageBlock(store.read_images(part), part, np.zeros_like(part)), particles)
        here = slice(start, start + len(part))
        if model.latent.form == "encoder":
            latent[here] = learner.objectives.encode_latent(batch).numpy()
        if model.pose.form == "encoder":
            pose = learner.objectives.encode_pose(batch)
            rotation[here], shift[here] = pose.rotation.numpy(), pose.shift_angstrom.numpy()
    return latent, rotation, shift
