import csv
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.rotating_blobs import write_run, write_truth

from cryoformer_dist.analysis import report
from cryoformer_dist.analysis.report import read_run, write_report
from cryoformer_dist.errors import StoreNotFoundError
from cryoformer_dist.figures import style

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Collects what a page loads and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open_tags: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_LARGE", 56)
        patch.setattr(report, "_SMALL", 40)
        patch.setattr(style, "_SLIDE_DPI", 20)
        yield


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_truth(tmp_path_factory.mktemp("world") / "truth", 500, 4)


@pytest.fixture(scope="module")
def full(truth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything, its report written in place of an older one."""
    run = write_run(tmp_path_factory.mktemp("full") / "Blobs & balls", truth)
    (run / "report").mkdir()
    (run / "report" / "stale.png").touch()
    (run / "report" / "mine.txt").touch()
    write_report(run, truth, ".cs")
    return run


@pytest.fixture(scope="module")
def page(full: Path) -> str:
    return (full / "report.html").read_text()


def test_page_is_closed_loads_nothing_and_runs_nothing(page):
    parsed = Page()
    parsed.feed(page)
    assert parsed.open_tags == []
    assert "script" not in parsed.tags
    assert all(link.startswith(("data:", "#")) for link in parsed.loads)
    assert not re.search(r"url\((?!['\"]?(data:|#))", page)
    assert "@import" not in page


def test_page_is_small_and_escapes_what_users_wrote(page):
    assert len(page) < 2_000_000
    assert "Blobs &amp; balls" in page
    assert "&lt;not markup&gt;" in page


def test_page_says_which_version_trained_the_run(page):
    assert "<span>cryoformer-dist 1.2.3</span>" in page


def test_page_shows_every_measure_picture_and_file(page):
    expected = """The motion was recovered|Difference-map correlation|Fourier shell correlation|Where the particles lie
        |Groups of like particles|Central slices|State by state|refined|Throughput|pose settling|Resolved configuration
        |store_fingerprint|Single particles
        |probability of a particle|chimerax --cmd|prefers-color-scheme|@media print"""
    for words in (part.strip() for part in expected.split("|")):
        assert words in page, words


def test_page_without_truth_or_refinement_claims_nothing(truth, tmp_path):
    run = write_run(tmp_path / "run", truth, judged=False, refined=False)
    text = write_report(run).read_text()
    assert "No truth is known" in text
    for words in ("Difference-map correlation", "State by state", "Poses</h2>", "true coordinate"):
        assert words not in text, words
    assert "Groups of like particles" in text


def test_page_of_unrefined_poses_says_so(truth, tmp_path):
    run = write_run(tmp_path / "run", truth, refined=False)
    for stale in (run / "volumes").glob("*"):
        stale.unlink()
    text = write_report(run, truth).read_text()
    assert "they were not refined" in text
    assert "Pose errors before and after" not in text
    assert "The motion</h2>" not in text


def test_page_of_an_empty_run_says_what_is_missing(tmp_path):
    text = write_report(tmp_path).read_text()
    assert "Not evaluated yet" in text
    assert tmp_path.name in text


def test_every_picture_is_a_slide_too_and_every_number_a_table(full):
    files = {path.name for path in (full / "report").iterdir()}
    assert "mine.txt" in files
    assert {path.removesuffix(".png") for path in files if path.endswith(".png")} == {
        *("state", "pc1", "groups", "slices", "particles"),
        *("latents", "latents_by_group", "resolution", "poses", "loss", "throughput"),
    }
    assert {"measures.csv", "states.csv", "poses.csv", "particles.csv", "stages.csv", "training.csv"} <= files
    measures = list(csv.DictReader((full / "report" / "measures.csv").read_text().splitlines()))
    assert measures[0]["name"] == "Motion as in truth"
    assert set(measures[0]) == {"name", "meaning", "ours", "floor", "ceiling"}
    assert len(list(csv.DictReader((full / "report" / "training.csv").read_text().splitlines()))) == 12


def test_what_is_told_comes_in_a_reader_s_order_and_throughput_last(page):
    heads = re.findall(r"<h2>([^<]+)</h2>", page)
    assert heads[:2] == ["The motion", "States"]
    assert heads[-4:] == ["What to do next", "Training", "Throughput", "How this was made"]


def test_the_next_steps_hand_particles_on_as_they_came(page):
    text = html.unescape(page)
    assert re.search(r"cryoformer-dist select \. --cluster \d --where 'junk < .5' -o group_\d\.cs", text)
    assert "hand one group on to cryosparc" in text.lower()


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(StoreNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_run_reads_back_what_was_written(truth, tmp_path):
    run = read_run(write_run(tmp_path / "run", truth))
    assert sorted(run.volumes) == ["kmeans", "pc1", "pc2", "state"]
    assert run.curves.own.shape == (4, 8)
    assert np.all(run.curves.own[:, 0] > 0.9)
    assert run.latent["latent"].shape == (500, 2)
