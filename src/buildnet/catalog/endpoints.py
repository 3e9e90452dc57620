"""Services that somebody declared for this node: where they are and what they are, never what opens them.

A file that names credentials is refused as a whole: nothing of it leaves this machine.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from buildnet.errors import InvalidRequest
from buildnet.model.resource import Resource, check_resource
from buildnet.ports import Found

FILE: Final = "endpoints.toml"
_FILE_BYTES_MAX: Final = 256 << 10
_ENDPOINTS_MAX: Final = 1000
_SECRET: Final = re.compile(r"pass|secret|token|credential|private|api_?key|auth", re.IGNORECASE)
_LOGIN: Final = re.compile(r"//[^/\s]*@")


class Endpoints:
    """A ports.Discoverer: one `endpoint` for each `[[endpoint]]` table of a TOML file, if it is there."""

    name = "endpoints"

    def __init__(self, path: Path) -> None:
        self._path = path

    def watched(self) -> Sequence[str]:
        """See ports.Discoverer."""
        return (str(self._path.parent),)

    def discover(self) -> Found:
        """See ports.Discoverer.

        Raises:
            InvalidRequest: the file cannot be read, or is not as docs/reference/resources.md says.
        """
        try:
            with self._path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return Found()
        except OSError as error:
            raise InvalidRequest(f"cannot read {self._path}: {error.strerror}", field="endpoint") from error
        if len(data) > _FILE_BYTES_MAX:
            raise InvalidRequest(f"{self._path} is over {_FILE_BYTES_MAX} bytes", field="endpoint")
        try:
            return Found(parse(data))
        except InvalidRequest as error:
            raise InvalidRequest(f"{self._path}: {error.message}", field="endpoint") from error


def parse(data: bytes) -> list[Resource]:
    """The endpoints of a file.

    Raises:
        InvalidRequest: it is not TOML, or not of this shape; the message quotes no value.
    """
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("it is not TOML in UTF-8", field="endpoint") from error
    tables = document.pop("endpoint", [])
    if document or not isinstance(tables, list) or len(tables) > _ENDPOINTS_MAX:
        raise InvalidRequest(f"write up to {_ENDPOINTS_MAX} tables [[endpoint]] and nothing else", field="endpoint")
    found: dict[str, Resource] = {}
    for number, table in enumerate(tables, 1):
        endpoint = _endpoint(table, f"[[endpoint]] {number}")
        if found.setdefault(endpoint.name, endpoint) is not endpoint:
            raise InvalidRequest(f"[[endpoint]] {number} has the name of an earlier one", field="endpoint")
    return list(found.values())


def _endpoint(table: Any, at: str) -> Resource:
    if not isinstance(table, dict):
        raise InvalidRequest(f"{at} is not a table", field="endpoint")
    for name, value in table.items():
        if _SECRET.search(name) or (isinstance(value, str) and _LOGIN.search(value)):
            raise InvalidRequest(
                f"{at}: {name!r} looks like a credential; every client would see it: take it away", field="endpoint"
            )
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InvalidRequest(f"{at}: {name!r} is neither a text nor a number", field="endpoint")
    facts = dict(table)
    name, version = str(facts.pop("name", "")), str(facts.pop("version", ""))
    resource = Resource("endpoint", name, version, tuple(sorted(facts.items())))
    try:
        check_resource(resource)
    except InvalidRequest as error:
        raise InvalidRequest(f"{at}: {error.message}", field="endpoint") from error
    return resource
