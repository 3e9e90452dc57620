"""The ledger over HTTP as c2sp.org/tlog-tiles has it, so that foreign monitors can read it. It writes nothing.

What a tile's path holds never changes; the checkpoint does, and is asked for anew each time.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from buildnet.errors import BuildNetError, NotFound
from buildnet.ledger import tiles
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog
from buildnet.ledger.tiles import Tile

PREFIX: Final = "/ledger"
# A bundle is at most 2 MiB; whoever comes beyond these waits.
_READS_AT_ONCE: Final = 16
_GZIP_LEVEL: Final = 6
# Not `public`: what was asked for with a token is not for a shared cache.
_IMMUTABLE: Final = "max-age=31536000, immutable"
_REFUSED: Final = re.compile(r"q=0(\.0*)?")
_HTTP: Final = {"not_found": 404, "invalid_request": 404, "overloaded": 503, "storage_full": 507}

Witnesses = Callable[[], list[dict[str, Any]]]
"""What became of asking each witness, for people."""


def routes(ledger: LedgerLog, cosigned: Cosigned | None = None, witnesses: Witnesses | None = None) -> list[BaseRoute]:
    """What stands below `/ledger/`.

    Args:
        ledger: an open ledger.
        cosigned: the newest checkpoint that witnesses cosigned, for those who ask for it.
        witnesses: tells of the witnesses.
    """
    pages = _Pages(ledger, cosigned, witnesses)
    return [
        Route(f"{PREFIX}/checkpoint", pages.checkpoint, methods=["GET", "HEAD"]),
        Route(f"{PREFIX}/tile/{{path:path}}", pages.tile, methods=["GET", "HEAD"]),
        Route(f"{PREFIX}/key", pages.key, methods=["GET", "HEAD"]),
        Route(f"{PREFIX}/witnesses", pages.witnesses, methods=["GET", "HEAD"]),
    ]


class _Pages:
    def __init__(self, ledger: LedgerLog, cosigned: Cosigned | None, witnesses: Witnesses | None) -> None:
        self._ledger = ledger
        self._cosigned = cosigned
        self._witnesses = witnesses
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)

    async def checkpoint(self, request: Request) -> Response:
        """The newest checkpoint, or with `?cosigned=1` the newest that witnesses cosigned."""
        try:
            if request.query_params.get("cosigned", "0") not in ("", "0", "false"):
                note = None if self._cosigned is None else self._cosigned.note
                if note is None:
                    raise NotFound("no witness has cosigned a checkpoint yet", kind="checkpoint", name="cosigned")
            else:
                note = await self._ledger.checkpoint()
                note = note if self._cosigned is None else self._cosigned.over(note)
        except BuildNetError as error:
            return _refused(request, error)
        return _answer(request, note.encode(), "text/plain; charset=utf-8", "no-cache")

    async def tile(self, request: Request) -> Response:
        """A tile of the tree, or a bundle of entries."""
        try:
            tile = Tile.parse(request.path_params["path"])
            async with self._reads:
                body = await self._content(tile)
                if tile.level != tiles.ENTRIES:
                    return _answer(request, body, "application/octet-stream", _IMMUTABLE)
                return await _packed(request, body)
        except BuildNetError as error:
            return _refused(request, error)

    async def _content(self, tile: Tile) -> bytes:
        if tile.level == tiles.ENTRIES:
            parts = await self._ledger.read(tile.start, tile.width)
        else:
            parts = await self._ledger.nodes(tile.level * tiles.HEIGHT, tile.start, tile.width)
        # Rows are there only under a signed checkpoint: a tile whose rows are all there is as it will be for ever.
        if len(parts) < tile.width:
            raise NotFound(
                f"the tree of {self._ledger.size} entries has no tile {tile.path}", kind="tile", name=tile.path
            )
        return tiles.bundle(parts) if tile.level == tiles.ENTRIES else b"".join(parts)

    async def key(self, request: Request) -> Response:
        """The key that checkpoints are verified with; whoever trusts it has it from elsewhere too."""
        body = f"{self._ledger.verifier.text}\n".encode()
        return _answer(request, body, "text/plain; charset=utf-8", "no-cache")

    async def witnesses(self, request: Request) -> Response:
        """Each witness that is asked, and what became of it."""
        told = [] if self._witnesses is None else self._witnesses()
        size = 0 if self._cosigned is None else self._cosigned.size
        body = json.dumps({"cosigned_size": size, "witnesses": told}).encode()
        return _answer(request, body, "application/json", "no-store")


async def _packed(request: Request, body: bytes) -> Response:
    accepted = [coding.split(";") for coding in request.headers.get("accept-encoding", "").replace(" ", "").split(",")]
    wanted = any(name in ("gzip", "*") and not any(map(_REFUSED.fullmatch, rest)) for name, *rest in accepted)
    if not wanted:
        return _answer(request, body, "application/octet-stream", _IMMUTABLE, {"vary": "accept-encoding"})
    # Without the time in gzip's header, the same entries are always the same bytes.
    packed = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL, mtime=0)
    headers = {"vary": "accept-encoding", "content-encoding": "gzip"}
    return _answer(request, packed, "application/octet-stream", _IMMUTABLE, headers)


def _answer(
    request: Request, body: bytes, content_type: str, cache_control: str, more: dict[str, str] | None = None
) -> Response:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": cache_control, "x-content-type-options": "nosniff", **(more or {})}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known or known == ["*"]:
        headers.pop("content-encoding", None)
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers={**headers, "content-length": str(len(body))}, media_type=content_type)
    return Response(body, headers=headers, media_type=content_type)


def _refused(request: Request, error: BuildNetError) -> Response:
    headers = {"buildnet-code": error.code, "cache-control": "no-store"}
    body = b"" if request.method == "HEAD" else f"{error.message}\n".encode()
    return Response(body, _HTTP.get(error.code, 500), headers, "text/plain; charset=utf-8")
