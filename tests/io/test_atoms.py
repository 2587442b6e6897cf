from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.atoms import match_atoms, read_structure, read_trajectory, select_atoms

ATOM = (
    "{kind:<6}{serial:>5} {name:<4}{alt:1}{residue:>3} {chain}{number:>4}{code:1}   "
    "{x:8.3f}{y:8.3f}{z:8.3f}{occ:6.2f}{b:6.2f}          {element:>2}"
)


def atom_line(serial, name, chain, number, xyz, element="C", **more):
    values = {"kind": "ATOM", "alt": " ", "residue": "ALA", "code": " ", "occ": 1.0, "b": 20.0} | more
    return ATOM.format(
        serial=serial,
        name=f" {name}",
        chain=chain,
        number=number,
        x=xyz[0],
        y=xyz[1],
        z=xyz[2],
        element=element,
        **values,
    )


def write_pdb(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join([*lines, "END", ""]))
    return path


@pytest.fixture
def small(tmp_path):
    return write_pdb(
        tmp_path / "small.pdb",
        [
            atom_line(1, "N", "H", 1, (1.0, 2.0, 3.0), "N"),
            atom_line(2, "CA", "H", 1, (2.0, 2.5, -3.25), alt="A", occ=0.5),
            atom_line(3, "CA", "H", 1, (9.0, 9.0, 9.0), alt="B", occ=0.5),
            atom_line(4, "HA", "H", 1, (2.0, 3.0, 3.0), "H"),
            atom_line(5, "CA", "H", 2, (4.0, 0.0, 0.0)),
            atom_line(6, "CA", "H", 2, (5.0, 0.0, 0.0), code="A"),
            atom_line(7, "S", "L", -3, (0.0, 0.0, 7.0), "S"),
            atom_line(8, "O", "W", 900, (0.0, 5.0, 7.0), "O", kind="HETATM", residue="HOH"),
        ],
    )


def test_hydrogens_waters_and_second_conformations_are_left_out(small):
    (model,) = read_structure(small)
    assert model.atom_name.tolist() == ["N", "CA", "CA", "CA", "S"]
    np.testing.assert_allclose(model.coordinates_angstrom[1], [2.0, 2.5, -3.25])


def test_weight_is_atomic_number_times_occupancy(small):
    (model,) = read_structure(small)
    np.testing.assert_allclose(model.weight, [7.0, 3.0, 6.0, 6.0, 16.0])


def test_pdb_and_mmcif_give_the_same_atoms(small):
    import gemmi

    structure = gemmi.read_structure(str(small))
    cif = small.with_suffix(".cif")
    structure.make_mmcif_document().write_file(str(cif))
    (from_pdb,), (from_cif,) = read_structure(small), read_structure(cif)
    np.testing.assert_allclose(from_pdb.coordinates_angstrom, from_cif.coordinates_angstrom, atol=1e-3)
    for name in ("chain", "residue_number", "insertion_code", "atom_name", "weight"):
        assert getattr(from_pdb, name).tolist() == getattr(from_cif, name).tolist()


def test_every_model_of_a_file_is_read(tmp_path):
    lines = []
    for number in (1, 2, 3):
        lines += [f"MODEL     {number:>4}", atom_line(1, "CA", "A", 1, (float(number), 0.0, 0.0)), "ENDMDL"]
    models = read_structure(write_pdb(tmp_path / "many.pdb", lines))
    assert [model.coordinates_angstrom[0, 0] for model in models] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("selections", "rows"),
    [
        (["H"], [0, 1, 2, 3]),
        (["H:2"], [2, 3]),
        (["H:1-1", "L"], [0, 1, 4]),
        (["L:-3"], [4]),
        (["L:-5--1"], [4]),
    ],
)
def test_selection_takes_chain_and_residue_range_with_both_ends(small, selections, rows):
    (model,) = read_structure(small)
    assert np.flatnonzero(select_atoms(model, selections)).tolist() == rows


def test_empty_selection_names_the_chains_there_are(small):
    (model,) = read_structure(small)
    with pytest.raises(ConfigError, match=r"'H:7-9' holds no atom; the model has H:1-2, L:-3--3"):
        select_atoms(model, ["L", "H:7-9"])
    with pytest.raises(ConfigError, match="write chain"):
        select_atoms(model, ["H:seven"])


def test_atoms_match_by_name_whatever_their_order(small):
    (model,) = read_structure(small)
    order = np.asarray([4, 3, 0, 2])
    rows, partners = match_atoms(model, model.select(order))
    assert rows.tolist() == [0, 2, 3, 4]
    assert order[partners].tolist() == rows.tolist()


def test_insertion_codes_keep_residues_apart(small):
    (model,) = read_structure(small)
    rows, partners = match_atoms(model.select(np.asarray([2])), model.select(np.asarray([3])))
    assert len(rows) == len(partners) == 0


def test_trajectory_keeps_frames_and_weighs_by_element(tmp_path):
    frames = np.random.default_rng(0).normal(size=(3, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "path.npz", coords=frames, element=np.asarray(["C", "FE"]))
    models = read_trajectory(tmp_path / "path.npz")
    np.testing.assert_allclose([model.coordinates_angstrom for model in models], frames)
    assert models[2].weight.tolist() == [6.0, 26.0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"xyz": np.zeros((2, 2, 3))}, "no array `coords`"),
        ({"coords": np.zeros((2, 2))}, r"shape \(2, 2\)"),
        ({"coords": np.full((2, 2, 3), np.nan)}, "frame 0 are not finite"),
        ({"coords": np.zeros((2, 2, 3)), "element": np.asarray(["C"])}, "one per atom"),
        ({"coords": np.zeros((2, 2, 3)), "element": np.asarray(["C", "Qq"])}, "unknown element 'Qq'"),
        ({"coords": np.asarray([{"a": 1}], dtype=object)}, "damaged or of another kind"),
    ],
)
def test_unfit_trajectory_is_refused_by_name(tmp_path, arrays, message):
    np.savez(tmp_path / "path.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        read_trajectory(tmp_path / "path.npz")


def test_missing_or_wrong_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such atomic model"):
        read_structure(tmp_path / "none.pdb")
    with pytest.raises(ConfigError, match="no such trajectory"):
        read_trajectory(tmp_path / "none.npz")
    (tmp_path / "text.txt").write_text("not atoms")
    with pytest.raises(ConfigError, match="not an atomic model"):
        read_structure(tmp_path / "text.txt")
    with pytest.raises(ConfigError, match="holds no atoms"):
        read_structure(write_pdb(tmp_path / "empty.pdb", []))


def test_real_antibody_has_its_chains(shared_data):
    (model,) = read_structure(shared_data / "models" / "1hzh.pdb")
    assert {"H", "K", "L", "M"} <= set(model.chain.tolist())
    fab = select_atoms(model, ["H:1-230", "L"])
    assert 3000 < fab.sum() < 3600


@pytest.mark.parametrize("damage", [b"     inf", b"   1e+09"])
def test_an_atom_that_is_nowhere_is_named(tmp_path, damage):
    line = b"ATOM      1  CA  ALA A   1      11.000  12.000  13.000  1.00  0.00           C  "
    (tmp_path / "a.pdb").write_bytes(line[:30] + damage + line[38:] + b"\nEND\n")
    with pytest.raises(ConfigError, match=r"a\.pdb: (atom 1 \(chain A, residue 1, CA\) is at|not an atomic model)"):
        read_structure(tmp_path / "a.pdb")


@pytest.mark.parametrize("residue", [b"\xff   1", b"A    "])
def test_residues_whose_name_is_no_text_or_without_a_number_are_refused(tmp_path, residue):
    line = b"ATOM      1  CA  ALA " + residue + b"      11.000  12.000  13.000  1.00  0.00           C  \nEND\n"
    (tmp_path / "a.pdb").write_bytes(line)
    with pytest.raises(ConfigError, match=r"a\.pdb: not an atomic model"):
        read_structure(tmp_path / "a.pdb")
