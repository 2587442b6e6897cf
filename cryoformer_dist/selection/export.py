"""Selections as files: RELION's .star, cryoSPARC's .cs with its passthrough files, row numbers, and JSON of our own."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.data.selection import Selection, write_selection
from cryoformer_dist.errors import CryoFormerWarning, SelectionError
from cryoformer_dist.io.cryodrgn import write_indices_pkl
from cryoformer_dist.io.cryosparc import select_cs_rows
from cryoformer_dist.io.cryosparc_group import select_passthrough, write_group
from cryoformer_dist.io.particles import NewPoses
from cryoformer_dist.io.relion import select_star_rows
from cryoformer_dist.selection.columns import ParticleColumns

_COPIERS = {".star": select_star_rows, ".cs": select_cs_rows}
_SUFFIXES = (*_COPIERS, ".pkl", ".json")


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """Where the selected particles' own files lie here.

    Attributes
    ----------
    particles
        The particle file; where the selection says when ``None``.
    passthrough
        Of the same cryoSPARC job; written too.
    """

    particles: Path | None = None
    passthrough: tuple[Path, ...] = ()


def export_selection(
    selection: Selection, outputs: Sequence[Path], files: SourceFiles | None = None, poses: NewPoses | None = None
) -> list[Path]:
    """Write a selection for other programs, or for this one; nothing is written unless all of it can be.

    Parameters
    ----------
    selection
        At least one particle.
    outputs
        ``.star`` or ``.cs``, as the particles came: rows of that file in its order, with all that it says of them.
        ``.pkl``: row numbers, as cryoDRGN's ``--ind`` takes them. ``.json``: the selection itself.
    files
        The particles' own files.
    poses
        New ones of some of them; as they are in the file when ``None``.

    Returns
    -------
    list[Path]
        All files that were written.

    Raises
    ------
    SelectionError
        If an output is of another kind, or would replace the particle file; or that file is gone, or not what it was
        when the particles were converted.
    """
    files = files or SourceFiles()
    source = files.particles or Path(selection.source.path)
    if not len(selection):
        raise SelectionError("the selection holds no particle; choose others")
    for output in outputs:
        _refuse_kind(output, source)
    if any(output.suffix in _COPIERS for output in outputs):
        _refuse_changed(selection, source)
    return [path for output in outputs for path in _write(selection, output, source, files.passthrough, poses)]


def find_refined_poses(selection: Selection, columns: ParticleColumns) -> NewPoses:
    """Poses as trained of the selected particles.

    Raises
    ------
    SelectionError
        If training kept the given ones.

    Warns
    -----
    CryoFormerWarning
        If some were not trained on.
    """
    if columns.refined is None:
        raise SelectionError(f"{columns.run.home}: training kept the given poses; leave --refined-poses out")
    trained = np.isin(columns.source_row, selection.source_row)
    if trained.sum() < len(selection):
        warnings.warn(
            f"{len(selection) - trained.sum()} of {len(selection)} selected particles were not trained on by "
            f"{columns.run.home}, and keep their given poses",
            CryoFormerWarning,
            stacklevel=2,
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
    if not source.is_file():
        raise SelectionError(f"{source}: no such file any more; say where it lies with --particles")
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != selection.source.sha256:
        raise SelectionError(
            f"{source}: has changed since its particles were converted, so row numbers may mean others; give the file "
            "as it was with --particles, or convert and train again"
        )


def _write(
    selection: Selection, output: Path, source: Path, passthrough: Sequence[Path], poses: NewPoses | None
) -> list[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".json":
        return [write_selection(output, selection)]
    if output.suffix == ".pkl":
        write_indices_pkl(output, selection.source_row)
        return [output]
    _COPIERS[output.suffix](source, output, selection.source_row, poses)
    return [output, *(_write_group(output, passthrough) if output.suffix == ".cs" else ())]


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
