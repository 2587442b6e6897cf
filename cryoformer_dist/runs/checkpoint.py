"""Everything a run needs to go on as if it had never stopped, in one folder that appears whole or not at all."""

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from cryoformer_dist.data.order import Consumed, ConsumedRows
from cryoformer_dist.errors import CheckpointError, CheckpointNotWrittenError
from cryoformer_dist.runs.layout import (
    CHECKPOINT,
    CHECKPOINT_ENGINE,
    CHECKPOINT_MODEL,
    CHECKPOINT_OCCUPANCY,
    CHECKPOINT_TABLES,
    CHECKPOINTS,
    MANIFEST,
    PARTIAL_CHECKPOINT,
)
from cryoformer_dist.storage.places import Place, client_errors, remove_folder, synchronise
from cryoformer_dist.storage.retry import StorageRetry
from cryoformer_dist.storage.working_folder import WorkingFolder

_SCHEMA_VERSION = 3


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
        What this stage has seen of the particles.
    left_out
        Store rows that nobody trains on any more: they made a step not finite.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    consumed: Consumed = field(default_factory=Consumed)
    left_out: tuple[int, ...] = ()


TableStates = dict[str, dict[str, Tensor]]
"""Table name to its values and its optimiser's state."""


class OccupancyState(TypedDict):
    """Where density was allowed, as places in ``volume.ravel()``, and the residual's share elsewhere."""

    flat_index: Tensor
    residual_outside: float | None


@dataclass(frozen=True, slots=True)
class LearnedState:
    """What training has learned, equal on every rank, but for the optimiser's state.

    Attributes
    ----------
    weights
        The network's parameters, engine-independent.
    tables
        Per-particle tables with their optimiser state.
    occupancy
        Where density is allowed.
    """

    weights: dict[str, Tensor]
    tables: TableStates
    occupancy: OccupancyState


def name_what_is_not_finite(learned: LearnedState) -> str | None:
    """The first of the parameters and tables that holds a number that is not finite; waits for the device."""
    named = dict(learned.weights)
    for table, state in learned.tables.items():
        named |= {f"table {table}, {part}": values for part, values in state.items()}
    return next((name for name, values in named.items() if not torch.isfinite(values).all()), None)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is complete on disk."""

    folder: Path
    position: Position

    @property
    def engine_folder(self) -> Path:
        """Where the engine keeps its state."""
        return self.folder / CHECKPOINT_ENGINE

    def read_weights(self) -> dict[str, Tensor]:
        """See `LearnedState`."""
        return _load(self.folder / CHECKPOINT_MODEL)  # type: ignore[no-any-return]

    def read_tables(self) -> TableStates:
        """See `LearnedState`."""
        return _load(self.folder / CHECKPOINT_TABLES)  # type: ignore[no-any-return]

    def read_occupancy(self) -> OccupancyState:
        """See `LearnedState`."""
        return _load(self.folder / CHECKPOINT_OCCUPANCY)  # type: ignore[no-any-return]


def checkpoints(run: Path) -> list[Checkpoint]:
    """Complete checkpoints of a run, oldest first; half-written ones are not among them."""
    folders = sorted((run / CHECKPOINTS).glob("step-*"))
    return [_read_position(folder) for folder in folders if (folder / MANIFEST).is_file()]


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one."""
    found = checkpoints(run)
    return found[-1] if found else None


def _read_position(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version = manifest["schema_version"]
        position = dict(manifest["position"])
        rows = tuple(ConsumedRows(**part) for part in position["consumed"]["rows"])
        position["consumed"] = Consumed(position["consumed"]["epochs"], rows)
        position["left_out"] = tuple(position.get("left_out", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST}: not readable ({error}); delete this folder to use an older one"
        ) from error
    if version != _SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}: schema {version}, this version of cryoformer-dist reads {_SCHEMA_VERSION}; use the version "
            "that wrote it"
        )
    return Checkpoint(folder, Position(**position))


def fetch_latest(run: WorkingFolder) -> None:
    """Bring the newest checkpoint that is complete at home here; nothing to do where home is here."""
    complete = _complete_at_home(run)
    if complete:
        run.fetch(*run.names_at_home(complete[-1]))


def newest_step(run: WorkingFolder) -> int | None:
    """Step of the newest checkpoint that is complete at home, which is not brought here; ``None`` before one."""
    names = _complete_at_home(run) if run.is_copy else [each.folder.name for each in checkpoints(run.folder)]
    return int(names[-1].rpartition("-")[2]) if names else None


def write_checkpoint(
    run: WorkingFolder,
    position: Position,
    leader: bool,
    save_engine: Callable[[Path], None],
    learned: Callable[[], LearnedState],
    keep: int,
    retry: StorageRetry,
) -> Path:
    """Write a checkpoint that appears at home whole or not at all; then delete all but the newest ``keep``.

    On a file system it is written under a temporary name and renamed. To an object store every rank sends its own
    files, and the leader the manifest, last.

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
    learned
        Called on the leader, which writes it.
    keep
        How many checkpoints stay.
    retry
        Waits for all ranks, and for storage that is full or away.

    Raises
    ------
    CheckpointNotWrittenError
        On all ranks, if storage is full or away for too long; nothing of this checkpoint is left then.
    """
    writing = _Writing(run, position, leader, save_engine, learned)
    try:
        retry.run(writing.clear)
        retry.run(writing.engine, collective=True)
        retry.run(writing.rest)
        retry.run(writing.appear)
    except CheckpointNotWrittenError:
        writing.give_up()
        raise
    retry.run(lambda: _keep_newest(run, keep) if leader else None)
    return writing.final


@dataclass(frozen=True, slots=True)
class _Writing:
    """A checkpoint on its way home; each step can be repeated after it has failed."""

    run: WorkingFolder
    position: Position
    leader: bool
    save_engine: Callable[[Path], None]
    learned: Callable[[], LearnedState]

    @property
    def name(self) -> str:
        return f"{CHECKPOINTS}/{CHECKPOINT.format(step=self.position.step)}"

    @property
    def final(self) -> Path:
        return self.run.folder / self.name

    @property
    def partial(self) -> Path:
        # A working copy is seen by nobody: it has no need of a second name.
        return (
            self.final if self.run.is_copy else self.final.with_name(PARTIAL_CHECKPOINT.format(step=self.position.step))
        )

    def clear(self) -> None:
        """An empty folder to write in. Nothing above the run directory is made: an absent storage must stay absent."""
        if self.leader and self.run.is_copy:
            remove_folder(self.run.home / self.name, first=MANIFEST)
        if self.leader or self.run.is_copy:
            self.partial.parent.mkdir(exist_ok=True)
            remove_folder(self.partial)
            self.partial.mkdir()

    def engine(self) -> None:
        self.save_engine(self.partial / CHECKPOINT_ENGINE)
        self._deliver(self.partial.joinpath(CHECKPOINT_ENGINE).rglob("*"))

    def rest(self) -> None:
        if not self.leader:
            return
        learned = self.learned()
        paths = [self.partial / name for name in (CHECKPOINT_MODEL, CHECKPOINT_TABLES, CHECKPOINT_OCCUPANCY)]
        for path, state in zip(paths, (learned.weights, learned.tables, learned.occupancy), strict=True):
            torch.save(state, path)
        self._deliver(paths)

    def appear(self) -> None:
        if self.leader:
            manifest = {
                "schema_version": _SCHEMA_VERSION,
                "position": asdict(self.position),
                "torch": torch.__version__,
            }
            (self.partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            self._deliver([self.partial / MANIFEST])
            if not self.run.is_copy:
                remove_folder(self.final, first=MANIFEST)
                self.partial.rename(self.final)
        self.run.forget(self.name)

    def _deliver(self, paths: Iterable[Path]) -> None:
        """See that files are at home: on a network's file system some errors are not told before."""
        for path in sorted(paths):
            if path.is_file():
                synchronise(path)
                self.run.send(path.relative_to(self.run.folder).as_posix())

    def give_up(self) -> None:
        """Leave nothing half-written, as far as storage lets us."""
        with contextlib.suppress(OSError, *client_errors()):
            if self.leader and self.run.is_copy:
                remove_folder(self.run.home / self.name, first=MANIFEST)
            if self.leader or self.run.is_copy:
                remove_folder(self.partial)


def adopt_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Have a run go on from another run's checkpoint, and from that alone; a kill leaves complete checkpoints only."""
    name = checkpoint.folder.name
    partial = run / CHECKPOINTS / PARTIAL_CHECKPOINT.format(step=checkpoint.position.step)
    remove_folder(partial)
    shutil.copytree(checkpoint.folder, partial)
    for path in partial.rglob("*"):
        if path.is_file():
            synchronise(path)
    remove_folder(run / CHECKPOINTS / name, first=MANIFEST)
    partial.rename(run / CHECKPOINTS / name)
    for other in checkpoints(run):
        if other.folder.name != name:
            remove_folder(other.folder, first=MANIFEST)


def _complete_at_home(run: WorkingFolder) -> list[str]:
    """Folders of the complete checkpoints in an object store, oldest first."""
    names = run.names_at_home(CHECKPOINTS)
    complete = f"{CHECKPOINTS}/step-*/{MANIFEST}"
    return sorted(name.removesuffix(f"/{MANIFEST}") for name in names if fnmatch(name, complete))


def _keep_newest(run: WorkingFolder, keep: int) -> None:
    for name in _complete_at_home(run)[:-keep]:
        remove_folder(run.home / name, first=MANIFEST)
    for old in checkpoints(run.folder)[:-keep]:
        remove_folder(old.folder, first=MANIFEST)
    for left_over in _incomplete(run):
        remove_folder(left_over)


def _incomplete(run: WorkingFolder) -> list[Place]:
    """What a kill left in the middle of being written or removed; nobody writes checkpoints when this is asked."""
    if run.is_copy:
        names = {"/".join(name.split("/")[:2]) for name in run.names_at_home(CHECKPOINTS)}
        return [run.home / name for name in sorted(names - set(_complete_at_home(run)))]
    complete = {checkpoint.folder for checkpoint in checkpoints(run.folder)}
    return [folder for folder in sorted((run.folder / CHECKPOINTS).iterdir()) if folder not in complete]


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); delete its folder to use an older checkpoint"
        ) from error
