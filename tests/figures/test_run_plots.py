import base64
import io
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import numpy as np
import pytest
from support.rotating_blobs import blobs
from support.training_records import training_record

from cryoformer_dist.figures import run_plots as figures
from cryoformer_dist.figures.surfaces import best_view, cluster_colour, common_level, state_colours

RECORDS = [
    training_record(stage=stage, step=step, loss=1.0 / step, data_wait_share=0.1)
    for stage, first in (("poses", 10), ("reconstruction", 70))
    for step in range(first, first + 60, 10)
]


def decode_png(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png")


def test_png_round_trips_grey_and_colour_and_blanks_what_is_transparent():
    grey = np.linspace(0, 1, 30).reshape(5, 6)
    np.testing.assert_allclose(decode_png(figures.png_data_uri(grey))[..., 0], grey, atol=0.003)
    colour = np.random.default_rng(0).uniform(size=(4, 4, 4))
    colour[..., 3] = [0, 1, 1, 1]
    found = decode_png(figures.png_data_uri(colour))
    np.testing.assert_allclose(found[:, 1:], colour[:, 1:], atol=0.003)
    assert not found[:, 0].any()


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    rng = np.random.default_rng(0)
    frequency = np.arange(16) / 64
    fsc = np.exp(-np.outer([1.0, 1.2, 1.4], frequency * 4))
    histogram = {"edges": [0.0, 1.0, 2.0], "before": [3, 4], "after": [6, 1]}
    pose = {
        "before": {"angle_deg_median": 9.0, "shift_angstrom_median": 2.0},
        "after": {"angle_deg_median": 4.0, "shift_angstrom_median": 1.0},
        "angle_deg_histogram": histogram,
        "shift_angstrom_histogram": histogram,
    }
    latents, share = rng.normal(size=(300, 3)), np.array([0.6, 0.3, 0.1])
    return {
        "loss": figures.loss_curves(RECORDS),
        "throughput": figures.throughput_lines(RECORDS),
        "fsc": figures.fsc_curves(frequency, fsc, fsc * 0.8),
        "poses": figures.pose_histograms(pose),
        "scatter": figures.latent_scatter(latents, share, latents[:4], rng.uniform(0, 360, 300), 360.0),
        "density": figures.latent_scatter(latents, share, latents[:4]),
        "clusters": figures.cluster_scatter(latents, share, latents[:4], np.arange(300) % 4),
        "one axis": figures.latent_scatter(latents[:, :1], share[:1], latents[:4, :1]),
    }


def test_figures_are_well_formed_themed_and_load_nothing(drawn):
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label"), name
        assert "var(--muted" in svg, name
        assert "#020202" not in svg, name
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links), name


def test_figures_are_the_same_twice():
    assert figures.loss_curves(RECORDS) == figures.loss_curves(RECORDS)


def test_figures_name_what_they_show(drawn):
    assert "reconstruction" in drawn["loss"]
    assert "consensus (floor)" in drawn["fsc"]
    assert "60%" in drawn["scatter"]
    assert "true coordinate" in drawn["scatter"]
    assert "true coordinate" not in drawn["density"]
    assert "median 4" in drawn["poses"]


def test_a_large_cloud_stays_small():
    latents = np.random.default_rng(0).normal(size=(20_000, 2))
    svg = figures.latent_scatter(latents, np.array([0.5, 0.5]), latents[:3], latents[:, 0])
    assert len(svg) < 300_000


def test_states_share_level_and_view_and_wear_their_colours():
    states = blobs(np.array([0.0, 90.0]))
    view = best_view(states, common_level(states))
    colours = state_colours(2)
    pictures = figures.surface_pictures(states, view, colours, 64)
    for picture, colour in zip(pictures, colours, strict=True):
        seen = picture[picture[..., 3] > 0.5][:, :3]
        nearness = seen @ np.array(colour) / np.linalg.norm(seen, axis=1) / np.linalg.norm(colour)
        assert nearness.max() > 0.99
    strip = decode_png(figures.film_strip(pictures))
    assert strip.shape[:2] == (64, 128)


def test_slices_are_clipped_per_map():
    columns = figures.slice_columns([("a", blobs(np.zeros(1))[0]), ("b", 50 * blobs(np.zeros(1))[0])], 32)
    assert [column["name"] for column in columns] == ["a", "b"]
    assert columns[0]["images"] == columns[1]["images"]


def test_no_global_plotting_state_is_used():
    assert "matplotlib.pyplot" not in sys.modules


def test_every_cluster_is_drawn_in_its_colour_and_numbered(monkeypatch):
    texts, colours = [], []
    monkeypatch.setattr(figures, "svg", lambda figure, title: collect(figure.axes[0]) or title)

    def collect(axes):
        texts.extend(axes.texts)
        colours.extend(map(tuple, axes.collections[0].get_facecolors()[:, :3]))

    points = np.random.default_rng(0).normal(size=(90, 2))
    centres = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    figures.cluster_scatter(points, np.array([0.6, 0.4]), centres, np.arange(90) % 3)
    assert [text.get_text() for text in texts] == ["0", "1", "2"]
    assert {*colours} == {cluster_colour(number) for number in range(3)}
    # Centres on one spot are pushed apart, a free one stays.
    places = np.array([text.get_position() for text in texts])
    assert np.abs(places[0] - places[1]).max() > 0.1
    assert np.abs(places[:2]).max() < 0.5
    np.testing.assert_allclose(places[2], [1, 1])
