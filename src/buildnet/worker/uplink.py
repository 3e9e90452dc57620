"""A worker's way to its controller: its address, plainly or within TLS, or sessions by its own keys. What it learns of
the controller there it keeps, so that it finds it again without a token.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from buildnet._native import Call, Dialler, Link
from buildnet.access.keys import node_keys
from buildnet.dial import call_of, link_of
from buildnet.errors import BuildNetError, InvalidRequest, StateCorrupt, from_code
from buildnet.files import replace_file
from buildnet.model.join_line import TERM_MAX, JoinLine, check_organisation
from buildnet.wire.native import translated
from buildnet.worker.config import WorkerConfig

_log = logging.getLogger(__name__)
_VERSION: Final = 1
_BYTES_MAX: Final = 64 << 10
_KEY: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Met:
    """A controller that let this node in: its line without a token, and its session key."""

    line: JoinLine
    session_key: str


@dataclass(frozen=True, slots=True)
class Uplink:
    """What opens a call of a path, and the link that moves blobs. `failure` says why there is no session."""

    call: Callable[[str], Call]
    link: Link
    failure: Callable[[], BuildNetError | None] = lambda: None
    remember: Callable[[], None] = lambda: None

    def close(self) -> None:
        """End the link; a call is ended by whoever opened it. *Blocks* for a second at most."""
        self.link.close()


def uplink_of(config: WorkerConfig) -> Uplink:
    """The way that a configuration asks for; nothing is dialled yet.

    Raises:
        InvalidRequest: a certificate, key or token is not one.
        StateCorrupt: the state directory is damaged.
    """
    if config.line is None:
        return Uplink(partial(call_of, config.address, config.credentials), link_of(config.address, config.credentials))
    line = config.line
    own = node_keys(config.state)
    known = met(config.state)
    same = known is not None and known.line.key == line.key and known.line.organisation == line.organisation
    session_key = known.session_key if known is not None and same else None
    term = max(line.term, known.line.term) if known is not None and same else line.term
    with translated():
        dialler = Dialler(
            line.target,
            organisation=line.organisation,
            node_key=line.key,
            node_seed=own.node_seed,
            session_secret=own.session_secret,
            session_key=session_key,
            term=term,
            token=line.token_bytes,
            carrier=line.carrier or None,
            ca_pem=config.credentials.ca_pem,
            certificate_pem=config.credentials.certificate_pem,
            key_pem=config.credentials.key_pem,
        )
        link = Link.by_session(dialler)

    def call(path: str) -> Call:
        with translated():
            return link.call(path)

    def failure() -> BuildNetError | None:
        failed = dialler.failure
        return None if failed is None else from_code(*failed)

    def remember() -> None:
        _remember(config.state, line, dialler.met)

    return Uplink(call, link, failure, remember)


# What is remembered.


def met(state: Path) -> Met | None:
    """The controller that this state directory's node has joined by sessions; None when there is none.

    Raises:
        StateCorrupt: the file cannot be read or is not one.
    """
    path = state / "controller.json"
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _corrupt(path, str(error.strerror)) from error
    try:
        return parse_met(data)
    except (ValueError, KeyError, TypeError, RecursionError, BuildNetError) as error:
        raise _corrupt(path, str(error)) from error


def parse_met(data: bytes) -> Met:
    """The file's bytes.

    Raises:
        ValueError, KeyError, TypeError, InvalidRequest: they are anything else.
    """
    body = json.loads(data)
    if body["version"] != _VERSION:
        raise ValueError(f"not of version {_VERSION}")
    organisation = check_organisation(body["organisation"])
    carrier = str(body.get("carrier", ""))
    line = JoinLine(str(body["address"]), organisation, body["key"], body["term"], carrier=carrier)
    for key in (line.key, body["session_key"]):
        if _KEY.fullmatch(key) is None:
            raise ValueError("a key is not 64 hexadecimal digits")
    if not (isinstance(line.term, int) and 0 <= line.term <= TERM_MAX):
        raise ValueError("the term is not a number")
    if JoinLine.parse(line.text) != line:
        raise InvalidRequest("the address is not HOST:PORT", field="address")
    return Met(line, body["session_key"])


def _remember(state: Path, line: JoinLine, seen: tuple[str, int] | None) -> None:
    if seen is None:
        return
    session_key, term = seen
    body = {
        "version": _VERSION,
        "address": line.target,
        "organisation": line.organisation,
        "key": line.key,
        "session_key": session_key,
        "term": term,
    } | ({"carrier": line.carrier} if line.carrier else {})
    path = state / "controller.json"
    text = json.dumps(body, indent=1) + "\n"
    try:
        if path.exists() and path.read_text() == text:
            return
        replace_file(path, text)
    except OSError as error:
        # It is joined all the same, and its line still serves.
        _log.warning("cannot remember the controller in %s: %s", path, error.strerror)


def _corrupt(path: Path, why: str) -> StateCorrupt:
    return StateCorrupt(
        f"cannot use {path}: {why}; restore it from a copy, or delete it and join with a join line", path=str(path)
    )
