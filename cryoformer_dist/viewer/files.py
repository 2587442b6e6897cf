"""What lies in a run directory beside latents: maps, FSC curves, the training log; looked at while training goes on."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.errors import SelectionError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.checkpoint_choice import newest_step
from cryoformer_dist.runs.layout import (
    CONSENSUS,
    FLEXIBILITY_MAP,
    FOCUS_MASK,
    FSC,
    GIVEN_MASK,
    HALF_MAPS_CURVES,
    HALVES,
    OCCUPANCY,
    RESULTS,
    STATE_FSCS,
    TRAINING_LOG,
    VOLUMES,
)
from cryoformer_dist.runs.results import read_made_results
from cryoformer_dist.runs.training_log import TrainingRecord, describe, read_records_so_far
from cryoformer_dist.storage.working_folder import WorkingFolder

_MOST_RECORDS = 1000
_TOLD = ("step", "loss", "latent_information_nats", "noise_departure", "particles_per_second", "learning_rate_factor")


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """How far training is.

    Attributes
    ----------
    newest_step
        Of the newest checkpoint; ``None`` before one.
    finished
        Whether results were made of that.
    told
        The last report as one line.
    records
        By name, ``(records,)`` float32; not a number where a report does not tell.
    """

    newest_step: int | None
    finished: bool
    told: str
    records: dict[str, NDArray[np.float32]]


def read_progress(working: WorkingFolder) -> Progress:
    """What a run has written down so far."""
    working.fetch(TRAINING_LOG, RESULTS)
    records, step = read_records_so_far(working.folder), newest_step(working)
    made = read_made_results(working.folder)
    shown = records[:: max(1, len(records) // _MOST_RECORDS)]
    return Progress(
        step,
        made is not None and made.checkpoint_step == step,
        describe(records[-1]) if records else "",
        {name: _gather(shown, name) for name in _TOLD},
    )


def _gather(records: list[TrainingRecord], name: str) -> NDArray[np.float32]:
    values = [getattr(record, name) for record in records]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def list_maps(run: Path) -> list[str]:
    """Names of the maps and masks in a run directory."""
    alone = [name for name in (CONSENSUS, OCCUPANCY, GIVEN_MASK, FOCUS_MASK) if (run / name).is_file()]
    in_folders = [path for folder in (VOLUMES, HALVES) for path in sorted((run / folder).glob("*.mrc"))]
    return [*alone, *(path.relative_to(run).as_posix() for path in in_folders)]


def read_map(run: Path, name: str) -> Volume:
    """One of them.

    Raises
    ------
    SelectionError
        If it is none of those that are listed.
    """
    if name not in list_maps(run):
        raise SelectionError(f"{name}: no map of this run; reload the page to see which there are")
    return read_volume(run / name)


def read_flexibility(run: Path) -> Volume | None:
    """How much density varies at each voxel; ``None`` where that was not looked for."""
    return read_volume(run / FLEXIBILITY_MAP) if (run / FLEXIBILITY_MAP).is_file() else None


def read_curves(run: Path) -> dict[str, dict[str, NDArray[np.float32]]]:
    """FSC curves by where they come from: the comparison of half-sets, and each state of a known truth."""
    tables = {"half maps": run / HALVES / HALF_MAPS_CURVES}
    tables |= {path.stem.replace("_", " "): path for path in sorted((run / FSC).glob(STATE_FSCS))}
    return {name: _read_table(path) for name, path in tables.items() if path.is_file()}


def _read_table(path: Path) -> dict[str, NDArray[np.float32]]:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: np.array([float(row[name]) for row in rows], dtype=np.float32) for name in rows[0]}
