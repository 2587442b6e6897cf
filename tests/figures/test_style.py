import io

import matplotlib as mpl
import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

from cryoformer_dist.figures.style import ACCENT, STYLE, Chart


def _draw() -> Chart:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4, 2), layout="constrained")
        figure.subplots().plot([0, 1], [0, 1], color=ACCENT, linewidth=4)
        return Chart(figure, "a line")


def test_a_slide_is_1920_by_1080_in_the_light_page_s_colours_and_leaves_the_page_s_picture_as_it_was():
    chart = _draw()
    svg = chart.svg
    slide = matplotlib.image.imread(io.BytesIO(chart.draw_slide()))
    assert slide.shape[:2] == (1080, 1920)
    assert (slide[0, 0, :3] == 1).all()
    blue = np.array([int(ACCENT[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    assert (np.abs(slide[..., :3] - blue).max(axis=-1) < 0.01).sum() > 1000
    assert _draw().svg == svg == chart.svg
