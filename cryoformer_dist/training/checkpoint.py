"""Everything a run needs to go on as if it had never stopped, in one folder that appears whole or not at all."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoformer_dist.data.order import Phase
from cryoformer_dist.errors import CheckpointError

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Position:
    """How far training has come.

    Attributes
    ----------
    stage
        Index into the run's stages.
    stage_step
        Steps done in this stage.
    step
        Steps done in all.
    consumed
        Particles consumed in this stage, per phase of equal world size.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    consumed: tuple[Phase, ...] = ()

    def passes(self, particles: int) -> int:
        """Whole passes over so many particles that this stage has made, over all its ranks."""
        return sum(phase.world * phase.rows_per_rank for phase in self.consumed) // particles


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is complete on disk."""

    folder: Path
    position: Position
    manifest: dict[str, Any]

    @property
    def engine_folder(self) -> Path:
        """Where the engine keeps its state."""
        return self.folder / "engine"

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters, engine-independent."""
        return _load(self.folder / "model.pt")

    def tables(self) -> dict[str, Any]:
        """Per-particle tables with their optimiser state."""
        return _load(self.folder / "tables.pt")

    def occupancy(self) -> dict[str, Any] | None:
        """Where density was allowed and what was found elsewhere; none in checkpoints older than refreshes."""
        path = self.folder / "occupancy.pt"
        return _load(path) if path.is_file() else None


def checkpoints(run: Path) -> list[Checkpoint]:
    """Complete checkpoints of a run, oldest first; half-written ones are not among them."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [_open(folder) for folder in folders if (folder / _MANIFEST).is_file()]


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one."""
    found = checkpoints(run)
    return found[-1] if found else None


def _open(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        version = manifest["schema_version"]
        position = dict(manifest["position"])
        position["consumed"] = tuple(Phase(**phase) for phase in position["consumed"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / _MANIFEST}: not readable ({error}); delete this folder to use an older one"
        ) from error
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"{folder}: written by a newer version (schema {version}); upgrade cryoformer-dist")
    return Checkpoint(folder, Position(**position), manifest)


def write_checkpoint(
    run: Path,
    position: Position,
    leader: bool,
    save_engine: Callable[[Path], None],
    states: Callable[[], dict[str, Any]],
    keep: int,
    barrier: Callable[[], None],
) -> Path:
    """Write a checkpoint under a temporary name and rename it; then delete all but the newest ``keep``.

    Parameters
    ----------
    run
        Run directory.
    position
        How far training has come.
    leader
        Whether this is the rank that writes what all share.
    save_engine
        Writes the engine's state into a folder; called on every rank.
    states
        File name (without ``.pt``) to state, written by the leader.
    keep
        How many checkpoints stay.
    barrier
        Waits for all ranks.
    """
    final = run / "checkpoints" / f"step-{position.step:08d}"
    partial = final.with_name(f".partial-{position.step:08d}")
    if leader:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    save_engine(partial / "engine")
    barrier()
    if leader:
        for name, state in states().items():
            torch.save(state, partial / f"{name}.pt")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "position": asdict(position),
            "torch": torch.__version__,
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old.folder)
    barrier()
    return final


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); delete its folder to use an older checkpoint"
        ) from error
