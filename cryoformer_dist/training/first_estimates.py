"""What training starts from, made by all ranks together: poses, consensus map, occupancy, first latents.

Each is a stage of the run: a stage whose files are in the run directory is not gone through again, and one that was
interrupted begins anew, on however many ranks there are then.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.linear_model import fit_linear_latents, fit_principal_maps
from cryoformer_dist.initialization.occupancy import find_occupied, sphere
from cryoformer_dist.initialization.pose_search import (
    LinearConformations,
    search_poses,
    search_poses_by_conformation,
)
from cryoformer_dist.initialization.search_rounds import ROUNDS_BY_CONFORMATION
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.ranks import broadcast_from_leader, gather_objects, rank_and_world
from cryoformer_dist.runs.directory import (
    discard_run,
    load_mask,
    rewrite_config,
    selected_rows,
    store_at_first_poses,
    wait_for_file,
    write_first_poses,
    write_linear_model,
    write_maps,
)
from cryoformer_dist.runs.layout import FIRST_LATENTS, FIRST_POSES, OCCUPANCY, PREPARED
from cryoformer_dist.runs.masks import INSIDE, load_focus, load_given_mask, refuse_focus_without_density
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.memory import Workload, settle_batch_size, warn_of_slow_encoding, with_batch_size


def make_first_estimates(
    working: WorkingFolder,
    config: RunConfig,
    store: ParticleStore,
    memory: WorkerMemory,
    progress: StagedProgress = silent,
    device: torch.device | None = None,
) -> RunConfig:
    """Make what is not in the run directory yet; every rank calls it.

    Parameters
    ----------
    working
        Run directory that `begin_run` has begun.
    config, store
        As the run directory names them.
    memory
        Where the run is trained.
    progress
        Called with (stage, done, in all) on every rank.
    device
        Where this rank looks at its particles; the CPU when ``None``.

    Returns
    -------
    config
        With the batch that fits, where that was left open until the occupancy is known.

    Raises
    ------
    ConfigError
        On all ranks, if the run does not fit the workers' memory, or the particles show no density (where conformations
        may differ): the directory then holds no run any more.
    """
    return _FirstEstimates(working, config, store, memory, progress, device).make()


class _FirstEstimates:
    """One attempt at them, on one rank."""

    def __init__(
        self,
        working: WorkingFolder,
        config: RunConfig,
        store: ParticleStore,
        memory: WorkerMemory,
        progress: StagedProgress,
        device: torch.device | None,
    ) -> None:
        self.working, self.config, self.store = working, config, store
        self.memory, self.progress, self.device = memory, progress, device or torch.device("cpu")
        self.rows, self.leads = selected_rows(config, store), rank_and_world()[0] == 0

    def make(self) -> RunConfig:
        """Go through all stages."""
        run, config = self.working.folder, self.config
        if config.model.pose.searched:
            self._make_once(FIRST_POSES, self._find_poses)
        self.store = store_at_first_poses(run, self.store)
        self._make_once(OCCUPANCY, self._make_consensus)
        mask = load_mask(run)
        config = self._settle_batch(int(mask.sum()))
        if config.model.latent.starts_linear:
            self._make_once(FIRST_LATENTS, partial(self._find_latents, mask))
        return config

    def _make_once(self, last_file: str, make: Callable[[], None]) -> None:
        """Go through a stage, unless its last file is there: the leader's run directory decides."""
        there = gather_objects((self.working.folder / last_file).is_file())[0]
        if not there:
            make()
            if self.leads:
                self.working.send(*(name for name in PREPARED if (self.working.folder / name).is_file()))
        wait_for_file(self.working, last_file, self.config.training.storage_patience_seconds)

    def _find_poses(self) -> None:
        """Search around the given poses; of a molecule that moves, then by conformation."""
        seed, rows = self.config.seed, self.rows
        found = search_poses(self.store, rows, seed, partial(self.progress, "pose search"), self.device)
        if not found.kept and self.config.model.latent.starts_linear:
            pose = found.pose
            # Twice: at better poses a linear model learns more of the motion.
            for rounds in ROUNDS_BY_CONFORMATION:
                conformations = self._learn_conformations(pose)
                report = partial(self.progress, "pose search by conformation")
                pose = search_poses_by_conformation(
                    self.store, rows, pose, conformations, rounds, seed, report, self.device
                )
            found = replace(found, pose=pose)
        if self.leads:
            write_first_poses(self.working.folder, rows, found)

    def _learn_conformations(self, pose: Pose) -> LinearConformations:
        here = self.store.with_pose(self.rows, pose)
        consensus = back_project(here, self.rows, partial(self.progress, "consensus map"), self.device)
        mask = self._find_occupancy(consensus.voxels)
        latents = fit_linear_latents(
            here,
            self.rows,
            mask,
            self.config.model.latent.linear_dimensions_used,
            self.config.seed,
            partial(self.progress, "conformations for the poses"),
            self.device,
            self._find_varying(),
        )
        return LinearConformations(latents, fit_principal_maps(here, self.rows, mask, latents, self._find_varying()))

    def _make_consensus(self) -> None:
        consensus = back_project(self.store, self.rows, partial(self.progress, "consensus map"), self.device)
        mask = self._find_occupancy(consensus.voxels)
        if self.leads:
            write_maps(self.working.folder, consensus, mask, self.store.pixel_size_angstrom)

    def _find_occupancy(self, consensus: Float[Tensor, "box box box"]) -> Bool[Tensor, "box box box"]:
        """Where density is allowed, on every rank what the leader finds."""
        mask: Tensor = broadcast_from_leader(self._occupied(consensus).to(torch.uint8)).bool().cpu()
        if not mask.any():
            self._discard()
            raise ConfigError(
                f"{self.store.path}: the back-projection of the particles shows no density above the background; run "
                "`cryoformer-dist check` on the store (poses, CTF and contrast), or set training.occupancy to sphere"
            )
        try:
            refuse_focus_without_density(load_focus(self.working.folder), mask)
        except ConfigError:
            self._discard()
            raise
        return mask

    def _occupied(self, consensus: Float[Tensor, "box box box"]) -> Bool[Tensor, "box box box"]:
        """As the user has given it, as the data have it, or everywhere."""
        given = load_given_mask(self.working.folder)
        if given is not None:
            return given.to(consensus.device)
        if self.config.training.occupancy == "data":
            return find_occupied(consensus, self.store.pixel_size_angstrom)
        return sphere(self.store.box_size)

    def _find_varying(self) -> Bool[Tensor, "box box box"] | None:
        """Where conformations may differ, for linear models: they know no soft edges."""
        focus = load_focus(self.working.folder)
        return None if focus is None else focus > INSIDE

    def _settle_batch(self, points: int) -> RunConfig:
        """The configuration with a batch that fits, as the leader settles it; refused where none does."""
        asked = self.config.training.global_batch_size
        size, refusal = gather_objects(self._fit_batch(points))[0]
        if refusal is not None:
            self._discard()
            raise ConfigError(refusal)
        config = with_batch_size(self.config, size)
        if asked == "auto" and self.leads:
            self.working.send(rewrite_config(self.working.folder, config))
        return config

    def _fit_batch(self, points: int) -> tuple[int | Literal["auto"], str | None]:
        """The batch that fits, and why there is none."""
        try:
            work = Workload.of(self.store, len(self.rows), points)
            size = settle_batch_size(self.config, work, self.memory).training.global_batch_size
        except ConfigError as error:
            return self.config.training.global_batch_size, str(error)
        if self.leads:
            warn_of_slow_encoding(self.config, points, self.memory)
        return size, None

    def _discard(self) -> None:
        if self.leads:
            discard_run(self.working)

    def _find_latents(self, mask: Bool[Tensor, "box box box"]) -> None:
        """The linear model: its maps, and its latents of every store row, the other dimensions close to zero."""
        latent, seed = self.config.model.latent, self.config.seed
        generator = torch.Generator().manual_seed(seed)
        first = 0.1 * torch.randn(len(self.store), latent.dimensions, generator=generator)
        count, report = latent.linear_dimensions_used, partial(self.progress, "first latents")
        varying = self._find_varying()
        found = fit_linear_latents(self.store, self.rows, mask, count, seed, report, self.device, varying)
        maps = fit_principal_maps(self.store, self.rows, mask, found, varying)
        first[self.rows, :count] = found.cpu()
        if self.leads:
            write_linear_model(self.working.folder, maps[1:].cpu(), first)
