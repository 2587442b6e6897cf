import numpy as np
from matplotlib import image

from cryoformer_dist.figures.landscapes import draw_landscape

EDGES = np.linspace(-1, 1, 33)
ENERGY = np.add.outer(np.linspace(-1, 1, 32) ** 2, np.linspace(-1, 1, 32) ** 2) * 3


def test_a_plane_with_holes_and_its_profile_are_drawn(tmp_path):
    energy = np.where(ENERGY > 4, np.nan, ENERGY)
    line = (EDGES, ENERGY[16], np.full(32, 0.1))
    picture = draw_landscape(tmp_path / "two.png", line, ((EDGES, EDGES), energy), [(0.0, 0.0), (0.5, 0.5)], (0.1, 0.2))
    one = draw_landscape(tmp_path / "one.png", line, None, [(0.0,)], None)
    two_pixels, one_pixels = image.imread(picture), image.imread(one)
    assert two_pixels.shape == one_pixels.shape
    # Colours of the plane are in the one only.
    saturation = [np.ptp(each[:, : each.shape[1] // 3, :3], axis=2) for each in (two_pixels, one_pixels)]
    assert (saturation[0] > 0.3).mean() > 10 * (saturation[1] > 0.3).mean()
