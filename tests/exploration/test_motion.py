import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoformer_dist.config.simulation import PhantomSource
from cryoformer_dist.exploration.motion import describe_motion, measure_imbalance, tell_imbalance, tell_motion
from cryoformer_dist.simulation.imaging import AtomImager
from cryoformer_dist.simulation.molecule import HingedMolecule, PathMolecule, build_molecule

BOX, LENGTH = 32, 230.0
VOXEL = LENGTH / BOX


def draw(molecule: HingedMolecule | PathMolecule, states: list[float], length: float = LENGTH) -> np.ndarray:
    imager = AtomImager(molecule, BOX, length, 0.8 * length / BOX)
    return np.stack([imager.volume(state, BOX).numpy() for state in states])


@pytest.fixture(scope="module")
def antibody() -> HingedMolecule:
    molecule = build_molecule(PhantomSource(arc_deg=100))
    assert isinstance(molecule, HingedMolecule)
    return molecule


def test_an_arm_that_swings_is_told_with_angle_axis_and_hinge(antibody: HingedMolecule) -> None:
    (part,) = describe_motion(draw(antibody, [0.0, 100.0]), VOXEL)
    assert part.angle_deg == pytest.approx(100, rel=0.02)
    assert np.dot(part.axis, antibody.axis) > 0.999
    assert part.hinge_angstrom is not None
    off = np.subtract(part.hinge_angstrom, antibody.pivot_angstrom)
    assert np.linalg.norm(off - off @ antibody.axis * antibody.axis) < 1.5
    assert np.linalg.norm(off) < 6
    moved = antibody.weight * antibody.moving
    assert part.share == pytest.approx(moved.sum() / antibody.weight.sum(), abs=0.06)
    ends = antibody.coordinates_angstrom(np.array([0.0, 100.0]))
    far = np.linalg.norm(ends[1] - ends[0], axis=1)
    assert part.mean_angstrom == pytest.approx(np.average(far, weights=moved), rel=0.1)
    assert part.agreement_after > 0.98 > part.agreement_before
    told = " ".join(tell_motion((part,)))
    assert "turns by 100 degrees" in told
    assert "of the molecule" in told


def three_domains() -> tuple[PathMolecule, np.ndarray]:
    """A core with two lids that close over it by 50 and 30 degrees; which atoms are of which."""
    rng = np.random.default_rng(0)
    # Few atoms: domains have a shape.
    middles, counts = np.array([[0.0, 0, 0], [26, 8, 0], [-8, 24, 6]]), (60, 24, 20)
    domain = np.repeat(np.arange(3), counts)
    size = np.array([[11.0, 9, 10], [6, 9, 5], [8, 5, 6]])
    atoms = middles[domain] + size[domain] * rng.normal(size=(len(domain), 3)).clip(-1.5, 1.5)
    frames = []
    for part in np.linspace(0, 1, 5):
        moved = atoms.copy()
        for number, degrees, axis, hinge in ((1, 50, [0, 0, 1], [14, 0, 0]), (2, 30, [1, 0, 0.5], [-4, 12, 0])):
            direction = np.array(axis) / np.linalg.norm(axis)
            rotation = Rotation.from_rotvec(np.deg2rad(part * degrees) * direction).as_matrix()
            inside = domain == number
            moved[inside] = (atoms[inside] - hinge) @ rotation.T + hinge
        frames.append(moved)
    return PathMolecule(np.stack(frames), np.ones(len(atoms))), domain


def test_the_larger_of_two_motions_that_overlap_their_first_places_is_told() -> None:
    molecule, domain = three_domains()
    larger, smaller = describe_motion(draw(molecule, [0.0, 0.25, 0.5, 0.75, 1.0], 110.0), 110 / BOX)
    assert larger.angle_deg == pytest.approx(50, abs=5)
    assert smaller.angle_deg < larger.angle_deg
    centres = [molecule.frames_angstrom[0][domain == each].mean(axis=0) for each in range(3)]
    assert np.linalg.norm(np.subtract(centres, larger.centre_angstrom), axis=1).argmin() == 1


def test_what_stands_still_or_only_shifts_has_no_hinge(antibody: HingedMolecule) -> None:
    first = draw(antibody, [0.0])[0]
    assert describe_motion(np.stack([first, first]), VOXEL) == ()
    assert tell_motion(()) == ["no part moves as a whole, as far as the maps show"]
    atoms = antibody.atoms_angstrom
    frames = np.stack([atoms, atoms + 20 * antibody.axis * antibody.moving[:, None]])
    (part,) = describe_motion(draw(PathMolecule(frames, antibody.weight), [0.0, 1.0]), VOXEL)
    assert part.angle_deg < 2
    assert part.hinge_angstrom is None
    assert part.mean_angstrom == pytest.approx(20, abs=2)
    assert "shifts along" in tell_motion((part,))[1]


def test_the_way_back_is_the_same_turn_the_other_way_round(antibody: HingedMolecule) -> None:
    (part,) = describe_motion(draw(antibody, [80.0, 40.0, 0.0]), VOXEL)
    assert part.angle_deg == pytest.approx(80, rel=0.02)
    assert np.dot(part.axis, antibody.axis) < -0.999


def test_density_that_comes_or_goes_is_told_apart_from_density_that_moves(antibody: HingedMolecule) -> None:
    swinging = draw(antibody, [0.0, 100.0])
    assert abs(measure_imbalance(swinging)) < 0.05
    assert tell_imbalance(measure_imbalance(swinging)) == []
    left = np.arange(BOX) < BOX // 2
    without = np.stack([swinging[0], swinging[0] * left])
    assert measure_imbalance(without) == pytest.approx(-1)
    assert measure_imbalance(without[::-1]) == pytest.approx(1)
    assert "100% of the change is density that goes" in tell_imbalance(measure_imbalance(without))[0]
    assert measure_imbalance(np.stack([swinging[0], swinging[0]])) == 0
