"""Which checkpoint is used: the newest that is whole, the same on all ranks."""

import platform
import time
import warnings
from pathlib import Path

from cryoformer_dist.errors import CheckpointDamagedWarning, CheckpointError, NoWholeCheckpointError
from cryoformer_dist.ranks import gather_objects, rank_and_world
from cryoformer_dist.runs.checkpoint import Checkpoint, complete_checkpoints
from cryoformer_dist.runs.layout import CHECKPOINT, CHECKPOINTS, MANIFEST
from cryoformer_dist.storage.working_folder import WorkingFolder

_LOOK_AGAIN_SECONDS = 1.0


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint that lies here, if there is one; see `agree_on_checkpoint`."""
    return agree_on_checkpoint(WorkingFolder.on_disk(run))


def fetch_latest(run: WorkingFolder) -> None:
    """Bring the newest whole checkpoint here; nothing to do where home is here."""
    if run.is_copy:
        agree_on_checkpoint(run)


def fetch_checkpoint(run: WorkingFolder, step: int, patience_seconds: float) -> None:
    """Bring the checkpoint of a step here, which another worker has written; it may be seen late.

    Raises
    ------
    CheckpointError
        If it is not seen within so many seconds.
    """
    name = f"{CHECKPOINTS}/{CHECKPOINT.format(step=step)}"
    if not (run.folder / name / MANIFEST).is_file():
        _wait_until_seen(run, name, patience_seconds)
        run.fetch(*run.names_at_home(name))


def newest_step(run: WorkingFolder) -> int | None:
    """Step of the newest complete checkpoint, which is not brought here; ``None`` before one."""
    names = complete_checkpoints(run)
    return int(names[-1].rpartition("-")[2]) if names else None


def agree_on_checkpoint(run: WorkingFolder, patience_seconds: float = 0.0) -> Checkpoint | None:
    """The newest checkpoint that any rank sees and that is whole; every rank calls it, and reads its part of the files.

    Parameters
    ----------
    run
        Run directory; a working copy is brought the checkpoint.
    patience_seconds
        How long to wait until this rank sees what another does: network file systems show a node new files late.

    Warns
    -----
    CheckpointDamagedWarning
        Of a damaged one, by the leader: the one before it is used.

    Raises
    ------
    NoWholeCheckpointError
        If there are checkpoints and none is whole.
    CheckpointError
        If this rank does not come to see one, or another version of the program wrote it.
    """
    damaged: list[str] = []
    rank, world = rank_and_world()
    for name in sorted(set().union(*gather_objects(complete_checkpoints(run))), reverse=True):
        _wait_until_seen(run, name, patience_seconds)
        run.fetch(*run.names_at_home(name))
        checkpoint = Checkpoint(run.folder / name)
        found = gather_objects(checkpoint.find_damage(rank, world))
        damage = next((each for each in found if each is not None), None)
        if damage is None:
            if damaged and rank == 0:
                told = f"{run.home}: {'; '.join(damaged)}. {name}, the one before, is used"
                warnings.warn(told, CheckpointDamagedWarning, stacklevel=2)
            return checkpoint
        damaged.append(f"{name} is damaged ({damage})")
        run.forget(name)
    if damaged:
        raise NoWholeCheckpointError(
            f"{run.home}: no checkpoint is whole: {'; '.join(damaged)}. Bring one back from a copy, or remove the "
            f"folder {CHECKPOINTS} and --resume to train from the first estimates again"
        )
    return None


def _wait_until_seen(run: WorkingFolder, name: str, patience_seconds: float) -> None:
    give_up = time.monotonic() + patience_seconds
    while name not in complete_checkpoints(run):
        if time.monotonic() >= give_up:
            raise CheckpointError(
                f"{run.home}: holds {name} for another worker, but not for this one on {platform.node()}, not after "
                f"{patience_seconds:g} s; storage must be one that all nodes see"
            )
        time.sleep(_LOOK_AGAIN_SECONDS)
