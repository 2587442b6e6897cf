from typing import Any

import pytest
from aiohttp import web
from support.visits import Client, visit

from cryoformer_dist.errors import SelectionError
from cryoformer_dist.viewer.guard import guard, new_token

TOKEN = "secret-token"


async def fail_plainly(request: web.Request) -> web.Response:
    raise SelectionError("no column jnk; did you mean junk?")


async def fail_inside(request: web.Request) -> web.Response:
    raise ZeroDivisionError("of our own")


async def succeed(request: web.Request) -> web.Response:
    return web.Response(text="let in")


def look(path: str, method: str = "GET", **options: Any) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of one visit."""
    app = web.Application(middlewares=[guard(TOKEN)])
    app.router.add_get(f"/{TOKEN}/", succeed)
    app.router.add_get(f"/{TOKEN}/plain", fail_plainly)
    app.router.add_get(f"/{TOKEN}/inside", fail_inside)

    async def go(client: Client) -> tuple[int, str, dict[str, str]]:
        response = await client.request(method, path, **options)
        return response.status, await response.text(), dict(response.headers)

    return visit(app, go)


def test_who_has_the_token_is_let_in() -> None:
    assert look(f"/{TOKEN}/")[:2] == (200, "let in")
    assert len({new_token() for _ in range(9)}) == 9
    assert min(len(new_token()) for _ in range(9)) >= 32


@pytest.mark.parametrize("path", ["/", "/secret-toke/", "/secret-token1/", "/other/plain", "/é/"])
def test_another_token_is_refused_whatever_is_asked(path: str) -> None:
    status, body, _ = look(path)
    assert status == 403
    assert "wrong or missing token; open the address" in body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_another_host_is_refused_even_with_the_token(host: str) -> None:
    status, body, _ = look(f"/{TOKEN}/", headers={"Host": host})
    assert status == 403
    assert "127.0.0.1 and localhost only" in body


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1", "[::1]:80", "LOCALHOST"])
def test_a_tunnel_may_have_another_port(host: str) -> None:
    assert look(f"/{TOKEN}/", headers={"Host": host})[0] == 200


def test_errors_are_one_sentence_and_ours_are_not_the_pages_business(caplog: pytest.LogCaptureFixture) -> None:
    assert look(f"/{TOKEN}/plain")[:2] == (400, '{"error": "no column jnk; did you mean junk?"}')
    status, body, _ = look(f"/{TOKEN}/inside")
    assert (status, "of our own" in body) == (500, False)
    assert "ZeroDivisionError" in caplog.text
    assert TOKEN not in caplog.records[-1].getMessage()
    assert look(f"/{TOKEN}/nothing")[0] == 404
    assert look(f"/{TOKEN}/", method="POST")[0] == 405


@pytest.mark.parametrize("path", [f"/{TOKEN}/", "/wrong/", f"/{TOKEN}/plain"])
def test_every_answer_forbids_foreign_scripts_and_frames(path: str) -> None:
    headers = look(path)[2]
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
