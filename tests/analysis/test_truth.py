import numpy as np
from support.rotating_blobs import blobs, circle_truth, write_truth

from cryoformer_dist.analysis.truth import Truth, find_nearest_reference, read_truth, state_distance
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.simulation.particle_set import simulate


def test_states_lie_apart_the_short_way_round():
    assert state_distance(np.array([350.0, 10.0, 180.0]), 0.0, 360.0).tolist() == [10.0, 10.0, 180.0]
    assert state_distance(np.array([350.0, 10.0]), 0.0, 0.0).tolist() == [350.0, 10.0]


def test_the_nearest_reference_is_round_the_corner_when_the_coordinate_is_periodic():
    truth = circle_truth(10, 8)
    assert find_nearest_reference(np.array([0.0, 22.0, 23.0, 337.0, 338.0, 359.9]), truth).tolist() == [
        0,
        0,
        1,
        7,
        0,
        0,
    ]


def test_the_reference_of_a_class_is_its_own_whatever_its_number():
    labels = np.array([4.0, 0.0, 2.0])
    classes = Truth(
        labels, np.zeros((3, 3, 3), np.float32), np.zeros((3, 2), np.float32), np.array([0.0, 2.0, 4.0]),
        blobs(np.zeros(3)), 4.0, 0.0, True,
    )  # fmt: skip
    assert find_nearest_reference(labels, classes).tolist() == [2, 0, 1]


def test_what_a_simulation_says_of_its_images_is_read_and_needs_not_be_there(tmp_path):
    plain = read_truth(write_truth(tmp_path / "plain", 6, 4))
    assert (plain.junk, plain.amplitude, plain.defocus_angstrom, plain.offset) == (None, None, None, None)
    assert plain.shows_particle(np.arange(3)).all()
    config = {"particles": 6, "box_size": 16, "nuisances": {"junk": {"empty": 0.5}, "brightness": {"offset_sd": 1}}}
    simulated = simulate(SimulationConfig.model_validate(config | {"states": {"truth_volumes": 2}}), tmp_path / "set")
    truth = read_truth(simulated.truth)
    assert truth.shows_particle(np.array([0, 1, 2, 3, 4, 5, 5])).sum() == 3 + (truth.junk[5] == 0)
    assert truth.defocus_angstrom.shape == (6, 2)
    assert (truth.amplitude == 1).all()
    assert (truth.offset != 0).all()
