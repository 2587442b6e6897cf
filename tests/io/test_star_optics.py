from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.star_optics import image_pixel_size
from cryoformer_dist.io.star_rows import open_rows

SOURCE = Path("a.star")


def column(*cells: object) -> np.ndarray:
    return np.asarray(cells)


@pytest.mark.parametrize(
    ("columns", "size"),
    [
        ({"rlnImagePixelSize": 1.25, "rlnPixelSize": 2.0}, 1.25),
        ({"rlnPixelSize": 2.0, "rlnDetectorPixelSize": 5.0, "rlnMagnification": 10000.0}, 2.0),
        ({"rlnDetectorPixelSize": 5.0, "rlnMagnification": 37369.207031}, 1.338),
        ({"rlnDetectorPixelSize": 14.0, "rlnMagnification": 39548.0}, 3.54),
    ],
)
def test_pixel_size_is_stated_or_detector_over_magnification(columns, size):
    particles = {"rlnImageName": column("1@a.mrcs")} | {label: column(cell) for label, cell in columns.items()}
    assert image_pixel_size(open_rows(SOURCE, {"": particles})) == pytest.approx([size], abs=1e-5)


def test_an_impossible_magnification_is_refused_by_the_pixel_size_that_it_gives():
    columns = {"rlnDetectorPixelSize": column(14.0, 56.0), "rlnMagnification": column(19478.26, 0.105887)}
    rows = open_rows(SOURCE, {"": {"rlnImageName": column("1@a.mrcs", "2@a.mrcs"), **columns}})
    with pytest.raises(ParticleFormatError, match=r"row 2 .*rlnMagnification: pixel size 5\.28866e\+06 A is not"):
        image_pixel_size(rows)
