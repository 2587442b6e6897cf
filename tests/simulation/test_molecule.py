import numpy as np
import pytest

from cryoformer_dist.config.simulation import HingeSource, ModelsSource, MorphSource, PhantomSource
from cryoformer_dist.errors import ConfigError, CryoFormerWarning
from cryoformer_dist.simulation.molecule import (
    HingedMolecule,
    PathMolecule,
    build_molecule,
    enclosing_sphere,
    freest_axis,
    rotation_about,
)


def write_chain(path, chains, skip=()):
    """PDB of carbon atoms, one per residue."""
    rows = [
        f"ATOM  {serial:>5}  CA  ALA {chain}{number:>4}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
        for serial, (chain, number, (x, y, z)) in enumerate(chains)
        if (chain, number) not in skip
    ]
    path.write_text("\n".join([*rows, "END", ""]))
    return path


@pytest.fixture
def residues():
    generator = np.random.default_rng(3)
    fixed = [("F", n, xyz) for n, xyz in enumerate(generator.uniform(-25, 5, (40, 3)), start=1)]
    arm = [("M", n, xyz) for n, xyz in enumerate(generator.uniform(8, 28, (30, 3)), start=1)]
    return fixed + arm


@pytest.fixture
def hinge(tmp_path, residues):
    path = write_chain(tmp_path / "model.pdb", residues)
    return HingeSource(
        kind="hinge", model=path, moving=("M:2-30",), hinge=("F:40", "M:1"), axis=(0.0, 0.0, 2.0), arc_deg=90
    )


def test_rotation_about_an_axis_is_right_handed_and_keeps_it():
    quarter = rotation_about(np.asarray([0.0, 0.0, 3.0]), np.asarray([90.0, 180.0]))
    np.testing.assert_allclose(quarter[0] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(quarter[1] @ [0, 0, 1], [0, 0, 1], atol=1e-12)


def test_hinge_turns_only_the_selection_rigidly_about_the_pivot(hinge, residues):
    molecule = build_molecule(hinge)
    start, end = molecule.coordinates_angstrom(np.asarray([0.0, 90.0]))
    file = np.asarray([xyz for _, _, xyz in residues])
    moving = np.arange(70) > 40
    np.testing.assert_array_equal(molecule.moving, moving)
    np.testing.assert_allclose(start - start[0], file - file[0], atol=2e-3)
    np.testing.assert_array_equal(start[~moving], end[~moving])
    pivot = start[[39, 40]].mean(0)
    turned = (start[moving] - pivot) @ np.asarray([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + pivot
    np.testing.assert_allclose(end[moving], turned, atol=1e-9)


def test_full_turn_is_periodic_and_an_arc_is_not(hinge):
    full = build_molecule(hinge.model_copy(update={"arc_deg": 360.0, "start_deg": -90.0}))
    assert (full.period, full.state_range) == (360.0, (-90.0, 270.0))
    np.testing.assert_allclose(*full.coordinates_angstrom(np.asarray([-90.0, 270.0])), atol=1e-9)
    assert build_molecule(hinge).period == 0.0


def test_pivot_may_be_a_point(hinge, residues):
    file = np.asarray([xyz for _, _, xyz in residues])
    point = hinge.model_copy(update={"hinge": (), "hinge_angstrom": tuple(file[[39, 40]].mean(0))})
    states = np.asarray([50.0])
    expected, found = (build_molecule(source).coordinates_angstrom(states) for source in (hinge, point))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_chosen_axis_collides_less_than_an_axis_through_the_rest():
    generator = np.random.default_rng(0)
    body = generator.uniform(-20, 20, (800, 3)) * [1, 1, 0.2]
    arm = generator.uniform(-4, 4, (300, 3)) + np.asarray([0, 0, 25])
    atoms, moving = np.concatenate([body, arm]), np.arange(1100) >= 800
    pivot, span = np.asarray([0.0, 0.0, 5.0]), (0.0, 120.0)
    axis = freest_axis(atoms, moving, pivot, span)
    assert axis == freest_axis(atoms, moving, pivot, span)

    def clashes(direction):
        molecule = HingedMolecule(atoms, np.ones(1100), moving, pivot, np.asarray(direction), span)
        places = molecule.coordinates_angstrom(np.linspace(*span, 9))
        gap = np.linalg.norm(places[:, moving, None] - body[None, None, ::3], axis=-1).min(-1)
        return (gap < 4).sum()

    assert clashes(axis) < clashes((1.0, 0.0, 0.0))
    assert np.degrees(np.arccos(np.asarray(axis)[2])) > 35


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moving": ("X",)}, r"source.moving: selection 'X' holds no atom; the model has F:1-40, M:1-30"),
        ({"hinge": ("F:99",)}, "source.hinge: selection 'F:99' holds no atom"),
        ({"moving": ("F", "M")}, "source.moving: selects every atom"),
    ],
)
def test_empty_selections_are_refused_with_their_key(hinge, change, message):
    with pytest.raises(ConfigError, match=message):
        build_molecule(hinge.model_copy(update=change))


def test_missing_files_are_refused_with_their_key(tmp_path):
    none = tmp_path / "none.pdb"
    with pytest.raises(ConfigError, match=r"source\.model: .*none\.pdb: no such"):
        build_molecule(HingeSource(kind="hinge", model=none, moving=("A",), hinge=("A:1",)))
    with pytest.raises(ConfigError, match=r"source\.first: .*no such"):
        build_molecule(MorphSource(kind="morph", first=none, last=none))
    with pytest.raises(ConfigError, match=r"source\.path: .*no such"):
        build_molecule(ModelsSource(kind="models", path=tmp_path / "none.npz"))


def test_end_states_are_laid_onto_each_other_by_their_core(tmp_path, residues):
    file = np.asarray([xyz for _, _, xyz in residues])
    moved = file.copy()
    moved[40:] += [6.0, 0.0, 0.0]
    turn = rotation_about(np.asarray([1.0, 2.0, 3.0]), np.asarray([40.0]))[0]
    away = moved @ turn.T + [30.0, -10.0, 5.0]
    first = write_chain(tmp_path / "first.pdb", residues)
    last = write_chain(tmp_path / "last.pdb", [(c, n, xyz) for (c, n, _), xyz in zip(residues, away, strict=True)])
    molecule = build_molecule(MorphSource(kind="morph", first=first, last=last, align_on=("F",)))
    start, middle, end = molecule.coordinates_angstrom(np.asarray([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(end - start, moved - file, atol=5e-3)
    np.testing.assert_allclose(middle, (start + end) / 2, atol=1e-9)
    kept = build_molecule(MorphSource(kind="morph", first=first, last=last, align=False))
    start, end = kept.coordinates_angstrom(np.asarray([0.0, 1.0]))
    np.testing.assert_allclose(end - start, away - file, atol=5e-3)


def test_end_states_of_unequal_atoms_keep_the_common_ones_and_say_how_many(tmp_path, residues):
    first = write_chain(tmp_path / "first.pdb", residues, skip={("F", 3)})
    last = write_chain(tmp_path / "last.pdb", residues[::-1], skip={("M", 7), ("M", 8)})
    with pytest.warns(CryoFormerWarning, match="67 of 69 and 68 atoms match"):
        molecule = build_molecule(MorphSource(kind="morph", first=first, last=last))
    start, end = molecule.coordinates_angstrom(np.asarray([0.0, 1.0]))
    assert start.shape == (67, 3)
    np.testing.assert_allclose(start, end, atol=1e-6)


def test_end_states_of_different_molecules_are_refused(tmp_path, residues):
    first = write_chain(tmp_path / "first.pdb", residues)
    last = write_chain(tmp_path / "last.pdb", [("Q" if c == "F" else "R", n, xyz) for c, n, xyz in residues])
    with pytest.raises(ConfigError, match=r"source\.last: 0 of 70 and 70 atoms match"):
        build_molecule(MorphSource(kind="morph", first=first, last=last))


def test_path_goes_through_every_frame_on_straight_lines(tmp_path):
    frames = np.random.default_rng(1).normal(scale=20, size=(5, 30, 3))
    np.savez(tmp_path / "path.npz", coords=frames)
    molecule = build_molecule(ModelsSource(kind="models", path=tmp_path / "path.npz"))
    assert (molecule.frames, molecule.period, molecule.state_range) == (5, 0.0, (0.0, 1.0))
    places = molecule.coordinates_angstrom(np.linspace(0, 1, 9))
    np.testing.assert_allclose(places[::2] - places[0, 0], frames - frames[0, 0], atol=1e-9)
    np.testing.assert_allclose(places[1::2], (places[:-1:2] + places[2::2]) / 2, atol=1e-9)


def test_one_frame_is_refused_because_nothing_would_move(tmp_path):
    np.savez(tmp_path / "path.npz", coords=np.zeros((1, 3, 3)))
    with pytest.raises(ConfigError, match=r"source\.path: .* holds one model"):
        build_molecule(ModelsSource(kind="models", path=tmp_path / "path.npz"))


def test_models_with_other_atoms_are_refused_by_number(tmp_path, residues):
    one, two = (write_chain(tmp_path / f"{n}.pdb", residues[:n]).read_text() for n in (9, 8))
    bodies = [text.replace("END\n", "") for text in (one, one, two)]
    text = "".join(f"MODEL     {i:>4}\n{body}ENDMDL\n" for i, body in enumerate(bodies, start=1))
    (tmp_path / "many.pdb").write_text(text + "END\n")
    with pytest.raises(ConfigError, match=r"model 3 of .* has other atoms than model 2"):
        build_molecule(ModelsSource(kind="models", path=tmp_path / "many.pdb"))


@pytest.mark.parametrize("kind", ["phantom", "path"])
def test_every_state_lies_in_the_enclosing_sphere_and_the_sphere_is_tight(kind):
    if kind == "phantom":
        molecule = build_molecule(PhantomSource())
    else:
        frames = np.random.default_rng(1).normal(scale=20, size=(5, 300, 3))
        molecule = PathMolecule(frames, np.ones(300))
    centre, radius = enclosing_sphere(molecule)
    first, last = molecule.state_range
    places = molecule.coordinates_angstrom(np.linspace(first, last, 23)).reshape(-1, 3)
    assert np.linalg.norm(places - centre, axis=1).max() < radius * 1.005
    widest = np.linalg.norm(places - places[np.linalg.norm(places - centre, axis=1).argmax()], axis=1).max()
    assert radius < widest / np.sqrt(3) * 1.2


def test_real_antibody_swings_a_fab_through_the_full_circle(shared_data):
    source = HingeSource(
        kind="hinge", model=shared_data / "models" / "1hzh.pdb", moving=("H:1-230", "L"), hinge=("H:229-232",)
    )
    molecule = build_molecule(source)
    radius = enclosing_sphere(molecule)[1]
    assert 75 < radius < 100
    first, half = molecule.coordinates_angstrom(np.asarray([0.0, 180.0]))
    moved = np.linalg.norm(half - first, axis=1)
    assert moved[molecule.moving].mean() > 30
    assert moved[~molecule.moving].max() == 0


def test_real_trajectory_of_adenylate_kinase_closes_from_frame_to_frame(shared_data):
    path = shared_data / "derived" / "adk_dims_98frames_heavy.npz"
    molecule = build_molecule(ModelsSource(kind="models", path=path))
    assert (molecule.frames, molecule.weight.min(), molecule.weight.max()) == (98, 6.0, 16.0)
    places = molecule.coordinates_angstrom(np.linspace(0, 1, 98))
    assert np.linalg.norm(np.diff(places, axis=0), axis=-1).mean() < 1.5
    assert np.sqrt(np.square(places[-1] - places[0]).sum(-1).mean()) > 5


def test_real_spike_opens_one_domain_after_alignment_on_its_core(shared_data):
    models = shared_data / "models"
    source = MorphSource(
        kind="morph",
        first=models / "6vxx.pdb",
        last=models / "6vyb.pdb",
        align_on=("A:689-1140", "B:689-1140"),
    )
    with pytest.warns(CryoFormerWarning, match="atoms match"):
        molecule = build_molecule(source)
    start, end = molecule.coordinates_angstrom(np.asarray([0.0, 1.0]))
    moved = np.linalg.norm(end - start, axis=1)
    assert np.median(moved) < 2.0
    assert moved.max() > 35
