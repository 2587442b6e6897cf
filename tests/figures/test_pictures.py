import base64
import io

import matplotlib.image
import numpy as np
import pytest
from support.rotating_blobs import blobs

from cryoformer_dist.figures.pictures import (
    draw_slices,
    draw_surfaces,
    encode_png,
    join_frames,
    make_film,
    make_row,
    pick_evenly,
)
from cryoformer_dist.figures.surfaces import colour_states, find_best_view, find_common_level


def decode_png(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png")


def test_png_round_trips_grey_and_colour_and_blanks_what_is_transparent():
    grey = np.linspace(0, 1, 30).reshape(5, 6)
    np.testing.assert_allclose(decode_png(encode_png(grey))[..., 0], grey, atol=0.003)
    colour = np.random.default_rng(0).uniform(size=(4, 4, 4))
    colour[..., 3] = [0, 1, 1, 1]
    found = decode_png(encode_png(colour))
    np.testing.assert_allclose(found[:, 1:], colour[:, 1:], atol=0.003)
    assert not found[:, 0].any()


def test_states_share_level_and_view_and_wear_their_colours():
    states = blobs(np.array([0.0, 90.0]))
    view = find_best_view(states, find_common_level(states))
    colours = colour_states(2)
    pictures = draw_surfaces(states, view, colours, 64)
    for picture, colour in zip(pictures, colours, strict=True):
        seen = picture[picture[..., 3] > 0.5][:, :3]
        nearness = seen @ np.array(colour) / np.linalg.norm(seen, axis=1) / np.linalg.norm(colour)
        assert nearness.max() > 0.99
    strip = decode_png(join_frames(pictures))
    assert strip.shape[:2] == (64, 128)


def test_slices_are_clipped_per_map():
    columns = draw_slices([("a", blobs(np.zeros(1))[0]), ("b", 50 * blobs(np.zeros(1))[0])], 32)
    assert [column.name for column in columns] == ["a", "b"]
    assert [image.uri for image in columns[0].images] == [image.uri for image in columns[1].images]


@pytest.mark.parametrize(
    ("count", "most", "picked"), [(3, 5, [0, 1, 2]), (12, 3, [0, 6, 11]), (1, 12, [0]), (9, 5, [0, 2, 4, 6, 8])]
)
def test_the_first_and_the_last_are_among_those_picked(count, most, picked):
    assert pick_evenly(count, most).tolist() == picked


def test_a_film_shows_the_strips_there_are_and_only_the_consensus_stands_still():
    frame = np.ones((4, 6, 4))
    film = make_film({"ours": [frame] * 3, "truth": [frame] * 3, "consensus": [frame]}, periodic=True)
    assert [(strip.name, strip.moves) for strip in film.strips] == [
        ("consensus", False),
        ("ours", True),
        ("truth", True),
    ]
    assert (film.count, film.ratio, film.periodic) == (3, "6 / 4", True)
    assert [strip.name for strip in make_film({"ours": [frame]}, periodic=False).strips] == ["ours"]


def test_a_row_holds_each_picture_with_its_caption():
    row = make_row("ours", [np.zeros((2, 2)), np.ones((2, 2))], ["a", "b"], show=False)
    assert [caption for _, caption in row.tiles] == ["a", "b"]
    assert (row.columns, row.captions) == (2, False)
