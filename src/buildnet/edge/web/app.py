"""The one application behind the door: routes of the rooms side by side, and the rules that hold for all of them.

No page of another site may read or embed what is served here; a name that was bound to this machine for an attack (DNS
rebinding) reaches nothing. What a caller may do was checked in the door.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute

from buildnet.edge.status import http_status
from buildnet.edge.web.asgi import Application, Message, Receive, Send
from buildnet.errors import BuildNetError

log = logging.getLogger(__name__)

# Trusted Types: no text becomes markup, whoever wrote it.
POLICY: Final = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NOTHING_HERE: Final = (
    "nothing is served at this path; the page is at /, its data at /api/v1/ (docs/reference/http.md); caches are, each "
    "below an optional instance name, at /cas/HASH and /ac/HASH (Bazel), /ccache/, /sccache/ (WebDAV), /gradle/, "
    "/v8/artifacts (Turborepo) and /v1/cache/HASH (Nx); /status is a status\n"
)
_MISDIRECTED: Final = (
    "this server is open to this machine only, and no name from outside may lead to it; "
    "use http://localhost or an address, or send a token\n"
)


def application(*routes: Sequence[BaseRoute]) -> Application:
    """One application of all these routes; the first that matches answers."""
    inner = Starlette(
        routes=[route for some in routes for route in some],
        exception_handlers={HTTPException: _refused, BuildNetError: _failed},
    )
    return _Guarded(inner)


class _Guarded:
    """What holds for every answer."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                headers += [pair for pair in _HEADERS if pair[0] not in present]
                if b"cache-control" not in present:
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        request = Request(scope)
        if is_misdirected(request.headers.get("host", ""), scope["client"], scope["state"]["caller"].subject):
            await PlainTextResponse(_MISDIRECTED, 421)(scope, receive, guarded)
            return
        await self._inner(scope, receive, guarded)


def is_misdirected(host: str, client: tuple[str, int] | None, subject: str) -> bool:
    """Whether a caller of this machine, without credentials, came by a name that others may have bound to it."""
    if subject or not host or client is None:
        return False
    try:
        if not ipaddress.ip_address(client[0]).is_loopback:
            return False
    except ValueError:
        return False
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        # A name without a dot is nobody's on the Internet: it comes from this machine's own list.
        name = name.lower().rstrip(".")
        return "." in name and not name.endswith(".localhost")
    return False


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return PlainTextResponse(_NOTHING_HERE, 404, headers={"buildnet-code": "not_found"})
    headers = {**(error.headers or {}), "buildnet-code": "invalid_request"}
    return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=headers)


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, BuildNetError)
    if error.code == "internal":
        log.error("a request failed inside", exc_info=error)
    body = {"error": {"code": error.code, "message": error.message}}
    return JSONResponse(body, http_status(error), headers={"buildnet-code": error.code})
