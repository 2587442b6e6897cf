from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.limits import (
    AMPLITUDE_CONTRAST,
    NUMBER,
    PIXEL_SIZE,
    POSITIVE,
    SPHERICAL_ABERRATION,
    VOLTAGE,
    check_column,
    check_defocus,
    check_rotations,
    check_shifts,
)

SOURCE = Path("a.star")
TURN = np.asarray([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e39, 1e-39])
def test_an_impossible_number_is_named_by_row_and_column(value):
    numbers = np.asarray([1.0, 2.0, value])
    with pytest.raises(ParticleFormatError, match=r"a\.star, particle row 3 \(of 3\), column rlnMagnification"):
        check_column(SOURCE, "rlnMagnification", numbers, POSITIVE)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_every_number_is_finite_as_float32(value):
    with pytest.raises(ParticleFormatError, match=r"column x: number .* is not a finite number"):
        check_column(SOURCE, "x", np.asarray([[0.0, 1.0], [value, 1.0]]), NUMBER)


@pytest.mark.parametrize(
    ("quantity", "value", "explained"),
    [
        (VOLTAGE, 300000.0, "300000 V would be 300 kV"),
        (VOLTAGE, 0.3, "0.3 MV would be 300 kV"),
        (SPHERICAL_ABERRATION, 2700.0, "2700 micrometre would be 2.7 mm"),
        (AMPLITUDE_CONTRAST, 10.0, "10 percent would be 0.1"),
        (PIXEL_SIZE, 1.06e-10, "1.06e-10 metre would be 1.06 A"),
    ],
)
def test_the_unit_that_would_explain_a_number_is_named(quantity, value, explained):
    with pytest.raises(ParticleFormatError, match=explained):
        check_column(SOURCE, "column", np.asarray([value]), quantity)


def test_both_ends_of_a_limit_are_allowed():
    check_column(SOURCE, "rlnSphericalAberration", np.asarray([0.0, 20.0]), SPHERICAL_ABERRATION)
    check_column(SOURCE, "rlnVoltage", np.asarray([20.0, 1500.0]), VOLTAGE)
    with pytest.raises(ParticleFormatError, match="amplitude contrast 1 is not within 0 to 1"):
        check_column(SOURCE, "rlnAmplitudeContrast", np.asarray([1.0]), AMPLITUDE_CONTRAST)


@pytest.mark.parametrize(
    ("defocus", "explained"),
    [
        (1.7, "1.7 micrometre would be 17000 A"),
        (200.0, "200 nanometre would be 2000 A"),
        (-17000.0, "written with the other sign"),
    ],
)
def test_a_defocus_in_another_unit_is_refused_by_its_median(defocus, explained):
    check_defocus(SOURCE, "rlnDefocusU", np.asarray([0.0, 17000.0, 20000.0]), None)
    with pytest.raises(ParticleFormatError, match=f"column rlnDefocusU: the median defocus of 3 rows .*{explained}"):
        check_defocus(SOURCE, "rlnDefocusU", np.asarray([defocus, defocus, 17000.0]), None)


def test_only_images_of_a_phase_plate_may_all_be_in_focus():
    check_defocus(SOURCE, "rlnDefocusU", np.zeros(3), np.full(3, 90.0))
    for phase_shift in (None, np.zeros(3)):
        with pytest.raises(ParticleFormatError, match="the median defocus of 3 rows is 0 A"):
            check_defocus(SOURCE, "rlnDefocusU", np.zeros(3), phase_shift)


@pytest.mark.parametrize("wrong", [2 * TURN, -TURN, TURN * np.nan, TURN * 0, np.float32(1e38) * np.float32(TURN)])
def test_what_is_no_rotation_is_refused(wrong):
    check_rotations(SOURCE, "rotation", np.stack([TURN, np.eye(3)]))
    with pytest.raises(ParticleFormatError, match=r"row 2 .*column rotation"):
        check_rotations(SOURCE, "rotation", np.stack([TURN, wrong], dtype=np.float32, casting="same_kind"))


def test_a_shift_may_not_leave_the_image_where_its_box_is_known():
    shift = np.asarray([[16.0, -16.0], [16.1, 0.0]])
    check_shifts(SOURCE, "origin", shift[:1], np.asarray([32.0]))
    check_shifts(SOURCE, "origin", shift, np.asarray([32.0, 0.0]))
    with pytest.raises(ParticleFormatError, match=r"row 2 .*column origin: a shift of \(16\.1, 0\) A .* 16 A"):
        check_shifts(SOURCE, "origin", shift, np.asarray([32.0, 32.0]))
