import numpy as np
from support.rotating_blobs import blobs, circle_truth

from cryoformer_dist.analysis.truth import Truth, find_nearest_reference, state_distance


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
