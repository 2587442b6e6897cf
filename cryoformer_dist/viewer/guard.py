"""Who is let in: who knows the token, and speaks to this machine by its own name."""

import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from cryoformer_dist.errors import CryoFormerError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
# Nothing but our own files, and nobody else may frame the page or learn its address. regl writes its own programs, so
# `unsafe-eval`: of scripts that come from here only.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
log = logging.getLogger(__name__)


def new_token() -> str:
    """A secret for one start of the server."""
    return secrets.token_urlsafe(24)


def guard(token: str) -> Middleware:
    """Refuse whoever names another host, or has another token as the first part of the path; errors become answers.

    A page of somebody else that resolves its own name to this machine still names that host, and is refused.
    """

    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await _answer(token, request, handler)
        response.headers.update(_HEADERS)
        return response

    return let_in


async def _answer(token: str, request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.host.lower().rpartition(":")[0] not in _HOSTS and request.host.lower() not in _HOSTS:
        return refuse(403, "this server answers to 127.0.0.1 and localhost only; open the address as it was printed")
    given = request.path.split("/")[1]
    if not hmac.compare_digest(given.encode(), token.encode()):
        return refuse(403, "wrong or missing token; open the address that `cryoformer-dist view` has printed last")
    try:
        return await handler(request)
    except CryoFormerError as error:
        return refuse(400, str(error))
    except web.HTTPException as error:
        return refuse(error.status, f"{request.method} {request.path.partition(token)[2]}: {error.reason}")
    except Exception:
        log.exception("answering %s", request.path.partition(token)[2])
        return refuse(500, "the server failed at this; its terminal says why")


def refuse(status: int, message: str) -> web.Response:
    """One sentence of what is wrong and what to do."""
    return web.json_response({"error": message}, status=status)
