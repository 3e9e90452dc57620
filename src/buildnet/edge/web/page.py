"""The page as it was built from `ui/`: read once, served from memory, named by content where it may be kept for ever.

A file that was not there at the start is never served, so no path of a request reaches the disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from buildnet.errors import StateCorrupt

STATIC: Final = Path(__file__).parent / "static"
_SIZE_BYTES_MAX: Final = 16 << 20
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_UNBUILT: Final = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>BuildNET</title>
<h1>The page was not built</h1>
<p>This installation has no built page: Node.js 18 or later was absent when it was made. Install nodejs and npm, run
<code>make setup</code>, and start the server again. The data is served all the same:
<a href="/api/v1/nodes">nodes</a>, <a href="/api/v1/actions">actions</a>, <a href="/api/v1/ledger/head">ledger</a>, and
<a href="/status">the status</a>.</p>
</html>
"""


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    kind: str
    tag: str
    kept: bool


def routes(directory: Path = STATIC) -> list[BaseRoute]:
    """The page at `/` and what it loads.

    Raises:
        StateCorrupt: what was built is larger than a page may be.
    """
    files = _read(directory)

    async def page(request: Request) -> Response:
        return _answer(request, files["index.html"])

    async def asset(request: Request) -> Response:
        found = files.get(f"assets/{request.path_params['name']}")
        # A name of an older build: what asks for it is an old page, and must not keep the answer.
        return (
            Response("this build of the page has no such file; load the page again\n", 404)
            if found is None
            else (_answer(request, found))
        )

    return [Route("/", page), Route("/assets/{name}", asset)]


def _read(directory: Path) -> Mapping[str, _File]:
    files: dict[str, _File] = {}
    total = 0
    for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
        if not path.is_file():
            continue
        total += path.stat().st_size
        if total > _SIZE_BYTES_MAX:
            raise StateCorrupt(f"the built page in {directory} is over 16 MiB; run make setup", path=str(directory))
        name = path.relative_to(directory).as_posix()
        files[name] = _file(path.read_bytes(), name)
    files.setdefault("index.html", _file(_UNBUILT, "index.html"))
    return files


def _file(body: bytes, name: str) -> _File:
    # `ui/vite.config.ts` puts a hash of its content into the name of every asset.
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    kind = _KINDS.get(PurePosixPath(name).suffix, "application/octet-stream")
    return _File(body, kind, tag, name.startswith("assets/"))


def _answer(request: Request, file: _File) -> Response:
    headers = {
        "etag": file.tag,
        "cache-control": "public, max-age=31536000, immutable" if file.kept else "no-cache",
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.kind, headers=headers)
