import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from support.judged_runs import HISTOGRAM, POSE_ERRORS
from support.training_records import training_record

from cryoformer_dist.figures import run_plots
from cryoformer_dist.figures.style import MUTED, Chart
from cryoformer_dist.figures.surfaces import cluster_colour
from cryoformer_dist.runs.pose_scores import PoseScores

RECORDS = [
    training_record(stage=stage, step=step, loss=1.0 / step, data_wait_share=0.1)
    for stage, first in (("poses", 10), ("reconstruction", 70))
    for step in range(first, first + 60, 10)
]


@pytest.fixture(scope="module")
def drawn() -> dict[str, Chart]:
    rng = np.random.default_rng(0)
    frequency = np.arange(16) / 64
    fsc = np.exp(-np.outer([1.0, 1.2, 1.4], frequency * 4))
    after = replace(POSE_ERRORS, angle_deg_median=4.0, shift_angstrom_median=1.0)
    pose = PoseScores(POSE_ERRORS, after, after, HISTOGRAM, HISTOGRAM)
    latents, share = rng.normal(size=(300, 3)), np.array([0.6, 0.3, 0.1])
    return {
        "loss": run_plots.draw_loss(RECORDS),
        "throughput": run_plots.draw_throughput(RECORDS),
        "fsc": run_plots.draw_state_fsc(frequency, fsc, fsc * 0.8),
        "poses": run_plots.draw_pose_errors(pose),
        "scatter": run_plots.draw_latents(latents, share, latents[:4], rng.uniform(0, 360, 300), 360.0),
        "density": run_plots.draw_latents(latents, share, latents[:4]),
        "clusters": run_plots.draw_clusters(latents, share, latents[:4], np.arange(300) % 4),
        "one axis": run_plots.draw_latents(latents[:, :1], share[:1], latents[:4, :1]),
    }


def test_figures_are_well_formed_themed_and_load_nothing(drawn):
    for name, chart in drawn.items():
        svg = chart.svg
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label"), name
        assert "var(--muted" in svg, name
        assert MUTED not in svg, name
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links), name


def test_figures_are_the_same_twice():
    assert run_plots.draw_loss(RECORDS).svg == run_plots.draw_loss(RECORDS).svg


def test_figures_name_what_they_show(drawn):
    assert "reconstruction" in drawn["loss"].svg
    assert "consensus (floor)" in drawn["fsc"].svg
    assert "60%" in drawn["scatter"].svg
    assert "true coordinate" in drawn["scatter"].svg
    assert "true coordinate" not in drawn["density"].svg
    assert "median 4" in drawn["poses"].svg


def test_a_large_cloud_stays_small():
    latents = np.random.default_rng(0).normal(size=(20_000, 2))
    svg = run_plots.draw_latents(latents, np.array([0.5, 0.5]), latents[:3], latents[:, 0]).svg
    assert len(svg) < 300_000


def test_no_global_plotting_state_is_used():
    assert "matplotlib.pyplot" not in sys.modules


def test_every_cluster_is_drawn_in_its_colour_and_numbered(monkeypatch):
    texts, colours = [], []
    monkeypatch.setattr(run_plots, "Chart", lambda figure, title: collect(figure.axes[0]) or title)

    def collect(axes):
        texts.extend(axes.texts)
        colours.extend(map(tuple, axes.collections[0].get_facecolors()[:, :3]))

    points = np.random.default_rng(0).normal(size=(90, 2))
    centres = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    run_plots.draw_clusters(points, np.array([0.6, 0.4]), centres, np.arange(90) % 3)
    assert [text.get_text() for text in texts] == ["0", "1", "2"]
    assert {*colours} == {cluster_colour(number) for number in range(3)}
    # Centres on one spot are pushed apart, a free one stays.
    places = np.array([text.get_position() for text in texts])
    assert np.abs(places[0] - places[1]).max() > 0.1
    assert np.abs(places[:2]).max() < 0.5
    np.testing.assert_allclose(places[2], [1, 1])
