"""Everything a run needs to go on as if it had never stopped, in one folder that appears whole or not at all."""

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from cryoformer_dist.data.order import Consumed
from cryoformer_dist.errors import CheckpointError, CheckpointNotWrittenError, DamagedCheckpointError
from cryoformer_dist.ranks import gather_objects
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
from cryoformer_dist.storage.checksums import FileSum, find_change, sum_content, sum_file
from cryoformer_dist.storage.places import Place, client_errors, remove_folder, synchronise
from cryoformer_dist.storage.records import as_json, from_json
from cryoformer_dist.storage.retry import StorageRetry
from cryoformer_dist.storage.working_folder import WorkingFolder

_SCHEMA_VERSION = 4
_VERSION, _SEAL = "schema_version", "crc32"


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
class _Manifest:
    """What a checkpoint says of itself: how far training had come, what wrote it, and what each of its files is."""

    position: Position
    torch: str
    files: Mapping[str, FileSum]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was written to its end; whether it still is what was written, `find_damage` says."""

    folder: Path

    @cached_property
    def _manifest(self) -> _Manifest:
        return _read_manifest(self.folder)

    @property
    def position(self) -> Position:
        """How far training had come."""
        return self._manifest.position

    @property
    def engine_folder(self) -> Path:
        """Where the engine keeps its state."""
        return self.folder / CHECKPOINT_ENGINE

    def find_damage(self, part: int = 0, parts: int = 1) -> str | None:
        """What is wrong with the manifest, or with one of this part of the files; ``None`` if nothing.

        Raises
        ------
        CheckpointError
            If another version of the program wrote it.
        """
        try:
            files = self._manifest.files
        except DamagedCheckpointError as error:
            return str(error)
        for name in sorted(files)[part::parts]:
            change = find_change(self.folder / name, files[name])
            if change is not None:
                return f"{name} {change}"
        return None

    def read_weights(self) -> dict[str, Tensor]:
        """See `LearnedState`."""
        return read_tensors(self.folder / CHECKPOINT_MODEL)  # type: ignore[no-any-return]

    def read_tables(self) -> TableStates:
        """See `LearnedState`."""
        return read_tensors(self.folder / CHECKPOINT_TABLES)  # type: ignore[no-any-return]

    def read_occupancy(self) -> OccupancyState:
        """See `LearnedState`."""
        return read_tensors(self.folder / CHECKPOINT_OCCUPANCY)  # type: ignore[no-any-return]


def checkpoints(run: Path) -> list[Checkpoint]:
    """Checkpoints of a run that were written to their end, oldest first; half-written ones are not among them."""
    folders = sorted((run / CHECKPOINTS).glob("step-*"))
    return [Checkpoint(folder) for folder in folders if (folder / MANIFEST).is_file()]


def complete_checkpoints(run: WorkingFolder) -> list[str]:
    """Names in the run directory of the checkpoints that home holds, oldest first."""
    if not run.is_copy:
        return [checkpoint.folder.relative_to(run.folder).as_posix() for checkpoint in checkpoints(run.folder)]
    complete = f"{CHECKPOINTS}/step-*/{MANIFEST}"
    return sorted(
        name.removesuffix(f"/{MANIFEST}") for name in run.names_at_home(CHECKPOINTS) if fnmatch(name, complete)
    )


def _read_manifest(folder: Path) -> _Manifest:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        seal = content.pop(_SEAL, None)
        sealed = seal == sum_content(content)
        version = content.pop(_VERSION)
        if sealed and version == _SCHEMA_VERSION:
            manifest: _Manifest = from_json(_Manifest, content)
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{MANIFEST} is not readable ({error})") from error
    # Earlier versions had no seal.
    if sealed or (seal is None and version != _SCHEMA_VERSION):
        raise CheckpointError(
            f"{folder}: schema {version}, this version of cryoformer-dist reads {_SCHEMA_VERSION}; use the version "
            "that wrote it"
        )
    raise DamagedCheckpointError(f"{MANIFEST} is not what was written")


def _write_manifest(folder: Path, manifest: _Manifest) -> None:
    content = {_VERSION: _SCHEMA_VERSION, **as_json(manifest)}
    (folder / MANIFEST).write_text(json.dumps(content | {_SEAL: sum_content(content)}, indent=1))


def newest_step(run: WorkingFolder) -> int | None:
    """Step of the newest checkpoint that is complete at home, which is not brought here; ``None`` before one."""
    names = _complete_at_home(run) if run.is_copy else [each.folder.name for each in checkpoints(run.folder)]
    return int(names[-1].rpartition("-")[2]) if names else None


def write_checkpoint(
    run: WorkingFolder,
    position: Position,
    leader: bool,
    save_engine: Callable[[Path], Iterable[Path]],
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
        Writes the engine's state into a folder, and says which files this rank wrote; called on every rank.
    learned
        Called on the leader, which writes it.
    keep
        How many checkpoints stay; of those of later steps none, for the work that led to them was lost.
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
        writing.gather_sums()
        retry.run(writing.appear)
    except CheckpointNotWrittenError:
        writing.give_up()
        raise
    retry.run(lambda: _keep_newest(run, writing.name, keep) if leader else None)
    return writing.final


@dataclass(frozen=True, slots=True)
class _Writing:
    """A checkpoint on its way home; each step can be repeated after it has failed."""

    run: WorkingFolder
    position: Position
    leader: bool
    save_engine: Callable[[Path], Iterable[Path]]
    learned: Callable[[], LearnedState]
    sums: dict[str, FileSum] = field(default_factory=dict)

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
        self._deliver(self.save_engine(self.partial / CHECKPOINT_ENGINE))

    def rest(self) -> None:
        if not self.leader:
            return
        learned = self.learned()
        paths = [self.partial / name for name in (CHECKPOINT_MODEL, CHECKPOINT_TABLES, CHECKPOINT_OCCUPANCY)]
        for path, state in zip(paths, (learned.weights, learned.tables, learned.occupancy), strict=True):
            torch.save(state, path)
        self._deliver(paths)

    def gather_sums(self) -> None:
        for sums in gather_objects(self.sums):
            self.sums.update(sums)

    def appear(self) -> None:
        if self.leader:
            _write_manifest(self.partial, _Manifest(self.position, torch.__version__, self.sums))
            self._send(self.partial / MANIFEST)
            if not self.run.is_copy:
                remove_folder(self.final, first=MANIFEST)
                self.partial.rename(self.final)
        self.run.forget(self.name)

    def _deliver(self, paths: Iterable[Path]) -> None:
        """See that files are at home, and note what they are: all that is read of them later must be just that."""
        for path in sorted(paths):
            self.sums[path.relative_to(self.partial).as_posix()] = sum_file(path)
            self._send(path)

    def _send(self, path: Path) -> None:
        # On a network's file system some errors are not told before.
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


def _keep_newest(run: WorkingFolder, newest: str, keep: int) -> None:
    complete = complete_checkpoints(run)
    # Later ones are there when training went on before a damaged one.
    kept = [name for name in complete if name <= newest][-keep:]
    for name in complete:
        if name not in kept:
            remove_folder(run.home / name, first=MANIFEST)
            run.forget(name)
    for left_over in _incomplete(run):
        remove_folder(left_over)


def _incomplete(run: WorkingFolder) -> list[Place]:
    """What a kill left in the middle of being written or removed; nobody writes checkpoints when this is asked."""
    complete = set(complete_checkpoints(run))
    if run.is_copy:
        names = {"/".join(name.split("/")[:2]) for name in run.names_at_home(CHECKPOINTS)}
    else:
        names = {f"{CHECKPOINTS}/{folder.name}" for folder in (run.folder / CHECKPOINTS).iterdir()}
    return [run.home / name for name in sorted(names - complete)]


def read_tensors(path: Path, device: torch.device | str = "cpu") -> Any:
    """What ``torch.save`` wrote, without unpickling.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # What torch says of a file that is no archive of its own advises to run whatever is in it.
        reason = "not a file of tensors" if isinstance(error, pickle.UnpicklingError) else str(error).split("\n")[0]
        raise CheckpointError(f"{path}: cannot be read ({reason}); delete its folder to use an older one") from error
