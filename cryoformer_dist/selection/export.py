"""Selections as files: RELION's .star, cryoSPARC's .cs with its passthrough files, cryoDRGN's pickles, our own JSON.

Nothing is written unless all of it can be.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.data.selection import ParticleFile, Selection, write_selection
from cryoformer_dist.errors import CryoFormerWarning, SelectionError
from cryoformer_dist.io.cryodrgn import write_indices_pkl
from cryoformer_dist.io.cryosparc import select_cs_rows
from cryoformer_dist.io.cryosparc_group import select_passthrough, write_group
from cryoformer_dist.io.particles import NewPoses
from cryoformer_dist.io.relion import select_star_rows
from cryoformer_dist.runs.layout import SELECTION, SELECTIONS
from cryoformer_dist.selection.columns import ParticleColumns
from cryoformer_dist.selection.cryodrgn_files import gather_pickles, write_pickles
from cryoformer_dist.storage.places import Place
from cryoformer_dist.storage.working_folder import WorkingFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COPIERS = {".star": select_star_rows, ".cs": select_cs_rows}
_SUFFIXES = (*_COPIERS, ".pkl", ".json")


@dataclass(frozen=True, slots=True)
class Export:
    """What is to be written, and where the particles' own files lie here.

    Attributes
    ----------
    outputs
        ``.star`` or ``.cs``, as the particles came: rows of that file in its order, with all that it says of them.
        ``.pkl``: row numbers, as cryoDRGN's ``--ind`` takes them. ``.json``: the selection itself.
    particles
        The particle file; where the selection says when ``None``.
    passthrough
        Of the same cryoSPARC job; written beside a ``.cs``.
    refined_poses
        Poses as trained, not as given.
    cryodrgn
        Folder for cryoDRGN's ``poses.pkl``, ``ctf.pkl``, ``ind.pkl`` and ``z.pkl``.
    """

    outputs: tuple[Path, ...] = ()
    particles: Path | None = None
    passthrough: tuple[Path, ...] = ()
    refined_poses: bool = False
    cryodrgn: Path | None = None


def export_selection(selection: Selection, export: Export, columns: ParticleColumns | None = None) -> list[Path]:
    """Write a selection for other programs, or for this one; all files that were written.

    Parameters
    ----------
    selection
        At least one particle.
    export
        What to write.
    columns
        Of the run, which knows poses as trained and latents; only where these are to be written.

    Raises
    ------
    SelectionError
        If an output is of another kind, or would replace the particle file; that file is gone, or not what it was when
        the particles were converted; or refined poses are asked for of a run that kept the given ones.
    ValueError
        If columns are needed and not given.
    """
    if columns is None and (export.refined_poses or export.cryodrgn is not None):
        raise ValueError("refined poses and cryoDRGN's files need the columns of the run: give them")
    source = export.particles or Path(selection.source.path)
    if not len(selection):
        raise SelectionError("the selection holds no particle; choose others")
    for output in export.outputs:
        _refuse_kind(output, source)
    if any(output.suffix in _COPIERS for output in export.outputs):
        _refuse_changed(selection, source)
    poses: NewPoses | None = None
    pickled: list[Path] = []
    if columns is not None and export.refined_poses:
        poses = _find_refined_poses(selection, columns)
    if columns is not None and export.cryodrgn is not None:
        pickled = write_pickles(export.cryodrgn, gather_pickles(selection, columns, poses))
    return [*(path for output in export.outputs for path in _write(selection, output, source, export, poses)), *pickled]


def refuse_name(name: str) -> None:
    """See that a selection may be called so.

    Raises
    ------
    SelectionError
        If the name cannot be one of a file.
    """
    if not _NAME.fullmatch(name):
        raise SelectionError(f"{name!r} cannot be the name of a selection: use letters, digits, dots, - and _")


def keep_selection(working: WorkingFolder, name: str, selection: Selection) -> Place:
    """Write a selection beside the run it was made of, in place of an earlier one of that name; where it is kept.

    Raises
    ------
    SelectionError
        If the name cannot be one of a file.
    """
    refuse_name(name)
    path = working.folder / SELECTIONS / SELECTION.format(name=name)
    working.send(write_selection(path, selection).relative_to(working.folder).as_posix())
    kept = working.at_home(path)
    return kept.absolute() if isinstance(kept, Path) else kept


def _find_refined_poses(selection: Selection, columns: ParticleColumns) -> NewPoses:
    """Poses as trained of the selected particles; those that were not trained on are told."""
    if columns.refined is None:
        raise SelectionError(f"{columns.run.home}: training kept the given poses; leave --refined-poses out")
    trained = np.isin(columns.source_row, selection.source_row)
    if trained.sum() < len(selection):
        warnings.warn(
            f"{len(selection) - trained.sum()} of {len(selection)} selected particles were not trained on by "
            f"{columns.run.home}, and keep their given poses",
            CryoFormerWarning,
            stacklevel=3,
        )
    rotation, shift = columns.refined.rotation.numpy(), columns.refined.shift_angstrom.numpy()
    return NewPoses(columns.source_row[trained], rotation[trained], shift[trained])


def _refuse_kind(output: Path, source: Path) -> None:
    kind = output.suffix
    if kind not in _SUFFIXES:
        raise SelectionError(f"{output}: unknown kind {kind!r}; write {', '.join(_SUFFIXES)}")
    if kind in _COPIERS and kind != source.suffix.lower():
        raise SelectionError(
            f"{output}: the particles came from {source}, whose columns have no place in a {kind}; write "
            f"{source.suffix if source.suffix.lower() in _COPIERS else '.pkl (row numbers)'}"
        )
    if output.resolve() == source.resolve():
        raise SelectionError(f"{output}: is the particle file itself; write to another name")


def _refuse_changed(selection: Selection, source: Path) -> None:
    """See that rows still mean what they meant."""
    if ParticleFile.at(source).sha256 != selection.source.sha256:
        raise SelectionError(
            f"{source}: has changed since its particles were converted, so row numbers may mean others; give the file "
            "as it was with --particles, or convert and train again"
        )


def _write(selection: Selection, output: Path, source: Path, export: Export, poses: NewPoses | None) -> list[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".json":
        return [write_selection(output, selection)]
    if output.suffix == ".pkl":
        write_indices_pkl(output, selection.source_row)
        return [output]
    _COPIERS[output.suffix](source, output, selection.source_row, poses)
    return [output, *(_write_group(output, export.passthrough) if output.suffix == ".cs" else ())]


def _write_group(particles: Path, passthrough: Sequence[Path]) -> list[Path]:
    """Passthrough files of a ``.cs`` beside it, and the group that names them all."""
    written = []
    for number, path in enumerate(passthrough, start=1):
        beside = particles.with_name(f"{particles.stem}_passthrough{number if len(passthrough) > 1 else ''}.cs")
        select_passthrough(path, beside, particles)
        written.append(beside)
    group = particles.with_suffix(".csg")
    write_group(group, [particles, *written])
    return [*written, group]
