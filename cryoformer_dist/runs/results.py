"""What was made of a checkpoint, and of which: nothing is made twice, or taken for another checkpoint's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.ranks import rank_and_world, take_from_leader
from cryoformer_dist.runs.layout import LATENTS, RESULTS
from cryoformer_dist.runs.manifest import SCHEMA_VERSION
from cryoformer_dist.storage.array_files import read_arrays
from cryoformer_dist.storage.places import replaced
from cryoformer_dist.storage.records import read_record, write_record

_STEP = "checkpoint_step"


@dataclass(frozen=True, slots=True)
class MadeResults:
    """What ``results.json`` holds.

    Attributes
    ----------
    checkpoint_step
        Of the checkpoint they were made of.
    files
        Their names in the run directory.
    """

    checkpoint_step: int
    files: tuple[str, ...]


def write_made_results(run: Path, made: MadeResults) -> str:
    """Say that results are there, all of them; returns the file's name."""
    write_record(run / RESULTS, made, SCHEMA_VERSION)
    return RESULTS


def read_made_results(run: Path) -> MadeResults | None:
    """What results there are; ``None`` while there are none, or not all.

    Raises
    ------
    CryoFormerError
        If the file is damaged or of another version.
    """
    path = run / RESULTS
    if not path.is_file():
        return None
    return read_record(path, MadeResults, SCHEMA_VERSION, f"run `cryoformer-dist reconstruct {run}` again")


def write_of_checkpoint(run: Path, name: str, step: int, **arrays: np.ndarray) -> str:
    """Keep arrays that were made of a checkpoint, named by its step, in a file that is whole or absent; its name."""
    with replaced(run / name) as beside, beside.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{_STEP: np.array(step)}, **arrays)
    return name


def read_of_checkpoint(run: Path, name: str, step: int) -> dict[str, np.ndarray] | None:
    """Arrays that `write_of_checkpoint` kept; ``None`` where there are none of this checkpoint."""
    if not (run / name).is_file():
        return None
    kept = read_arrays(run / name, f"remove it and run `cryoformer-dist reconstruct {run}` again")
    return {key: kept[key] for key in kept if key != _STEP} if int(kept[_STEP]) == step else None


def find_of_checkpoint(run: Path, name: str, step: int) -> dict[str, np.ndarray] | None:
    """As `read_of_checkpoint`, on every rank what the leader finds."""
    leads = rank_and_world()[0] == 0
    return take_from_leader(read_of_checkpoint(run, name, step) if leads else None)


def write_latent_table(run: Path, table: Mapping[str, np.ndarray]) -> str:
    """Write what is known of each trained particle, whole or not at all; the file's name."""
    with replaced(run / LATENTS) as beside, beside.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **table)
    return LATENTS


def read_latent_table(run: Path) -> dict[str, np.ndarray]:
    """Arrays of latent.npz; none before they were written."""
    if not (run / LATENTS).is_file():
        return {}
    return read_arrays(run / LATENTS, f"run `cryoformer-dist reconstruct {run}` again")
