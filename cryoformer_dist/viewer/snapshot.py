"""A run as it is shown: the columns of its particles, and the network that decodes their maps."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.analysis.latent import find_principal_axes
from cryoformer_dist.analysis.trained import TrainedRun, load_trained
from cryoformer_dist.data.selection import RunState, Selection
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.runs.checkpoint_choice import fetch_latest
from cryoformer_dist.runs.directory import open_run_store
from cryoformer_dist.runs.layout import ENCODED_PARTICLES, LATENTS, PARTICLE_ANALYSIS, REFINED_SHELL_WEIGHT, RESULTS
from cryoformer_dist.runs.results import read_made_results
from cryoformer_dist.selection.choice import choose_all, choose_inside, choose_where
from cryoformer_dist.selection.columns import ParticleColumns, columns_of, read_columns
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.viewer.requests import Chosen, Gate

_OF_CHECKPOINTS = (RESULTS, LATENTS, ENCODED_PARTICLES, REFINED_SHELL_WEIGHT, PARTICLE_ANALYSIS)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A run at one checkpoint.

    Attributes
    ----------
    step
        Of the checkpoint.
    columns
        Of the trained particles; latents are among their table.
    trained
        Decodes.
    """

    step: int
    columns: ParticleColumns
    trained: TrainedRun

    @property
    def latents(self) -> NDArray[np.float32]:
        """``(particles, dimensions)``, in the order of the columns."""
        return self.columns.table["latent"]


def take_snapshot(working: WorkingFolder, progress: StagedProgress = silent) -> Snapshot:
    """Read a run's newest checkpoint, and its results where they are of that; training may go on meanwhile.

    Raises
    ------
    CheckpointError
        If the run has no checkpoint yet.
    """
    fetch_latest(working)
    working.fetch(*_OF_CHECKPOINTS)
    trained = load_trained(working.folder, progress=progress)
    step, made = trained.checkpoint.position.step, read_made_results(working.folder)
    if made is not None and made.checkpoint_step == step:
        return Snapshot(step, read_columns(working.folder, str(working.home)), trained)
    # No clusters: their numbers would be those of no maps.
    axes = find_principal_axes(trained.latents)
    table = {**trained.table, "pca": axes.project(trained.latents).astype(np.float32)}
    state = RunState(str(working.home), step)
    return Snapshot(step, columns_of(table, open_run_store(trained.manifest), state), trained)


def choose(columns: ParticleColumns, chosen: Chosen) -> Selection:
    """The particles inside the lassos that pass every gate, with how they were chosen.

    Raises
    ------
    SelectionError
        If a column does not exist, or a polygon has fewer than three corners.
    """
    selection: Selection | None = None
    for lasso in chosen.lassos:
        inside = choose_inside(columns, lasso.axes, lasso.polygon)
        if lasso.how == "intersection":
            selection = inside if selection is None else selection & inside
        elif lasso.how == "difference":
            selection = (choose_all(columns) if selection is None else selection) - inside
        else:
            selection = inside if selection is None else selection | inside
    gates = [choose_where(columns, _word(gate)) for gate in chosen.gates]
    parts = gates if selection is None else [selection, *gates]
    return reduce(lambda one, other: one & other, parts) if parts else choose_all(columns)


def _word(gate: Gate) -> str:
    """A gate as a condition of `select --where`."""
    above = "" if gate.low is None else f"{gate.low:.7g} <= "
    below = "" if gate.high is None else f" <= {gate.high:.7g}"
    return f"{above}{gate.column}{below}" if above or below else f"{gate.column} == {gate.column}"


def find_places(columns: ParticleColumns, selection: Selection) -> NDArray[np.int64]:
    """Places of selected particles in the columns, ascending."""
    return np.flatnonzero(np.isin(columns.source_row, selection.source_row))
