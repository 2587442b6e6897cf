import asyncio
import io
import json
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.visits import Client, visit

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.viewer.desk import Desk
from cryoformer_dist.viewer.server import LOOPBACK, find_port, make_app, serve

TOKEN = "token"


def look(desk: Desk, go: Callable[[Client], Any]) -> Any:
    return visit(make_app(desk, TOKEN), go)


def test_the_page_is_whole_and_names_no_other_place(desk: Desk) -> None:
    async def go(client: Client) -> list[str]:
        return [await (await client.get(f"/{TOKEN}/{name}")).text() for name in ("", "viewer.js", "viewer.css")]

    page, script, style = look(desk, go)
    assert '<script type="module" src="viewer.js">' in page
    assert len(script) > 100_000
    assert not any(word in text for text in (page, style) for word in ("http:", "https:", "//", "@import"))


def test_a_selection_goes_round_through_the_server(desk: Desk, read_arrays: Callable[..., Any]) -> None:
    chosen = {"lassos": [], "gates": [{"column": "pc1", "low": 0, "high": None}]}

    async def go(client: Client) -> tuple[Any, ...]:
        answer = await client.post(f"/{TOKEN}/api/choose", data=json.dumps(chosen))
        column = await client.get(f"/{TOKEN}/api/column/pc1")
        saved = {"name": "right", "chosen": chosen, "files": [".star"], "refined_poses": False}
        written = await client.post(f"/{TOKEN}/api/save", data=json.dumps(saved))
        fetched = await client.get(f"/{TOKEN}/api/written/right.star")
        arrays = [read_arrays(await each.read(), each.headers["X-About"])[0] for each in (answer, column)]
        return *arrays, await written.json(), await fetched.text(), fetched.headers["Content-Disposition"]

    found, column, written, text, disposition = look(desk, go)
    np.testing.assert_array_equal(found["particles"], np.flatnonzero(column["values"] >= 0))
    assert written["particles"] == len(found["particles"]) == text.count(".mrcs")
    assert "right.star" in disposition


def test_refusals_come_as_one_sentence(desk: Desk) -> None:
    async def go(client: Client) -> list[tuple[int, Any]]:
        asked = [
            client.post(f"/{TOKEN}/api/choose", data="{"),
            client.get(f"/{TOKEN}/api/column/jnk"),
            client.get(f"/{TOKEN}/api/written/..%2Fconfig.yaml"),
            client.post(f"/{TOKEN}/api/map", data=json.dumps({"kind": "particle", "particle": 10**30})),
            client.post(f"/{TOKEN}/api/choose", data=io.BytesIO(b" " * 2**21)),
        ]
        return [(answer.status, await answer.json()) for answer in [await each for each in asked]]

    for status, answer in look(desk, go):
        assert status in (400, 404, 413)
        assert list(answer) == ["error"]
        assert "Traceback" not in answer["error"]


def test_it_listens_on_loopback_only(desk: Desk) -> None:
    port = find_port(None)

    async def go() -> None:
        ready = asyncio.Event()
        serving = asyncio.create_task(serve(make_app(desk, TOKEN), port, ready.set))
        await ready.wait()
        _, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.close()
        # All of 127/8 is this machine, but not the address that was bound.
        with pytest.raises(OSError, match=r"refused|Connect"):
            await asyncio.open_connection("127.0.0.2", port)
        with pytest.raises(ConfigError, match=f"port {port} is in use; give another with --port"):
            find_port(port)
        assert find_port(None) != port
        serving.cancel()

    asyncio.run(go())
    with socket.create_server((LOOPBACK, port), reuse_port=False):
        pass
