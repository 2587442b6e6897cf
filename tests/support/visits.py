"""Visits to a server of ours, in the test's own process."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

Client = TestClient[web.Request, web.Application]
Found = TypeVar("Found")


def visit(app: web.Application, go: Callable[[Client], Awaitable[Found]]) -> Found:
    """What a visitor finds; the server is gone afterwards."""

    async def serve() -> Found:
        async with TestClient(TestServer(app)) as client:
            return await go(client)

    return asyncio.run(serve())
