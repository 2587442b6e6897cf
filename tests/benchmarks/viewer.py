"""A million particles in the viewer: how soon they are seen, how smoothly they are moved, what the server needs.

The particles are made up (a curved cloud of eight latent dimensions and ten columns more), the page runs in headless
Chromium with GL in software, the server is a process of its own. Frames are those that the browser has a page prepare,
which waits for GL where that is behind. Needs playwright and chromium. Run by hand, from the repository's root and with
``tests`` on the path (``PYTHONPATH=.:tests``): ``python tests/benchmarks/viewer.py --particles 1000000``.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
from support.browser import browsing

from cryoformer_dist.data.selection import ParticleFile, RunState
from cryoformer_dist.selection.columns import Column, ParticleColumns
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.viewer.desk import Desk
from cryoformer_dist.viewer.server import LOOPBACK, find_port, make_app, serve
from cryoformer_dist.viewer.snapshot import Snapshot

BOX, DIMENSIONS, SECONDS = 64, 8, 5.0
COUNT_FRAMES = """
seconds => new Promise(resolve => {
  const start = performance.now();
  let frames = 0;
  const count = () => {
    frames++;
    const passed = (performance.now() - start) / 1000;
    if (passed < seconds) requestAnimationFrame(count);
    else resolve(frames / passed);
  };
  requestAnimationFrame(count);
})
"""


def make_up(particles: int) -> Snapshot:
    """A curved cloud, and a network that knows one map."""
    rng = np.random.default_rng(0)
    angle = rng.beta(2, 3, particles) * np.pi
    latents = rng.normal(0, 0.15, (particles, DIMENSIONS)).astype(np.float32)
    latents[:, 0] += np.cos(angle)
    latents[:, 1] += np.sin(angle)
    values = {f"pc{axis + 1}": latents[:, axis] for axis in range(DIMENSIONS)}
    values |= {name: rng.normal(0, 1, particles).astype(np.float32) for name in ("junk", "amplitude", "width")}
    angles = {name: rng.uniform(0, 180, particles).astype(np.float32) for name in ("rot_deg", "tilt_deg", "psi_deg")}
    columns = {name: Column(each, "", name) for name, each in (values | angles).items()}
    columns["cluster"] = Column((angle * 3).astype(np.int64), "", "cluster", "category")
    rows = rng.permutation(particles)
    columns["source_row"] = Column(rows, "", "row")
    axis = np.arange(BOX) - BOX / 2
    blob = np.exp(-np.add.outer(np.add.outer(axis**2, axis**2), axis**2) / 60).astype(np.float32)
    trained: Any = SimpleNamespace(
        manifest=SimpleNamespace(name="made up", box_size=BOX, pixel_size_angstrom=2.0),
        latents=latents,
        decode_each=lambda vectors: (blob for _ in vectors),
    )
    store: Any = None
    run = RunState("made-up", 1)
    return Snapshot(
        1, ParticleColumns(ParticleFile("a.star", ""), run, rows, rows, columns, {"latent": latents}, store), trained
    )


def serve_made_up(particles: int, folder: str, told: Connection) -> None:
    """The server's process."""
    snapshot, port = make_up(particles), find_port(None)
    desk = Desk(WorkingFolder.on_disk(Path(folder)), snapshot, lambda working: snapshot)
    asyncio.run(serve(make_app(desk, "token"), port, lambda: told.send(f"http://{LOOPBACK}:{port}/token/")))


def measure(page: Any, url: str) -> dict[str, float]:
    """Seconds and frames, as a user meets them."""
    found: dict[str, float] = {}
    page.goto(url)
    page.wait_for_selector("body[data-painted]", timeout=60_000)
    found["first_paint_seconds"] = float(page.get_attribute("body", "data-painted")) / 1000
    # The images, which nobody made up, are refused meanwhile.
    page.keyboard.press("2")
    page.wait_for_selector("#busy", state="hidden")
    page.wait_for_timeout(3000)
    found["pan_frames_per_second"] = count_frames(page)
    page.mouse.up()
    page.click("#home")
    page.wait_for_timeout(3000)
    page.keyboard.press("l")
    found["lasso_frames_per_second"] = count_frames(page)
    start = time.perf_counter()
    page.mouse.up()
    page.wait_for_function("document.querySelector('#origin').textContent.includes('lasso')", timeout=60_000)
    found["lasso_to_count_seconds"] = time.perf_counter() - start
    page.wait_for_selector("#busy", state="hidden", timeout=60_000)
    found["lasso_to_painted_seconds"] = time.perf_counter() - start
    found["selected"] = float(page.get_attribute("#count", "data-count"))
    return found


def count_frames(page: Any) -> float:
    """Frames a second while the mouse, pressed, goes round over the map."""
    box = page.locator("#plot").bounding_box()
    before, pressed = page.locator("#map").screenshot(), False
    page.evaluate(f"void (window.counted = ({COUNT_FRAMES})({SECONDS}))")
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS:
        # As often as a mouse tells where it is.
        time.sleep(0.008)
        turn = 2 * np.pi * passed / SECONDS
        page.mouse.move(
            box["x"] + box["width"] * (0.5 + 0.3 * np.cos(turn)), box["y"] + box["height"] * (0.5 + 0.3 * np.sin(turn))
        )
        if not pressed:
            page.mouse.down()
            pressed = True
    frames = float(page.evaluate("window.counted"))
    assert page.locator("#map").screenshot() != before
    return frames


def read_peak_mib(process: int) -> float:
    """Largest resident memory of a process so far."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--particles", type=int, default=1_000_000)
    particles = parser.parse_args().particles
    told, tells = multiprocessing.Pipe()
    with TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        server = context.Process(target=serve_made_up, args=(particles, folder, tells), daemon=True)
        server.start()
        url, load = told.recv(), os.getloadavg()[0]
        with browsing() as (page, trouble):
            found = measure(page, url)
        found |= {"server_peak_mib": read_peak_mib(server.pid or 0), "load_average": load}
        server.terminate()
        server.join()
    print(json.dumps({name: round(value, 2) for name, value in found.items()}, indent=1))
    print(*trouble, sep="\n")


if __name__ == "__main__":
    main()
