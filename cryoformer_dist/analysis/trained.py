"""A trained run, ready to be asked: latents and poses of its particles, and maps of any latent."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.model.decoder import DeformationDecoder, FoldedQueries
from cryoformer_dist.physics.fourier import weighted_shells
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.runs.checkpoint import Checkpoint, latest_checkpoint
from cryoformer_dist.runs.directory import (
    load_mask,
    load_run,
    load_shell_weight,
    selected_rows,
    write_shell_weight,
)
from cryoformer_dist.runs.manifest import RunManifest
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.stages import stages

_BLOCK = 256
_WEIGHED_PARTICLES = 10_000


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
        Poses given in the store.
    shell_weight
        Signal's share of each Fourier shell of a map.
    """

    config: RunConfig
    manifest: RunManifest
    checkpoint: Checkpoint
    source: Path
    latents: Float[np.ndarray, "particles dimensions"]
    source_row: Int[np.ndarray, " particles"]
    rotation: Float[np.ndarray, "particles 3 3"]
    shift_angstrom: Float[np.ndarray, "particles 2"]
    stored_rotation: Float[np.ndarray, "particles 3 3"]
    stored_shift_angstrom: Float[np.ndarray, "particles 2"]
    shell_weight: Float[np.ndarray, " shells"]
    learner: Learner

    def decode(self, latents: Float[np.ndarray, "states dimensions"]) -> Float[np.ndarray, "states box box box"]:
        """Maps of latent vectors, in density units, noise filtered out.

        Differences between conformations drown in noise sooner than the mean map does: their finest shells are weighted
        down with those of all maps, by how much of the consensus is signal there.
        """
        lattice = self.learner.objectives.lattice
        vectors = torch.from_numpy(np.asarray(latents, dtype=np.float32))
        maps = self.learner.objectives.model.volumes(vectors, lattice.points_pixels, lattice.flat_index)
        for voxels in maps:
            voxels.copy_(self._filtered(voxels))
        return maps.numpy()

    def region(self) -> Float[np.ndarray, "box box box"]:
        """1 where maps may have density, 0 elsewhere."""
        region: np.ndarray = self.learner.mask.float().numpy()
        return region

    def _filtered(self, voxels: Float[Tensor, "box box box"]) -> Float[Tensor, "box box box"]:
        return weighted_shells(voxels, torch.from_numpy(self.shell_weight))

    def decode_states(self, latents: Float[np.ndarray, "states dimensions"]) -> Iterator[DecodedState]:
        """Density as of `decode` and 3D attention of latent vectors at the lattice's points, one state at a time."""
        model, lattice = self.learner.objectives.model, self.learner.objectives.lattice
        assert isinstance(model.decoder, DeformationDecoder)
        with torch.no_grad():
            hidden = model.feature_volume.in_tiles(lattice.points_pixels)
        for vector in torch.from_numpy(np.asarray(latents, dtype=np.float32)):
            # Not round the yield: the caller would go on without gradients.
            with torch.no_grad():
                folded = model.condition(vector[None])
                assert isinstance(folded, FoldedQueries)
                density, attention = model.density(hidden, folded)[0], model.decoder.attention_map(hidden, folded)[0]
            voxels = torch.zeros(model.box**3)
            voxels[lattice.flat_index] = density
            filtered = self._filtered(voxels.reshape((model.box,) * 3)).ravel()[lattice.flat_index]
            yield DecodedState(filtered.numpy(), attention.numpy())

    def held_out(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Latents of the particles kept out of training, as the encoder sees them, and their source rows.

        None when there are none, or no encoder that has been trained.
        """
        kept = self.config.dataset.hold_out
        if not kept or not _encoder_is_trained(self.config, self.checkpoint):
            return None
        store = ParticleStore.open(self.manifest.store)
        rows = np.arange(len(store) - kept, len(store))
        particles = store.particles()
        latents = _encoded_latents(self.learner, store, rows, particles.pose(rows))
        return latents, particles.source_row[rows]

    @property
    def has_attention(self) -> bool:
        """Whether points of space attend to queries; the ablations' do not."""
        return self.config.model.domain == "real" and self.config.model.decoder.form == "attention"

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
    store = ParticleStore.open(manifest.store)
    particles = store.particles()
    single = _for_decoding(config)
    learner = Learner.from_run(single, store, run, torch.device("cpu"))
    learner.objectives.model.load_state_dict(checkpoint.read_weights())
    learner.load_table_state(checkpoint.read_tables())
    learner.load_occupancy_state(checkpoint.read_occupancy())
    learner.objectives.eval()
    rows = selected_rows(config, store)
    pose = _poses(learner, store, rows)
    latents = _latents(learner, store, rows, pose, _encoder_is_trained(config, checkpoint))
    return TrainedRun(
        config=config,
        manifest=manifest,
        checkpoint=checkpoint,
        source=Path(store.attributes.source.path),
        latents=latents,
        source_row=particles.source_row[rows],
        rotation=pose.rotation.numpy(),
        shift_angstrom=pose.shift_angstrom.numpy(),
        stored_rotation=particles.rotation[rows],
        stored_shift_angstrom=particles.shift_angstrom[rows],
        shell_weight=load_shell_weight(run).numpy(),
        learner=learner,
    )


def with_weight_at_refined_poses(run: Path, trained: TrainedRun) -> TrainedRun:
    """The same run, its Fourier shells weighted by what the particles say at their refined poses; kept in the run."""
    if not trained.poses_refined:
        return trained
    store = ParticleStore.open(trained.manifest.store)
    pose = Pose(torch.from_numpy(trained.rotation), torch.from_numpy(trained.shift_angstrom))
    rows = selected_rows(trained.config, store)
    # One process makes it: a sample says as much of the weights in a bounded time.
    sample = rows[:: stride_for(len(rows), _WEIGHED_PARTICLES)]
    consensus = back_project(store.with_pose(rows, pose), sample)
    weight = consensus.shell_weight(load_mask(run), store.pixel_size_angstrom, len(sample) / len(rows))
    write_shell_weight(run, weight)
    return replace(trained, shell_weight=weight.numpy())


def _for_decoding(config: RunConfig) -> RunConfig:
    """The run's configuration as a CPU decodes it: one unshifted lattice, any backend's table read by torch."""
    grid = config.model.hash_grid.model_copy(update={"backend": "torch"})
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"hash_grid": grid}),
            "training": config.training.model_copy(update={"jitter_lattices": 1}),
        }
    )


@torch.no_grad()
def _poses(learner: Learner, store: ParticleStore, rows: np.ndarray) -> Pose:
    """Poses of rows: from the table, by encoding their images, or as stored."""
    known = learner.read_poses(torch.from_numpy(rows), store.particles().pose(rows))
    if known is not None:
        return known
    found = [learner.objectives.encode_pose(batch) for batch in _batches(store, rows)]
    return Pose(torch.cat([pose.rotation for pose in found]), torch.cat([pose.shift_angstrom for pose in found]))


@torch.no_grad()
def _encoded_latents(learner: Learner, store: ParticleStore, rows: np.ndarray, pose: Pose) -> np.ndarray:
    """Latents of rows as the encoder sees their images."""
    found = []
    for start, batch in zip(range(0, len(rows), _BLOCK), _batches(store, rows), strict=True):
        part = slice(start, start + _BLOCK)
        found.append(learner.objectives.encode_latent(batch, Pose(pose.rotation[part], pose.shift_angstrom[part])))
    return torch.cat(found).numpy()


def _encoder_is_trained(config: RunConfig, checkpoint: Checkpoint) -> bool:
    """Whether there is an encoder of latents that has been trained."""
    if config.model.latent.form == "table_then_encoder":
        return stages(config)[checkpoint.position.stage].kind == "latent_distillation"
    return config.model.latent.form == "encoder"


def _latents(learner: Learner, store: ParticleStore, rows: np.ndarray, pose: Pose, encoded: bool) -> np.ndarray:
    """Latents of rows: by encoding their images, from the table, or none."""
    known = None if encoded else learner.read_latents(torch.from_numpy(rows))
    return _encoded_latents(learner, store, rows, pose) if known is None else known.numpy()


def _batches(store: ParticleStore, rows: np.ndarray) -> Iterator[ParticleBatch]:
    particles = store.particles()
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        yield make_batch(ImageBlock(store.read_images(part), part, np.zeros_like(part)), particles)
