"""The verdict on a run as it lies in the run directory: scores, FSC tables and the maps of the states."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cryoformer_dist.analysis.evaluate import Evaluation
from cryoformer_dist.analysis.map_fsc import write_curves
from cryoformer_dist.analysis.reconstruct import remove_series, write_series
from cryoformer_dist.runs.layout import FSC, STATE_FSC, STATE_FSCS, VOLUMES
from cryoformer_dist.runs.scores import write_scores

_SERIES = "state"


@dataclass(frozen=True, slots=True)
class StateCurves:
    """FSC with the true map of each state.

    Attributes
    ----------
    frequency_per_angstrom
        Of the shells.
    own, distant, consensus
        Of the state's map, of a distant state's, and of the consensus map.
    """

    frequency_per_angstrom: Float[np.ndarray, " shells"]
    own: Float[np.ndarray, "states shells"]
    distant: Float[np.ndarray, "states shells"]
    consensus: Float[np.ndarray, "states shells"]


def write_evaluation(run: Path, evaluation: Evaluation, labels: Sequence[str] = ()) -> Path:
    """Write metrics.json, ``fsc/state_000.csv`` ... and, against a truth, ``volumes/state_000.mrc`` ....

    Returns
    -------
    Path
        The scores.
    """
    (run / FSC).mkdir(parents=True, exist_ok=True)
    for stale in _find_curves(run):
        stale.unlink()
    curves = zip(evaluation.own, evaluation.distant, evaluation.consensus, strict=True)
    for index, (own, distant, consensus) in enumerate(curves):
        named = {"fsc_own": own, "fsc_distant": distant, "fsc_consensus": consensus}
        write_curves(run / FSC / STATE_FSC.format(index=index), named)
    if evaluation.own:
        maps, captions = evaluation.volumes, [""] * len(evaluation.volumes)
        write_series(run / VOLUMES, _SERIES, maps, evaluation.voxel_size_angstrom, captions, labels)
    else:
        remove_series(run / VOLUMES, _SERIES)
    return write_scores(run, evaluation.scores)


def read_state_curves(run: Path) -> StateCurves | None:
    """The FSC tables of a run; ``None`` where none were written."""
    tables = []
    for path in _find_curves(run):
        with path.open(newline="") as stream:
            tables.append(list(csv.DictReader(stream)))
    if not tables:
        return None
    columns = ("frequency_per_angstrom", "fsc_own", "fsc_distant", "fsc_consensus")
    frequency, *curves = (np.array([[float(row[name]) for row in table] for table in tables]) for name in columns)
    return StateCurves(frequency[0], *curves)


def _find_curves(run: Path) -> list[Path]:
    """FSC tables in the order of the states."""
    return sorted((run / FSC).glob(STATE_FSCS))
