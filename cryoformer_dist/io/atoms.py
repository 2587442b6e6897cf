"""Atomic models: PDB and mmCIF through gemmi, trajectories in npz."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.errors import ConfigError, CryoFormerError
from cryoformer_dist.storage.array_files import read_arrays

_SELECTION = re.compile(r"^([^:\s]+?)(?::(-?\d+)(?:-(-?\d+))?)?$")

# No structure is as far from its origin.
_FARTHEST_ANGSTROM = 1e5
_HEAVIEST = 118


@dataclass(frozen=True, slots=True)
class AtomicModel:
    """The atoms of one model, in file order.

    Attributes
    ----------
    coordinates_angstrom
        `(atoms, 3)` x, y, z in the file's frame.
    weight
        `(atoms,)` atomic number times occupancy: how strongly the atom scatters.
    chain, residue_number, insertion_code, atom_name
        `(atoms,)` labels, chain and number as the author of the model gave them; empty for a trajectory
        without labels.
    """

    coordinates_angstrom: NDArray[np.float64]
    weight: NDArray[np.float64]
    chain: NDArray[Any]
    residue_number: NDArray[np.int64]
    insertion_code: NDArray[Any]
    atom_name: NDArray[Any]

    def __len__(self) -> int:
        return len(self.weight)

    def select(self, rows: NDArray[Any]) -> "AtomicModel":
        """Only some atoms, by mask or index."""
        return AtomicModel(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def read_structure(path: Path) -> list[AtomicModel]:
    """Every model in a PDB or mmCIF file, without hydrogens, waters and second conformations.

    Parameters
    ----------
    path
        ``.pdb``, ``.cif``, ``.mmcif`` or ``.ent``, also gzipped.

    Raises
    ------
    ConfigError
        If the file is missing, not an atomic model, or holds no atoms.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such atomic model; give the path of a .pdb or .cif file")
    try:
        structure = gemmi.read_structure(str(path))
        structure.remove_hydrogens()
        structure.remove_waters()
        structure.remove_alternative_conformations()
        models = [_list_atoms(model) for model in structure]
    # Names that are no text (UnicodeDecodeError is a ValueError), and residues without a number (TypeError), come to
    # light when they are listed.
    except (RuntimeError, ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{path}: not an atomic model: {str(error)[:200]}; give a .pdb or .cif file") from error
    for model in models:
        _refuse_impossible(path, model)
    if not models or min(len(model) for model in models) == 0:
        raise ConfigError(f"{path}: holds no atoms (hydrogens and waters are left out); give a .pdb or .cif file")
    return models


def _refuse_impossible(path: Path, model: AtomicModel) -> None:
    """Refuse atoms that are nowhere, or scatter less than nothing."""
    far = ~(np.abs(model.coordinates_angstrom) <= _FARTHEST_ANGSTROM).all(axis=1)
    if far.any():
        row = int(np.flatnonzero(far)[0])
        raise ConfigError(
            f"{path}: atom {row + 1} ({_name_atom(model, row)}) is at {model.coordinates_angstrom[row].tolist()}, "
            f"which is not within {_FARTHEST_ANGSTROM:g} A; correct its coordinates"
        )
    bad = ~(model.weight >= 0) | np.isinf(model.weight)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ConfigError(
            f"{path}: atom {row + 1} ({_name_atom(model, row)}) has an occupancy that is negative or no number; "
            "correct it"
        )


def _name_atom(model: AtomicModel, row: int) -> str:
    return f"chain {model.chain[row]}, residue {model.residue_number[row]}, {model.atom_name[row]}"


def _list_atoms(model: Any) -> AtomicModel:
    rows = [
        (*atom.pos.tolist(), atom.element.atomic_number * atom.occ, chain.name, *_number(residue), atom.name)
        for chain in model
        for residue in chain
        for atom in residue
    ]
    x, y, z, weight, chain_name, number, code, name = zip(*rows, strict=True) if rows else ([],) * 8
    return AtomicModel(
        coordinates_angstrom=np.stack([np.asarray(axis, np.float64) for axis in (x, y, z)], axis=-1),
        weight=np.asarray(weight, np.float64),
        chain=np.asarray(chain_name, np.str_),
        residue_number=np.asarray(number, np.int64),
        insertion_code=np.asarray(code, np.str_),
        atom_name=np.asarray(name, np.str_),
    )


def _number(residue: Any) -> tuple[int, str]:
    return residue.seqid.num, residue.seqid.icode.strip()


def read_trajectory(path: Path) -> list[AtomicModel]:
    """Every frame of an npz trajectory.

    Parameters
    ----------
    path
        ``.npz`` with ``coords`` `(frames, atoms, 3)` in angstrom and optionally ``element`` `(atoms,)`,
        symbols or atomic numbers; all atoms weigh the same without it.

    Raises
    ------
    ConfigError
        If the file is missing or not an npz, ``coords`` is missing or of another shape, or an element is
        unknown.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such trajectory; give an .npz with coords (frames, atoms, 3)")
    try:
        arrays = read_arrays(path, "write it with numpy.savez")
        coordinates, element = np.asarray(arrays["coords"], np.float64), arrays.get("element")
    except KeyError as error:
        raise ConfigError(f"{path}: has no array `coords`; store (frames, atoms, 3) in angstrom") from error
    except (CryoFormerError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a trajectory: {error}") from error
    if coordinates.ndim != 3 or coordinates.shape[-1] != 3 or coordinates.size == 0:
        raise ConfigError(f"{path}: coords has shape {coordinates.shape}; store (frames, atoms, 3) in angstrom")
    near = np.abs(coordinates) <= _FARTHEST_ANGSTROM
    if not near.all():
        frame = int(np.argwhere(~near)[0, 0])
        raise ConfigError(
            f"{path}: coords of frame {frame} are not finite, or not within {_FARTHEST_ANGSTROM:g} A; write the "
            "trajectory again"
        )
    atoms = coordinates.shape[1]
    weight = np.ones(atoms) if element is None else _element_weight(np.asarray(element), atoms, path)
    blank = np.full(atoms, "", np.str_)
    first = AtomicModel(coordinates[0], weight, blank, np.zeros(atoms, np.int64), blank, blank)
    return [replace(first, coordinates_angstrom=frame) for frame in coordinates]


def _element_weight(element: NDArray[Any], atoms: int, path: Path) -> NDArray[np.float64]:
    if element.shape != (atoms,):
        raise ConfigError(f"{path}: element has shape {element.shape}, coords {atoms} atoms; store one per atom")
    if element.dtype.kind in "iuf":
        if not ((element >= 0) & (element <= _HEAVIEST)).all():
            raise ConfigError(f"{path}: element holds a number that is no atomic number; store 1 to {_HEAVIEST}")
        return element.astype(np.float64)
    if element.dtype.kind != "U":
        raise ConfigError(f"{path}: element holds {element.dtype}; store chemical symbols or atomic numbers")
    names, inverse = np.unique(element, return_inverse=True)
    numbers = np.asarray([gemmi.Element(str(name)).atomic_number for name in names], np.float64)
    if (numbers == 0).any():
        raise ConfigError(f"{path}: unknown element {str(names[numbers == 0][0])!r}; store chemical symbols")
    return numbers[inverse]


def select_atoms(model: AtomicModel, selections: Sequence[str]) -> NDArray[np.bool_]:
    """Mask the atoms in any selection ``chain``, ``chain:residue`` or ``chain:first-last`` (both ends in).

    Returns
    -------
    mask
        `(atoms,)`.

    Raises
    ------
    ConfigError
        If a selection is misspelt or holds no atom; the message names the chains there are.
    """
    mask = np.zeros(len(model), np.bool_)
    for selection in selections:
        parts = _SELECTION.match(selection)
        if parts is None:
            raise ConfigError(f"selection {selection!r}: write chain, chain:residue or chain:first-last, as in H:1-230")
        chain, first, last = parts.groups()
        part = model.chain == chain
        if first is not None:
            part &= (model.residue_number >= int(first)) & (model.residue_number <= int(last or first))
        if not part.any():
            raise ConfigError(f"selection {selection!r} holds no atom; the model has {_chains(model)}")
        mask |= part
    return mask


def _chains(model: AtomicModel) -> str:
    names = sorted(set(model.chain.tolist()))
    numbers = {name: model.residue_number[model.chain == name] for name in names}
    return ", ".join(f"{name or '(unnamed)'}:{n.min()}-{n.max()}" for name, n in numbers.items())


def match_atoms(first: AtomicModel, second: AtomicModel) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the atoms that two models share, by chain, residue number and atom name, in the first's order.

    Returns
    -------
    rows_of_first, rows_of_second
        `(matched,)` each; empty when the models share nothing. An atom that a file names twice counts once.
    """
    place: dict[tuple[str, int, str, str], int] = {}
    for row, label in enumerate(_labels(second)):
        place.setdefault(label, row)
    pairs = [(row, place.pop(label)) for row, label in enumerate(_labels(first)) if label in place]
    table = np.asarray(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _labels(model: AtomicModel) -> list[tuple[str, int, str, str]]:
    columns = (model.chain, model.residue_number, model.insertion_code, model.atom_name)
    return list(zip(*(column.tolist() for column in columns), strict=True))
