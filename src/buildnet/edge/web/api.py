"""The page's API: `/api/v1/`, JSON (docs/reference/http.md). It translates and reads; the door has authorised."""

from __future__ import annotations

from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from buildnet.edge.web.events import ENTRIES_MAX, EventStream
from buildnet.edge.web.facts import Wanted
from buildnet.edge.web.proof import Claim, prove
from buildnet.edge.web.view import RECENT_SHOWN, RUNNING_SHOWN, View
from buildnet.errors import InvalidRequest, NotFound
from buildnet.ledger.log import LedgerLog
from buildnet.model.caller import Caller
from buildnet.model.resource import KINDS, NAME_BYTES_MAX
from buildnet.ports import Clock

_LISTED_MAX: Final = 1000
_RESOURCES_SHOWN: Final = 100
_INDEX_DIGITS: Final = 15


def routes(view: View, ledger: LedgerLog, clock: Clock, version: str) -> list[BaseRoute]:
    """Everything below `/api/v1/`."""

    async def nodes(request: Request) -> Response:
        return JSONResponse((await view.current()).nodes())

    async def resources(request: Request) -> Response:
        return JSONResponse(view.resources(request.path_params["id"], _wanted(request.query_params)))

    async def actions(request: Request) -> Response:
        running = number(request.query_params, "running", RUNNING_SHOWN, _LISTED_MAX)
        recent = number(request.query_params, "recent", RECENT_SHOWN, _LISTED_MAX)
        if not running or not recent:
            raise InvalidRequest("running and recent are at least 1", field="running")
        return JSONResponse((await view.current()).actions(_caller(request), running, recent))

    async def action(request: Request) -> Response:
        return JSONResponse((await view.current()).action(request.path_params["id"], _caller(request)))

    async def head(request: Request) -> Response:
        return JSONResponse(await view.head())

    async def entries(request: Request) -> Response:
        count = number(request.query_params, "count", 50, ENTRIES_MAX)
        size = await view.size()
        start = number(request.query_params, "from", max(0, size - count), 10**_INDEX_DIGITS)
        return JSONResponse({"size": size, "entries": await view.entries(start, count)})

    async def entry(request: Request) -> Response:
        index = number(request.path_params, "index", 0, 10**_INDEX_DIGITS)
        size = await view.size()
        if index >= size:
            raise NotFound(f"the ledger has no entry {index}; it has {size}", kind="entry", name=str(index))
        return JSONResponse((await view.entries(index, 1))[0])

    async def verify(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A form of another site cannot send this type.
            raise HTTPException(415, "send the claim as application/json")
        return JSONResponse(await prove(ledger, Claim.parse(await request.body())))

    async def events(request: Request) -> Response:
        said = request.headers.get("last-event-id", "") or request.query_params.get("last-event-id", "")
        # What is no number of ours is a first visit.
        last_id = int(said) if said.isascii() and said.isdigit() and len(said) <= _INDEX_DIGITS else None
        caller = _caller(request)
        hello = {"version": version, "now_unix_ms": clock.now_unix_ms(), "limited": caller.instances is not None}
        return EventStream(await view.current(), caller, hello, last_id)

    at = "/api/v1"
    return [
        Route(f"{at}/nodes", nodes),
        Route(f"{at}/nodes/{{id}}/resources", resources),
        Route(f"{at}/actions", actions),
        Route(f"{at}/actions/{{id}}", action),
        Route(f"{at}/ledger/head", head),
        Route(f"{at}/ledger/entries", entries),
        Route(f"{at}/ledger/entries/{{index}}", entry),
        Route(f"{at}/ledger/verify", verify, methods=["POST"]),
        Route(f"{at}/events", events),
    ]


def number(params: QueryParams | dict[str, Any], name: str, default: int, most: int) -> int:
    """A number from 0 to `most`.

    Raises:
        InvalidRequest: it is none.
    """
    said = str(params.get(name, default))
    if not (said.isascii() and said.isdigit() and len(said) <= _INDEX_DIGITS and int(said) <= most):
        raise InvalidRequest(f"{name} must be a number from 0 to {most}", field=name)
    return int(said)


def _wanted(params: QueryParams) -> Wanted:
    kind, name = (params.get(param, "") for param in ("kind", "name"))
    if kind and kind not in KINDS:
        raise InvalidRequest(f"{kind!r} is no kind; kinds are {', '.join(KINDS)}", field="kind")
    if len(name) > NAME_BYTES_MAX:
        raise InvalidRequest(f"name has at most {NAME_BYTES_MAX} characters", field="name")
    return Wanted(kind, name, number(params, "count", _RESOURCES_SHOWN, _LISTED_MAX))


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller
