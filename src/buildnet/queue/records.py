"""Values of the model as rows of the store and back: every field of Wanted, Lease, Outcome and a graph survives.
Opens nothing.

A field that is not in a record has its default: what an older version wrote is read by this one.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any, Final

import orjson

from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.amounts import Amounts
from buildnet.model.digest import Digest
from buildnet.model.history import Requested
from buildnet.model.operation import GraphTerms, StoredGraph

RESULT_BYTES_MAX: Final = 16 << 10
"""A larger result is kept only when no action cache has it."""

_WANTED: Final = tuple((f.name, f.default) for f in fields(Wanted) if f.name != "key")
_LEASE: Final = tuple((f.name, f.default) for f in fields(Lease) if f.name not in ("fence", "key"))
_OUTCOME: Final = tuple((f.name, f.default) for f in fields(Outcome))
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_Fields = tuple[tuple[str, Any], ...]
_TUPLES: Final = "tuple"
_SETS: Final = "set"
_AMOUNTS: Final = "amounts"
_SHARED_MAX: Final = 4096


def wanted_text(wanted: Wanted) -> str:
    """All of a Wanted but its key; equal ones have one text."""
    return _text(_record(wanted, _WANTED))


def lease_text(lease: Lease) -> str:
    """All of a Lease but its fence and key."""
    return _text(_record(lease, _LEASE))


def lease_of(fence: int, key: ActionKey, text: str) -> Lease:
    """The Lease of a row."""
    return Lease(fence, key, **_values(text, _LEASE))


class WantedReader:
    """Reads them; many share one text, and then also what it means."""

    def __init__(self) -> None:
        self._shared: dict[str, dict[str, Any]] = {}

    def read(self, instance: str, digest_hash: str, digest_size_bytes: int, rest: str) -> Wanted:
        """The Wanted of a row."""
        values = self._shared.get(rest)
        if values is None:
            if len(self._shared) >= _SHARED_MAX:
                self._shared.clear()
            values = self._shared[rest] = _values(rest, _WANTED)
        return Wanted(ActionKey(instance, Digest(digest_hash, digest_size_bytes)), **values)


def outcome_text(outcome: Outcome, *, with_result: bool) -> str:
    """An outcome, with its result or without."""
    record = _record(outcome, _OUTCOME[:1] + _OUTCOME[2:])
    if outcome.result is not None and with_result:
        record["result"] = base64.b64encode(outcome.result).decode()
    return _text(record)


def outcome_of(text: str) -> Outcome:
    """The outcome of a text; one that was written without its result has none."""
    values = {"result": None, **_values(text, _OUTCOME)}
    if values["result"] is not None:
        values["result"] = base64.b64decode(values["result"])
    return Outcome(**values)


def _text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def graph_row(graph: StoredGraph) -> tuple[Any, ...]:
    """A graph as a row. What it is made of repeats itself: packed it is a small part of its size."""
    terms = {f.name: getattr(graph.terms, f.name) for f in fields(GraphTerms)}
    terms["requested"] = astuple(graph.terms.requested)
    identity = (graph.number, graph.id, len(graph.members), _text(terms), graph.submitted_at_unix_ms)
    return (*identity, zlib.compress(orjson.dumps(graph.members), 1), zlib.compress(graph.actions, 1))


def graph_of(row: tuple[Any, ...]) -> StoredGraph:
    """The graph of a row."""
    number, name, _, terms, submitted, members, actions = row
    told = orjson.loads(terms)
    told["requested"] = Requested(*told["requested"])
    names = tuple(map(tuple, orjson.loads(zlib.decompress(members))))
    return StoredGraph(name, number, GraphTerms(**told), submitted, names, zlib.decompress(actions))


def _record(value: Any, names: _Fields) -> dict[str, Any]:
    told = ((name, getattr(value, name), default) for name, default in names)
    return {name: _plain(held) for name, held, default in told if held != default}


def _values(text: str, names: _Fields) -> dict[str, Any]:
    told = orjson.loads(text)
    return {name: _rich(told[name]) for name, _ in names if name in told}


def _plain(value: Any) -> Any:
    """What JSON has words for; it knows no tuples and no sets, so they are named."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, frozenset):
        return {_SETS: sorted((_plain(item) for item in value), key=_text)}
    if isinstance(value, tuple):
        return {_TUPLES: [_plain(item) for item in value]}
    if isinstance(value, Amounts):
        return {_AMOUNTS: list(astuple(value))}
    raise TypeError(f"the store has no form for {type(value).__name__}; give it one in queue/records.py")


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        ((kind, items),) = value.items()
        return _collected(kind, (_rich(item) for item in items))
    return value


def _collected(kind: str, items: Iterable[Any]) -> Any:
    if kind == _AMOUNTS:
        return Amounts(*items)
    return frozenset(items) if kind == _SETS else tuple(items)
