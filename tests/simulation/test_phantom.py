import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from cryoformer_dist.config.simulation import PhantomSource
from cryoformer_dist.simulation.molecule import build_molecule, enclosing_sphere
from cryoformer_dist.simulation.phantom import antibody_phantom


@pytest.fixture(scope="module")
def phantom():
    return build_molecule(PhantomSource())


def blurred_map(atoms, weight, box=48, pixel=5.0):
    """Atoms counted on a coarse grid and blurred, to compare shapes and not atoms."""
    index = np.round(atoms / pixel).astype(int) + box // 2
    grid = np.zeros((box,) * 3)
    np.add.at(grid, tuple(index.T), weight)
    return gaussian_filter(grid, 1.4)


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def principal_frames(atoms, weight):
    """The four right-handed frames of the axes of inertia, rows unit vectors."""
    axes = np.linalg.svd((atoms * weight[:, None]).T @ atoms)[2]
    axes[2] *= np.linalg.det(axes)
    return [np.diag([a, b, a * b]) @ axes for a, b in itertools.product((1, -1), repeat=2)]


def best_overlay(atoms, weight, other):
    """Correlation after the best of many rotations about the centre of mass, the promising ones refined."""
    centred, moved = (x - np.average(x, axis=0, weights=weight) for x in (atoms, other))
    target = blurred_map(centred, weight)
    frames = [f.T @ g for f in principal_frames(centred, weight)[:1] for g in principal_frames(moved, weight)]
    trials = [*frames, *Rotation.random(30, random_state=0).as_matrix()]
    scored = sorted(trials, key=lambda r: -correlation(target, blurred_map(moved @ r.T, weight)))[:2]
    generator = np.random.default_rng(0)
    best = 0.0
    for rotation in scored:
        score = correlation(target, blurred_map(moved @ rotation.T, weight))
        for degrees in np.geomspace(25, 3, 40):
            turn = Rotation.from_rotvec(np.deg2rad(degrees) * generator.standard_normal(3)).as_matrix() @ rotation
            trial = correlation(target, blurred_map(moved @ turn.T, weight))
            if trial > score:
                score, rotation = trial, turn
        best = max(best, score)
    return best


def test_phantom_is_always_the_same_molecule():
    antibody_phantom.cache_clear()
    first = antibody_phantom()
    antibody_phantom.cache_clear()
    np.testing.assert_array_equal(first.coordinates_angstrom, antibody_phantom().coordinates_angstrom)
    assert 2000 < len(first.weight) < 5000
    assert (first.weight > 0).all()
    assert first.moving.any()
    assert not first.moving.all()


def test_phantom_has_the_size_of_an_antibody_in_every_state(phantom):
    for state in np.linspace(0, 100, 6):
        atoms = phantom.coordinates_angstrom(np.asarray([state]))[0]
        radius = np.linalg.norm(atoms, axis=1).max()
        directions = np.random.default_rng(0).normal(size=(3, 200))
        extent = np.ptp(atoms @ (directions / np.linalg.norm(directions, axis=0)), axis=0).max()
        assert 140 < extent < 175
        assert radius < 0.40 * 230
    assert enclosing_sphere(build_molecule(PhantomSource(arc_deg=360)))[1] < 0.40 * 230


def test_swinging_arm_never_runs_into_the_rest(phantom):
    for state in np.linspace(0, 100, 11):
        atoms = phantom.coordinates_angstrom(np.asarray([state]))[0]
        assert cKDTree(atoms[~phantom.moving]).query(atoms[phantom.moving])[0].min() > 4.0


def test_only_one_arm_moves_and_it_moves_far(phantom):
    first, last = phantom.coordinates_angstrom(np.asarray([0.0, 100.0]))
    distance = np.linalg.norm(last - first, axis=1)
    assert distance[~phantom.moving].max() == 0
    assert distance[phantom.moving].max() > 70
    maps = [blurred_map(atoms, phantom.weight) for atoms in (first, last)]
    assert correlation(*maps) < 0.8


def test_search_finds_a_turned_copy_so_that_the_mirror_test_can_fail(phantom):
    atoms = phantom.coordinates_angstrom(np.asarray([30.0]))[0]
    turned = atoms @ Rotation.from_rotvec([0.7, -1.9, 0.4]).as_matrix().T
    assert best_overlay(atoms, phantom.weight, turned) > 0.97


@pytest.mark.parametrize("state", [0.0, 70.0])
def test_phantom_is_no_mirror_copy_of_itself(phantom, state):
    atoms = phantom.coordinates_angstrom(np.asarray([state]))[0]
    assert best_overlay(atoms, phantom.weight, atoms * [1, 1, -1]) < 0.95
