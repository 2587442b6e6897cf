import io

import matplotlib.image
import numpy as np
import pytest

from cryoformer_dist.figures import slides
from cryoformer_dist.figures.pictures import make_row
from cryoformer_dist.figures.slides import compose_slide, fill_rows


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (6, 6), (7, 4), (9, 5), (10, 5), (12, 6), (13, 5)])
def test_no_row_is_left_half_empty(count: int, columns: int) -> None:
    assert fill_rows(count, 6) == columns
    missing = -count % columns
    assert missing < columns / 2 or count == 1


def test_long_rows_are_broken_together_and_fill_a_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(slides, "to_slide", lambda figure: kept.append(figure) or slides_png(figure))
    from cryoformer_dist.figures.style import to_slide as slides_png

    pictures = [np.full((8, 8, 4), 0.5) for _ in range(10)]
    numbers = [str(number) for number in range(10)]
    png = compose_slide([make_row("truth", pictures, numbers, show=False), make_row("ours", pictures, numbers)])
    assert matplotlib.image.imread(io.BytesIO(png)).shape[:2] == (1080, 1920)
    (figure,) = kept
    assert [axes.texts[0].get_text() for axes in figure.axes[::5]] == ["truth", "ours", "truth", "ours"]
    assert [axes.get_title(loc="center") for axes in figure.axes] == [*[""] * 5, *"01234", *[""] * 5, *"56789"]
