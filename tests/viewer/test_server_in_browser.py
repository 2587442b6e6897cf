"""The page as its user meets it, in headless Chromium."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import browsing, drag
from support.tiny_runs import Listener, Stop, tiny_config, train

from cryoformer_dist.data.selection import Lasso, read_selection
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.runs.checkpoint_choice import newest_step
from cryoformer_dist.runs.layout import PARTICLE_ANALYSIS, SELECTIONS
from cryoformer_dist.selection.choice import lie_inside
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.viewer.desk import Desk
from cryoformer_dist.viewer.server import LOOPBACK, find_port, make_app, serve
from cryoformer_dist.viewer.snapshot import Snapshot, take_snapshot

pytestmark = pytest.mark.slow
TOKEN = "token-of-a-test"
WIDE = [(0.01, 0.1), (0.6, 0.1), (0.6, 0.9), (0.01, 0.9), (0.01, 0.1)]


class Served:
    """A server in a thread of its own, and where it is."""

    def __init__(self, desk: Desk) -> None:
        self.port, ready = find_port(None), threading.Event()
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(serve(make_app(desk, TOKEN), self.port, ready.set))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert ready.wait(10)
        self.url = f"http://{LOOPBACK}:{self.port}/{TOKEN}/"

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)


@pytest.fixture
def served(desk: Desk) -> Iterator[Served]:
    server = Served(desk)
    yield server
    server.end()


@pytest.fixture
def page(served: Served) -> Iterator[Any]:
    with browsing() as (page, trouble):
        page.goto(served.url)
        page.wait_for_selector("body[data-painted]")
        page.wait_for_function("document.querySelector('#surface').dataset.triangles > 0")
        yield page
        assert trouble == []


def count(page: Any) -> int:
    page.wait_for_selector("#busy", state="hidden")
    return int(page.get_attribute("#count", "data-count"))


def test_a_lasso_is_exported_as_just_the_particles_inside(page: Any, snapshot: Snapshot, run: Path) -> None:
    assert count(page) == 64
    page.keyboard.press("l")
    drag(page, WIDE)
    page.wait_for_function("document.querySelector('#count').dataset.count < 64")
    inside = count(page)
    assert 0 < inside < 64
    page.fill("#file", "drawn")
    page.click("#save")
    page.wait_for_selector("#written a")
    selection = read_selection(run / SELECTIONS / "drawn.json")
    assert isinstance(selection.origin, Lasso)
    x, y = (snapshot.columns.values(axis).astype(np.float64) for axis in selection.origin.axes)
    found = lie_inside(x, y, np.array(selection.origin.polygon))
    np.testing.assert_array_equal(np.sort(snapshot.columns.source_row[found]), selection.source_row)
    # What was drawn is a rectangle, up to the width of a pixel.
    corners = np.array(selection.origin.polygon)
    bound = (
        (x > corners[:, 0].min()) & (x < corners[:, 0].max()) & (y > corners[:, 1].min()) & (y < corners[:, 1].max())
    )
    assert abs(int(bound.sum()) - inside) <= 1
    given, written = read_particles(Path(snapshot.columns.source.path)), read_particles(run / SELECTIONS / "drawn.star")
    assert len(written.source_row) == inside
    np.testing.assert_array_equal(written.defocus_u_angstrom, given.defocus_u_angstrom[selection.source_row])


def test_lassos_add_up_and_a_gate_shuts_some_out(page: Any) -> None:
    page.keyboard.press("l")
    drag(page, WIDE)
    page.wait_for_function("document.querySelector('#count').dataset.count < 64")
    first = count(page)
    page.select_option("#how", "difference")
    drag(page, WIDE)
    page.wait_for_function("document.querySelector('#count').dataset.count === '0'")
    page.keyboard.press("a")
    page.wait_for_function("document.querySelector('#count').dataset.count === '64'")
    page.select_option("#gate", "defocus_angstrom")
    page.locator(".gate input").nth(1).evaluate("it => { it.value = 200; it.dispatchEvent(new Event('input')); }")
    page.wait_for_function("document.querySelector('#count').dataset.count < 64")
    assert 0 < count(page) < 64
    assert 0 < first < 64


def test_a_click_shows_the_map_of_that_particle(page: Any, snapshot: Snapshot) -> None:
    place = int(np.argmax(snapshot.columns.values("pc1")))
    row = int(snapshot.columns.source_row[place])
    box = page.locator("#plot").bounding_box()
    y = snapshot.columns.values("pc2")
    low, high = float(y.min()), float(y.max())
    # Points fill 92 in a hundred of the map.
    up = 0.5 + 0.92 * ((float(y[place]) - low) / (high - low) - 0.5)
    at = box["x"] + 0.96 * box["width"], box["y"] + (1 - up) * box["height"]
    page.mouse.move(*at)
    page.wait_for_selector("#hover:not([hidden])")
    page.mouse.click(*at)
    page.wait_for_function(f"document.querySelector('#shown').textContent === 'particle of row {row}'")
    before = int(page.get_attribute("#surface", "data-triangles"))
    assert before > 0
    page.keyboard.press("m")
    page.wait_for_function("document.querySelector('#shown').textContent.includes('mean of 16 maps')")


def test_a_path_has_a_map_at_every_stop_of_its_slider(page: Any) -> None:
    page.keyboard.press("p")
    drag(page, [(0.1, 0.5), (0.5, 0.4), (0.9, 0.6)])
    page.wait_for_function("document.querySelector('#stop').dataset.loaded === '15'")
    page.locator("#stop").evaluate("it => { it.value = 9; it.dispatchEvent(new Event('input')); }")
    page.wait_for_function("document.querySelector('#shown').textContent === 'path, stop 10 of 15'")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#shown').textContent === 'path, stop 11 of 15'")
    box = page.locator("#plot").bounding_box()
    for x in (0.1, 0.9):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + 0.5 * box["height"])
    page.wait_for_function("document.querySelector('#shown').textContent === 'path, stop 1 of 15'")


def test_every_panel_has_something_to_show(page: Any) -> None:
    assert page.locator(".montage canvas").count() == 3 * 14
    for key, figures in (("2", 1), ("3", 2)):
        page.keyboard.press(key)
        page.wait_for_function(f"document.querySelectorAll('#panel figure').length >= {figures}")
    page.keyboard.press("4")
    page.wait_for_function("document.querySelector('#panelNote').textContent.startsWith('no FSC yet')")


def test_a_wrong_token_opens_nothing(served: Served) -> None:
    with browsing() as (page, _):
        answer = page.goto(served.url.replace(TOKEN, "guessed"))
        assert answer.status == 403
        assert "wrong or missing token" in page.content()
        assert page.locator("canvas").count() == 0


def test_a_run_is_followed_while_it_trains(tiny_store: Path, tmp_path: Path) -> None:
    working, config = WorkingFolder.on_disk(tmp_path / "run"), tiny_config(tiny_store)
    with pytest.raises(Stop):
        train(config, working.folder, Listener(stop_at=6))
    server = Served(Desk(working, take_snapshot(working), take_snapshot))
    try:
        with browsing() as (page, trouble):
            page.goto(server.url)
            page.wait_for_selector("#live:not([hidden])")
            assert "step 4" in page.inner_text("#about")
            train(config, working.folder)
            reached = newest_step(working)
            assert reached != 4
            page.wait_for_function(f"document.querySelector('#about').textContent.includes('step {reached} ')")
            assert trouble == []
    finally:
        server.end()
        shutil.rmtree(working.folder)


def test_the_map_that_is_shown_and_a_path_are_handed_over_as_films(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryoformer_dist.viewer.desk._FILM_HEIGHT", 120)
    with page.expect_download(timeout=120_000) as turning:
        page.click("#film")
    assert turning.value.suggested_filename.startswith("consensus_mrc.")
    page.keyboard.press("p")
    drag(page, [(0.1, 0.5), (0.5, 0.4), (0.9, 0.6)])
    page.wait_for_function("document.querySelector('#stop').dataset.loaded === '15'")
    with page.expect_download(timeout=180_000) as morph:
        page.click("#filmPath")
    film = Path(morph.value.path())
    assert morph.value.suggested_filename in ("path.gif", "path.mp4")
    assert film.stat().st_size > 10_000


def test_latents_are_unrolled_by_a_button(page: Any, run: Path) -> None:
    pytest.importorskip("umap")
    page.click("#umap")
    page.wait_for_function("document.querySelector('#x').value === 'umap1'", timeout=180_000)
    assert page.input_value("#y") == "umap2"
    assert count(page) == 64
    (run / PARTICLE_ANALYSIS).unlink()
