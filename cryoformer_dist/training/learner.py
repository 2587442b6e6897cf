"""The network together with the per-particle tables: all that training changes."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoformer_dist.config.schema import LearningRates, RunConfig
from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.physics.lattice import Lattice, mask_of
from cryoformer_dist.physics.pose import Pose, rotation_from_6d, sixd_from_rotation
from cryoformer_dist.ranks import gather_rows
from cryoformer_dist.runs.checkpoint import LearnedState, OccupancyState, TableStates
from cryoformer_dist.training.objectives import Objectives
from cryoformer_dist.training.stages import Stage
from cryoformer_dist.training.tables import RowTable


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a batch is rendered from, and the leaves whose gradient updates tables.

    Attributes
    ----------
    latent
        ``None`` when an encoder is to look at the images.
    pose
        ``None`` when an encoder is to look at the images.
    leaves
        Table name to the rows read from it.
    """

    latent: Tensor | None
    pose: Pose | None
    leaves: dict[str, Tensor]


class Learner:
    """Network and tables of one run, equal on every rank.

    Parameters
    ----------
    config
        Of the run.
    particles
        Metadata of the whole store: tables have one row per store row.
    box
        Side of the images in pixels.
    pixel_size_angstrom
        Of the map.
    lattice
        Where density is evaluated.
    device
        Where it all lives.
    first_latents
        ``(rows, dimensions)`` of the latent table; drawn from the prior when ``None``.
    spectrum
        ``(shells,)`` amplitude of the map to be expected; Fourier domain only.

    Attributes
    ----------
    source_row
        Row of each store row in its particle file.
    tables
        Latents and poses, where they are tabulated, by name; nobody but the learner writes them.
    residual_outside
        What share of the residual the last occupancy refresh found where no density was allowed; ``None`` before one.
    """

    def __init__(
        self,
        config: RunConfig,
        particles: StoredParticles,
        box: int,
        pixel_size_angstrom: float,
        lattice: Lattice,
        device: torch.device,
        first_latents: Tensor | None = None,
        spectrum: Tensor | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.source_row = particles.source_row
        self.objectives = Objectives(config, box, pixel_size_angstrom, lattice.to(device), spectrum).to(device)
        self.tables = _initial_tables(config, particles, device, first_latents)
        self.residual_outside: float | None = None

    @classmethod
    def from_run(cls, config: RunConfig, store: ParticleStore, run: Path, device: torch.device) -> "Learner":
        """Network and tables as a prepared run starts with them; its configuration may have been adapted."""
        # Not above: a machine that is only timed has no need of what reads run directories.
        from cryoformer_dist.runs import directory, masks

        learner = cls(
            config,
            directory.store_at_first_poses(run, store).particles(),
            store.box_size,
            store.pixel_size_angstrom,
            directory.load_lattice(config, run),
            device,
            directory.load_first_latents(run),
            directory.load_spectrum(config, run),
        )
        focus = masks.load_focus(run)
        if focus is not None:
            learner.objectives.model.confine(focus)
        return learner

    def inputs(self, stage: Stage, batch: ParticleBatch, epoch: float) -> Inputs:
        """Read the tables' rows of a batch, as far as they take part at this point of training.

        Parameters
        ----------
        stage
            Of the run.
        batch
            Particles of the step.
        epoch
            How many epochs of the stage are done, with fraction.
        """
        leaves: dict[str, Tensor] = {}
        if stage.kind == "pose_pretraining":
            return Inputs(None, None, leaves)
        if stage.kind == "pose_encoding":
            return Inputs(batch.images.new_zeros(len(batch), self.config.model.latent.dimensions), None, leaves)
        fits = stage.kind == "reconstruction"
        latent = self._latent(batch, leaves, fits and self._latents_follow_gradients(epoch))
        pose = self._pose(batch, leaves, fits and epoch >= self.config.training.freeze_pose_epochs)
        return Inputs(latent, pose, leaves)

    def judged(self, batch: ParticleBatch) -> ParticleBatch:
        """The same batch with the amplitudes and weights that were found, where they are looked for."""
        amplitude, weight = (
            self.tables[name].values[batch.row, 0] if name in self.tables else None for name in ("amplitude", "weight")
        )
        return replace(batch, amplitude=amplitude, weight=weight)

    def settle(self, stage: Stage, batch: ParticleBatch, epoch: float) -> tuple[Pose, Tensor]:
        """Pose and latent of each particle at this point of training: from a table, from an encoder, or as given."""
        inputs = self.inputs(stage, batch, epoch)
        return self.objectives.encode_missing(batch, inputs.pose, inputs.latent)

    def is_coarse(self, stage: Stage, epoch: float) -> bool:
        """Whether images are compared at low frequencies only, at this point of training."""
        return stage.compares_images and epoch < self.config.training.coarse_epochs

    def loss(
        self,
        errors: Float[Tensor, " particles"],
        latent: Float[Tensor, "particles dimensions"],
        weight: Float[Tensor, " particles"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " particles"]]:
        """What a step minimises, from what `Objectives` returns, and each particle's prior before its weight."""
        prior = latent.square().sum(-1) / self.objectives.box**2
        each = errors + self.config.model.latent.prior * prior
        return (each if weight is None else each * weight).mean(), prior

    @property
    def hands_poses_over(self) -> bool:
        """Whether the pose table starts from the orientation encoder."""
        return self.config.model.pose.form == "encoder_then_table"

    @torch.no_grad()
    def take_encoded_poses(self, batch: ParticleBatch) -> None:
        """Set the pose table's rows of a batch, on every rank those of all ranks, to what the encoder sees."""
        pose = self.objectives.encode_pose(batch)
        for name, values in (("rotation", sixd_from_rotation(pose.rotation)), ("shift_angstrom", pose.shift_angstrom)):
            rows, gathered = gather_rows(batch.row, values)
            self.tables[name].write(rows, gathered)

    @property
    def latents(self) -> Float[Tensor, "rows dimensions"]:
        """The latent table, one row per row of the store."""
        return self.tables["latent"].values

    def set_latents(
        self,
        rows: Tensor,
        latents: Float[Tensor, "rows dimensions"],
        deviations: Float[Tensor, "rows dimensions"],
    ) -> None:
        """Put latents that were found, and how well they are known, into the tables."""
        self.tables["latent"].write(rows, latents)
        self.tables["latent_deviation"].write(rows, deviations)

    def trusted(self, rows: Int[Tensor, " rows"]) -> Int[Tensor, " some"]:
        """Those rows whose images probably show a particle."""
        weight = self.tables.get("weight")
        return rows if weight is None else rows[weight.values[rows, 0] > 0.5]

    def set_poses(self, rows: Tensor, pose: Pose) -> None:
        """Put poses that were found into their tables."""
        self.tables["rotation"].write(rows, sixd_from_rotation(pose.rotation))
        self.tables["shift_angstrom"].write(rows, pose.shift_angstrom)

    def set_judgements(self, rows: Tensor, **found: Float[Tensor, " rows"]) -> None:
        """Put what was found of every image (see `Answer`) into the tables that are there for it."""
        for name, values in found.items():
            if name in self.tables:
                self.tables[name].write(rows, values[:, None])

    def read_latents(self, rows: Tensor) -> Float[Tensor, "rows dimensions"] | None:
        """Latents of store rows; ``None`` where an encoder must look at their images."""
        form = self.config.model.latent.form
        if form == "encoder":
            return None
        if form == "none":
            return torch.zeros(len(rows), self.config.model.latent.dimensions, device=self.device)
        return self.latents[rows]

    def read_found(self, name: str, rows: Tensor) -> Tensor | None:
        """What searches found of store rows beside latents and poses; ``None`` where they did not look."""
        table = self.tables.get(name)
        return None if table is None else table.values[rows]

    def read_poses(self, rows: Tensor, given: Pose) -> Pose | None:
        """Poses of store rows, whose given ones are known; ``None`` where an encoder must look at their images."""
        form = self.config.model.pose.form
        if form == "encoder":
            return None
        if not self.config.model.tabulates_poses:
            return given
        return Pose(rotation_from_6d(self.tables["rotation"].values[rows]), self.tables["shift_angstrom"].values[rows])

    def update_tables(
        self, batch: ParticleBatch, leaves: dict[str, Tensor], factor: float, stopped: Tensor | None = None
    ) -> None:
        """Move the rows of a batch, on every rank those of all ranks; none where ``stopped`` is 1, as `Engine.step`."""
        if not leaves:
            return
        # The loss is a mean over the rank's batch; a row's step must not depend on who shared the batch.
        here = [len(batch) * leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        rows, gradients = gather_rows(batch.row, torch.cat(here, 1))
        parts = torch.split(gradients, [part.shape[1] for part in here], 1)
        for name, gradient in zip(leaves, parts, strict=True):
            rate = table_rate(name, self.config.training.learning_rates)
            self.tables[name].update(rows, gradient, rate * factor, stopped)

    @property
    def mask(self) -> Bool[Tensor, "box box box"]:
        """Where density is allowed, on the CPU."""
        return mask_of(self.objectives.lattice.flat_index, self.objectives.box)

    def allow(self, mask: Bool[Tensor, "box box box"]) -> None:
        """Evaluate density at a mask's points from now on."""
        if not torch.equal(mask, self.mask):
            lattice = Lattice.of(mask, self.config.training.jitter_lattices, self.config.seed)
            self.objectives.use_lattice(lattice.to(self.device))

    @property
    def active_points(self) -> int:
        """Points at which density is evaluated."""
        return len(self.objectives.lattice.points_pixels)

    def state(self) -> LearnedState:
        """All that training has learned so far."""
        return LearnedState(self.objectives.model.state_dict(), self.table_state(), self.occupancy_state())

    def occupancy_state(self) -> OccupancyState:
        """Points of the mask, and what the last refresh found outside it."""
        flat_index = self.objectives.lattice.flat_index
        return {"flat_index": flat_index.int(), "residual_outside": self.residual_outside}

    def load_occupancy_state(self, state: OccupancyState) -> None:
        """Take over a saved mask."""
        self.residual_outside = state["residual_outside"]
        self.allow(mask_of(state["flat_index"], self.objectives.box))

    @property
    def tabulated_rows(self) -> int:
        """Rows of each table, one per row of the store; zero where nothing is tabulated."""
        return max((len(table.values) for table in self.tables.values()), default=0)

    def table_state(self) -> TableStates:
        """Tables with their optimiser state."""
        return {name: table.state_dict() for name, table in self.tables.items()}

    def load_table_state(self, state: TableStates) -> None:
        """Take over saved tables.

        Raises
        ------
        CheckpointError
            If they are of another model or store.
        """
        if set(state) != set(self.tables):
            raise CheckpointError(
                f"checkpoint holds tables {sorted(state)}, this configuration needs {sorted(self.tables)}: "
                "resume with the configuration the run was started with"
            )
        for name, table in self.tables.items():
            table.load_state_dict(state[name])

    def _latents_follow_gradients(self, epoch: float) -> bool:
        return not self.config.model.latent.searched and epoch >= self.config.training.freeze_latent_epochs

    def _latent(self, batch: ParticleBatch, leaves: dict[str, Tensor], refining: bool) -> Tensor | None:
        if not refining or not self.config.model.latent.tabulated:
            return self.read_latents(batch.row)
        leaves["latent"] = self.tables["latent"].read(batch.row)
        return leaves["latent"]

    def _pose(self, batch: ParticleBatch, leaves: dict[str, Tensor], refining: bool) -> Pose | None:
        if not self.config.model.tabulates_poses:
            # An encoder begins to be followed when poses are to be refined.
            return self.read_poses(batch.row, batch.pose) if refining else batch.pose
        if not refining or not self.config.model.pose.tabulated:
            return self.read_poses(batch.row, batch.pose)
        for name in ("rotation", "shift_angstrom"):
            leaves[name] = self.tables[name].read(batch.row)
        return Pose(rotation_from_6d(leaves["rotation"]), leaves["shift_angstrom"])


def table_rate(name: str, rates: LearningRates) -> float:
    """Peak step size of a table."""
    return {"latent": rates.latent, "rotation": rates.rotation, "shift_angstrom": rates.shift_angstrom}[name]


def _initial_tables(
    config: RunConfig, particles: StoredParticles, device: torch.device, latent: Tensor | None
) -> dict[str, RowTable]:
    """Latents as given or drawn from their prior, poses as given."""
    tables = {}
    if config.model.latent.tabulated:
        if latent is None:
            generator = torch.Generator().manual_seed(config.seed)
            latent = torch.randn(len(particles.source_row), config.model.latent.dimensions, generator=generator)
        tables["latent"] = RowTable(latent.to(device))
    if config.model.latent.searched:
        # Before a search all that is known is the prior.
        tables["latent_deviation"] = RowTable(torch.ones_like(tables["latent"].values))
    if config.model.tabulates_poses:
        rotation = torch.tensor(particles.rotation)
        tables["rotation"] = RowTable(sixd_from_rotation(rotation).to(device))
        tables["shift_angstrom"] = RowTable(torch.tensor(particles.shift_angstrom, device=device))
    judged = ["amplitude"] * config.model.searches_amplitudes + ["weight", "alone"] * config.model.weighs_junk
    return tables | {name: RowTable(torch.ones(len(particles.source_row), 1, device=device)) for name in judged}
