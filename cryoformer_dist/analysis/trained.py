"""A trained run, ready to be asked: latents and poses of its particles, and maps of any latent."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import ImageBlock, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.model.decoder import DeformationDecoder, FoldedQueries
from cryoformer_dist.physics.fourier import weighted_shells
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.progress import Progress, StagedProgress, silent
from cryoformer_dist.ranks import gather_shares, rank_and_world, take_from_leader, take_share
from cryoformer_dist.runs.checkpoint import Checkpoint
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.runs.directory import load_run, load_shell_weight, open_run_store, selected_rows
from cryoformer_dist.runs.layout import ENCODED_PARTICLES, REFINED_SHELL_WEIGHT
from cryoformer_dist.runs.manifest import RunManifest, read_manifest
from cryoformer_dist.runs.results import find_of_checkpoint, read_of_checkpoint, write_of_checkpoint
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.stages import stages

_BLOCK = 256
# What single precision makes of a pose that is kept as two axes.
_EXACT = 1e-4
CPU = torch.device("cpu")
FOUND = ("latent_deviation", "amplitude", "weight", "alone")
"""Tables of a search beside latents and poses."""
_ENCODED = ("latents", "rotation", "shift_angstrom")


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
    """What a run has learned, the same on every rank.

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
    learner
        The network, on the device where maps are decoded.
    latent_deviation
        ``(particles, dimensions)``: width of the posterior of each latent; ``None`` where latents were not searched.
    amplitude, weight, alone
        ``(particles,)``: how strong each particle is, 1 on average; how probable it is that its image shows a particle,
        with or without something beside it; and without. ``None`` where they were not looked for.
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
    latent_deviation: Float[np.ndarray, "particles dimensions"] | None = None
    amplitude: Float[np.ndarray, " particles"] | None = None
    weight: Float[np.ndarray, " particles"] | None = None
    alone: Float[np.ndarray, " particles"] | None = None

    @property
    def found(self) -> dict[str, Float[np.ndarray, "particles *numbers"]]:
        """What a search found of each particle beside latent and pose, by its name in latent.npz."""
        named = {name: getattr(self, name) for name in FOUND}
        return {name: values for name, values in named.items() if values is not None}

    @property
    def table(self) -> dict[str, Float[np.ndarray, "particles *numbers"]]:
        """What is known of each particle, by its name in latent.npz; poses where training changed them."""
        poses = {"rotation": self.rotation, "shift_angstrom": self.shift_angstrom} if self.poses_refined else {}
        return {"latent": self.latents, "source_row": self.source_row, **self.found, **poses}

    @property
    def trusted(self) -> Bool[np.ndarray, " particles"]:
        """Particles whose images probably show one."""
        everyone: np.ndarray = np.ones(len(self.latents), dtype=bool)
        return everyone if self.weight is None else self.weight > 0.5

    def decode(self, latents: Float[np.ndarray, "states dimensions"]) -> Float[np.ndarray, "states box box box"]:
        """Maps of latent vectors, in density units, noise filtered out.

        Differences between conformations drown in noise sooner than the mean map does: their finest shells are weighted
        down with those of all maps, by how much of the consensus is signal there.
        """
        return np.stack(list(self.decode_each(latents)))

    def decode_each(
        self, latents: Float[np.ndarray, "states dimensions"]
    ) -> Iterator[Float[np.ndarray, "box box box"]]:
        """As `decode`, one map at a time."""
        lattice = self.learner.objectives.lattice
        maps = self.learner.objectives.model.each_volume(
            self._vectors(latents), lattice.points_pixels, lattice.flat_index
        )
        for voxels in maps:
            yield self._filtered(voxels).cpu().numpy()

    def _vectors(self, latents: Float[np.ndarray, "states dimensions"]) -> Float[Tensor, "states dimensions"]:
        return torch.from_numpy(np.asarray(latents, dtype=np.float32)).to(self.learner.device)

    def region(self) -> Float[np.ndarray, "box box box"]:
        """1 where maps may have density, 0 elsewhere."""
        region: np.ndarray = self.learner.mask.float().numpy()
        return region

    def _filtered(self, voxels: Float[Tensor, "box box box"]) -> Float[Tensor, "box box box"]:
        return weighted_shells(voxels, torch.from_numpy(self.shell_weight).to(voxels.device))

    def decode_states(self, latents: Float[np.ndarray, "states dimensions"]) -> Iterator[DecodedState]:
        """Density as of `decode` and 3D attention of latent vectors at the lattice's points, one state at a time."""
        model, lattice = self.learner.objectives.model, self.learner.objectives.lattice
        assert isinstance(model.decoder, DeformationDecoder)
        hidden = model.feature_volume.in_tiles(lattice.points_pixels)
        shared = model.shared_density(hidden, lattice.points_pixels)
        for vector in self._vectors(latents):
            folded = model.condition(vector[None])
            assert isinstance(folded, FoldedQueries)
            own, attention = model.density(hidden, folded), model.decoder.attention_map(hidden, folded)[0]
            density = (own if shared is None else shared.confine(own))[0]
            voxels = density.new_zeros(model.box**3)
            voxels[lattice.flat_index] = density
            filtered = self._filtered(voxels.reshape((model.box,) * 3)).ravel()[lattice.flat_index]
            yield DecodedState(filtered.cpu().numpy(), attention.cpu().numpy())

    def held_out(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Latents of the particles kept out of training, as the encoder sees them, and their source rows.

        None when there are none, or no encoder that has been trained.
        """
        kept = self.config.dataset.hold_out
        if not kept or not _encoder_is_trained(self.config, self.checkpoint):
            return None
        store = open_run_store(self.manifest)
        rows = np.arange(len(store) - kept, len(store))
        particles = store.particles()
        _, latents = _encode(self.learner, store, rows, particles.pose(rows), None)
        return latents.numpy(), particles.source_row[rows]

    @property
    def has_attention(self) -> bool:
        """Whether points of space attend to queries; the ablations' do not."""
        return self.config.model.domain == "real" and self.config.model.decoder.form == "attention"

    @property
    def is_encoded(self) -> bool:
        """Whether encoders had to look at all images."""
        return self.config.model.pose.form == "encoder" or _encoder_is_trained(self.config, self.checkpoint)

    @property
    def poses_refined(self) -> bool:
        """Whether training changed the poses: a search may find that given ones are exact."""
        rotated = np.abs(self.rotation - self.stored_rotation).max()
        shifted = np.abs(self.shift_angstrom - self.stored_shift_angstrom).max()
        return bool(max(rotated, shifted) > _EXACT)


def load_trained(
    run: Path,
    device: torch.device = CPU,
    progress: StagedProgress = silent,
    config: RunConfig | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedRun:
    """Read a run's newest whole checkpoint; ranks do so together, and share out images that encoders must look at.

    Parameters
    ----------
    run
        Run directory.
    device
        Where maps are decoded and images are encoded.
    progress
        Called with (stage, done, in all) while images are encoded.
    config
        Of the run, where that has been read already.
    checkpoint
        The one to read, where that is known already.

    Raises
    ------
    CheckpointError
        If the run has none yet, or none that is whole.
    """
    manifest = read_manifest(run)
    config = config or load_run(run)[0]
    checkpoint = checkpoint or latest_checkpoint(run)
    if checkpoint is None:
        raise CheckpointError(f"{run}: no checkpoint yet; train it first, or `--resume` it")
    store = open_run_store(manifest)
    particles = store.particles()
    learner = Learner.from_run(_for_decoding(config), store, run, device)
    learner.objectives.model.load_state_dict(checkpoint.read_weights())
    learner.load_table_state(checkpoint.read_tables())
    learner.load_occupancy_state(checkpoint.read_occupancy())
    learner.objectives.eval().requires_grad_(False)
    rows = selected_rows(config, store)
    pose, latents = _settle_particles(learner, store, rows, run, checkpoint, partial(progress, "encoded particles"))
    return TrainedRun(
        config=config,
        manifest=manifest,
        checkpoint=checkpoint,
        source=Path(store.attributes.source.path),
        latents=latents.numpy(),
        source_row=particles.source_row[rows],
        rotation=pose.rotation.numpy(),
        shift_angstrom=pose.shift_angstrom.numpy(),
        stored_rotation=particles.rotation[rows],
        stored_shift_angstrom=particles.shift_angstrom[rows],
        shell_weight=_load_weight(run, checkpoint.position.step),
        learner=learner,
        **_read_found(learner, rows, checkpoint),
    )


def _read_found(learner: Learner, rows: np.ndarray, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Tables of the last search, by name."""
    found = {name: learner.read_found(name, torch.from_numpy(rows)) for name in FOUND}
    if _encoder_is_trained(learner.config, checkpoint):
        # They are of the latents of the table, which are not the run's any more.
        del found["latent_deviation"]
    tables = {name: values.cpu().numpy() for name, values in found.items() if values is not None}
    return {name: values if name == "latent_deviation" else values[:, 0] for name, values in tables.items()}


def _load_weight(run: Path, step: int) -> Float[np.ndarray, " shells"]:
    """Of the maps at the checkpoint's poses, once that was made; until then, at the first ones."""
    refined = read_of_checkpoint(run, REFINED_SHELL_WEIGHT, step)
    return load_shell_weight(run).numpy() if refined is None else refined["shell_weight"]


def with_weight_at_refined_poses(
    working: WorkingFolder, trained: TrainedRun, progress: StagedProgress = silent
) -> TrainedRun:
    """The same run, its Fourier shells weighted by what all particles say at their refined poses.

    All ranks make the weights together, once for a checkpoint, and the leader keeps them in the run directory.
    """
    if not trained.poses_refined:
        return trained
    run, step = working.folder, trained.checkpoint.position.step
    known = find_of_checkpoint(run, REFINED_SHELL_WEIGHT, step)
    if known is None:
        known = {"shell_weight": take_from_leader(_weigh_at_refined_poses(trained, progress))}
        if rank_and_world()[0] == 0:
            working.send(write_of_checkpoint(run, REFINED_SHELL_WEIGHT, step, **known))
    return replace(trained, shell_weight=known["shell_weight"])


def _weigh_at_refined_poses(trained: TrainedRun, progress: StagedProgress) -> Float[np.ndarray, " shells"]:
    store = open_run_store(trained.manifest)
    rows = selected_rows(trained.config, store)
    pose = Pose(torch.from_numpy(trained.rotation), torch.from_numpy(trained.shift_angstrom))
    report = partial(progress, "consensus at refined poses")
    consensus = back_project(store.with_pose(rows, pose), rows, report, trained.learner.device)
    weight: np.ndarray = consensus.shell_weight(trained.learner.mask, store.pixel_size_angstrom).numpy()
    return weight


def keep_encoded_particles(working: WorkingFolder, trained: TrainedRun) -> None:
    """Have the leader keep in the run directory what encoders have seen: nobody looks at all images again."""
    if trained.is_encoded and rank_and_world()[0] == 0:
        step, seen = trained.checkpoint.position.step, {name: getattr(trained, name) for name in _ENCODED}
        working.send(write_of_checkpoint(working.folder, ENCODED_PARTICLES, step, **seen))


def _for_decoding(config: RunConfig) -> RunConfig:
    """The run's configuration as maps are decoded: one unshifted lattice, any backend's table read by torch."""
    grid = config.model.hash_grid.model_copy(update={"backend": "torch"})
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"hash_grid": grid}),
            # Nothing is projected: without a lattice to project, no operators are made for it.
            "training": config.training.model_copy(update={"jitter_lattices": 1, "projection": "rays"}),
        }
    )


def _settle_particles(
    learner: Learner, store: ParticleStore, rows: np.ndarray, run: Path, checkpoint: Checkpoint, progress: Progress
) -> tuple[Pose, Tensor]:
    """Poses and latents of rows: from tables, as stored, or as encoders see their images."""
    encoded = _encoder_is_trained(learner.config, checkpoint)
    pose = learner.read_poses(torch.from_numpy(rows), store.particles().pose(rows))
    latents = None if encoded else learner.read_latents(torch.from_numpy(rows))
    if pose is not None and latents is not None:
        return Pose(pose.rotation.cpu(), pose.shift_angstrom.cpu()), latents.cpu()
    known = find_of_checkpoint(run, ENCODED_PARTICLES, checkpoint.position.step)
    if known is None:
        return _encode(learner, store, rows, pose, latents, progress)
    found = {name: torch.from_numpy(values) for name, values in known.items()}
    return Pose(found["rotation"], found["shift_angstrom"]), found["latents"]


def _encode(
    learner: Learner,
    store: ParticleStore,
    rows: np.ndarray,
    pose: Pose | None,
    latents: Tensor | None,
    progress: Progress | None = None,
) -> tuple[Pose, Tensor]:
    """Poses and latents of rows, those not given as encoders see the images, of which each rank looks at its share."""
    objectives, device, particles = learner.objectives, learner.device, store.particles()
    mine = np.arange(len(rows))[take_share(len(rows))]
    rotation, shift = torch.empty(len(mine), 3, 3), torch.empty(len(mine), 2)
    found = torch.empty(len(mine), learner.config.model.latent.dimensions)
    for start in range(0, len(mine), _BLOCK):
        part, places = slice(start, start + _BLOCK), mine[start : start + _BLOCK]
        block = ImageBlock(store.read_images(rows[places]), rows[places], np.zeros_like(places))
        batch = make_batch(block, particles).to(device)
        known = None if pose is None else Pose(pose.rotation[places].to(device), pose.shift_angstrom[places].to(device))
        seen = known or objectives.encode_pose(batch)
        rotation[part], shift[part] = seen.rotation, seen.shift_angstrom
        found[part] = objectives.encode_latent(batch, seen) if latents is None else latents[places]
        if progress is not None:
            progress(start + len(places), len(mine))
    together = [gather_shares(values, len(rows)) for values in (rotation, shift, found)]
    return Pose(*together[:2]), together[2]


def _encoder_is_trained(config: RunConfig, checkpoint: Checkpoint) -> bool:
    """Whether there is an encoder of latents that has been trained."""
    if config.model.latent.form == "table_then_encoder":
        return stages(config)[checkpoint.position.stage].kind == "latent_distillation"
    return config.model.latent.form == "encoder"
