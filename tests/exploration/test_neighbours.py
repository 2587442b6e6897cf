import numpy as np
import pytest

from cryoformer_dist.exploration import neighbours
from cryoformer_dist.exploration.neighbours import find_ground


def test_energy_follows_the_logarithm_of_the_density() -> None:
    points = np.random.default_rng(0).normal(size=(6000, 2)).astype(np.float32)
    ground = find_ground(points)
    assert ground.dimensions == pytest.approx(2, abs=0.1)
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    energy = np.array([ground.energy_at(radius * ring).mean() for radius in (0.2, 1.0, 2.0)])
    np.testing.assert_allclose(energy - energy[0], [0, 0.48, 1.98], atol=0.2)
    np.testing.assert_allclose(ground.energy_at(ground.latents), ground.energy, atol=0.3)


def test_a_curve_has_one_dimension_wherever_it_winds() -> None:
    turn = np.random.default_rng(0).uniform(0, 3, 3000)
    curve = np.stack([np.cos(turn), np.sin(turn), turn], axis=1).astype(np.float32)
    assert find_ground(curve).dimensions == pytest.approx(1, abs=0.1)


def test_the_graph_is_the_same_both_ways_and_holds_every_neighbour() -> None:
    ground = find_ground(np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    graph = ground.graph.toarray()
    np.testing.assert_array_equal(graph, graph.T)
    assert (np.count_nonzero(graph, axis=1) >= neighbours.NEIGHBOURS).all()


def test_particles_that_are_asked_for_are_landmarks(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "LANDMARKS", 50)
    points = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    ground = find_ground(points, (3, 499))
    assert {3, 499} <= set(ground.row.tolist())
    assert len(ground.row) <= 52


def test_latents_that_coincide_have_finite_energies_and_equal_ones_no_ground() -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(30, 2)), 40, axis=0).astype(np.float32)
    assert np.isfinite(find_ground(points).energy).all()
    with pytest.raises(ValueError, match="the same"):
        find_ground(np.ones((10, 2), dtype=np.float32))
