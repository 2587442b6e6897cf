"""Rows of pictures as slides: what a page shows side by side, in one PNG for a talk."""

from collections.abc import Sequence

import matplotlib as mpl

from cryoformer_dist.figures.pictures import PictureRow
from cryoformer_dist.figures.style import MUTED, STYLE, start_slide, to_slide

_MOST_COLUMNS = 6


def compose_slide(rows: Sequence[PictureRow]) -> bytes:
    """PNG of rows of pictures on white; rows that are long are broken, what stood below one another still does."""
    length = fill_rows(max(row.columns for row in rows), _MOST_COLUMNS)
    broken = [
        PictureRow(row.name, row.tiles[start : start + length], row.captions)
        for start in range(0, max(row.columns for row in rows), length)
        for row in rows
    ]
    with mpl.rc_context(STYLE):
        figure = start_slide()
        for panels, row in zip(figure.subplots(len(broken), length, squeeze=False), broken, strict=True):
            for panel in panels:
                panel.set_axis_off()
            for panel, (picture, caption) in zip(panels, row.tiles, strict=False):
                panel.imshow(picture.pixels, cmap="gray", vmin=0, vmax=1)
                panel.set_title(caption if row.captions else "", loc="center", y=-0.16, fontsize=8, color=MUTED)
            name = {"rotation": 90, "va": "center", "ha": "right", "fontsize": 9}
            panels[0].text(-0.06, 0.5, row.name, transform=panels[0].transAxes, **name)
        return to_slide(figure)


def fill_rows(count: int, most: int) -> int:
    """Columns for so many pictures, at most ``most``, such that no row is left half empty."""
    rows = -(-count // most)
    return -(-count // rows)
