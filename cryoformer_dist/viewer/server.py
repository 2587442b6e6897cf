"""The viewer's server: one run, on loopback, for who has the token."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from aiohttp import web

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.viewer.desk import Desk
from cryoformer_dist.viewer.guard import Handler, guard

LOOPBACK = "127.0.0.1"
FIRST_PORT = 8765
_STATIC = Path(__file__).parent / "static"
_PAGE = {"": "index.html", "viewer.js": "viewer.js", "viewer.css": "viewer.css"}


def make_app(desk: Desk, token: str) -> web.Application:
    """All that is served: the page, and a desk's answers, each beneath the token."""
    app = web.Application(middlewares=[guard(token)])
    base = f"/{token}"
    for name, file in _PAGE.items():
        app.router.add_get(f"{base}/{name}", _serve_file(_STATIC / file))
    asked = {"run": desk.describe_run, "progress": desk.tell_progress, "curves": desk.read_curves}
    for name, answer in asked.items():
        app.router.add_get(f"{base}/api/{name}", _asked(answer))
    for name, done in {"newest": desk.show_newest, "umap": desk.embed}.items():
        app.router.add_post(f"{base}/api/{name}", _asked(done))
    app.router.add_get(f"{base}/api/column/{{name}}", _named(desk.read_column))
    app.router.add_get(f"{base}/api/written/{{name}}", _named(lambda name: _download(desk.find_written(name))))
    told = {
        "choose": desk.choose,
        "save": desk.save,
        "map": desk.make_map,
        "film": desk.make_film,
        "path": desk.find_path,
        "images": desk.show_images,
    }
    for name, reply in told.items():
        app.router.add_post(f"{base}/api/{name}", _told(reply))
    return app


def _serve_file(path: Path) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    return serve


def _download(path: Path) -> web.StreamResponse:
    return web.FileResponse(path, headers={"Content-Disposition": f'attachment; filename="{path.name}"'})


def _asked(answer: Callable[[], web.StreamResponse]) -> Handler:
    """Answers are made in a thread: others are not kept waiting by a map."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await asyncio.to_thread(answer)

    return handle


def _named(answer: Callable[[str], web.StreamResponse]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await asyncio.to_thread(answer, request.match_info["name"])

    return handle


def _told(answer: Callable[[str], web.StreamResponse]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await asyncio.to_thread(answer, await request.text())

    return handle


def find_port(wanted: int | None) -> int:
    """The port asked for, or else the first free one from `FIRST_PORT` on.

    Raises
    ------
    ConfigError
        If somebody listens there already.
    """
    for port in (wanted,) if wanted is not None else range(FIRST_PORT, FIRST_PORT + 100):
        with closing(socket.socket()) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"port {wanted or FIRST_PORT} is in use; give another with --port")


async def serve(app: web.Application, port: int, ready: Callable[[], None]) -> None:
    """Serve on loopback until cancelled; ``ready`` is called once the port is open."""
    # A log of requests would hold the token.
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port).start()
        ready()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
