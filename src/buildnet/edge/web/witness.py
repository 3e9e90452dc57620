"""A witness over HTTP (c2sp.org/tlog-witness): reads a bounded request in bounded time; the witness decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from buildnet.errors import BuildNetError, InvalidRequest, TooLarge
from buildnet.ledger.witness import REQUEST_BYTES_MAX, SIZE_TYPE, AddCheckpoint, Refused
from buildnet.ledger.witness_state import Witness

log = logging.getLogger(__name__)

BODY_S: Final = 20.0
DRAINED_BYTES_MAX: Final = 4 * REQUEST_BYTES_MAX
_TOLD_BYTES: Final = 4096
_HTTP: Final = {"invalid_request": 400, "too_large": 413, "storage_full": 507}


def routes(witness: Witness, now_unix_s: Callable[[], int], *, body_s: float = BODY_S) -> list[BaseRoute]:
    """What a witness answers.

    Args:
        witness: who decides and keeps.
        now_unix_s: the time that cosignatures carry.
        body_s: how long a request may take to arrive.
    """

    async def add_checkpoint(request: Request) -> Response:
        try:
            async with asyncio.timeout(body_s):
                body = await _body(request)
            asked = AddCheckpoint.parse(body)
            answer = await asyncio.to_thread(witness.add_checkpoint, asked, now_unix_s())
        except TimeoutError:
            return _text("the request did not arrive in time", 408, close=True)
        except ClientDisconnect:
            return _text("the request broke off", 400, close=True)
        except BuildNetError as error:
            status = _HTTP.get(error.code, 500)
            if status >= 500:
                log.error("a checkpoint could not be cosigned: %s", error)
            return _text(error.message, status, close=status == 413)
        if not isinstance(answer, Refused):
            return PlainTextResponse(answer.line)
        if answer.size is not None:
            # As a header: a media type of text would have a charset appended, and clients compare the whole.
            return Response(f"{answer.size}\n", answer.status, {"content-type": SIZE_TYPE})
        # What a log's own key signed and is no continuation is evidence against it.
        log.log(
            logging.WARNING if answer.status == 422 else logging.INFO,
            "refused: %s: %r",
            answer.reason,
            body[:_TOLD_BYTES],
        )
        return _text(answer.reason, answer.status)

    async def latest(request: Request) -> Response:
        origin = witness.origins.get(request.path_params["origin_hash"])
        note = None if origin is None else await asyncio.to_thread(witness.latest, origin)
        if note is None:
            return _text("no checkpoint of such a log was cosigned here", 404)
        return PlainTextResponse(note, headers={"cache-control": "no-cache"})

    return [
        Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
        Route("/{origin_hash}/checkpoint", latest, methods=["GET"]),
    ]


async def _body(request: Request) -> bytes:
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise InvalidRequest("the content's length is not a number", field="content-length")
    too_large = TooLarge(f"the request is over {REQUEST_BYTES_MAX} bytes", limit_bytes=REQUEST_BYTES_MAX)
    if int(length) > DRAINED_BYTES_MAX:
        raise too_large
    body, count = bytearray(), 0
    # A connection that is closed on what it brought is reset, and its answer lost: a little more is let come.
    async for chunk in request.stream():
        count += len(chunk)
        if count <= REQUEST_BYTES_MAX:
            body += chunk
        elif count > DRAINED_BYTES_MAX:
            break
    if count > REQUEST_BYTES_MAX:
        raise too_large
    return bytes(body)


def _text(reason: str, status: int, *, close: bool = False) -> Response:
    return PlainTextResponse(f"{reason}\n", status, {"connection": "close"} if close else None)
