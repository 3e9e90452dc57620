"""The one form of an entry (docs/design/ledger.md), written and read by a quick codec. Pure.

What the quick one cannot say, or might say otherwise, is left to `Entry.encode`, which defines the form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import orjson

from buildnet.model.entry import ENCODER, Entry

_PLAIN: Final = frozenset((str, int, bool))


def encode(entry: Entry) -> bytes:
    """The same bytes as `Entry.encode`."""
    try:
        return orjson.dumps(entry.value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # A number over 64 bits, or text that is no Unicode.
        return entry.encode()


def decode(body: bytes) -> dict[str, Any]:
    """What an entry says.

    Raises:
        ValueError: it is no entry, or not in its one form.
    """
    quick = _quick(body)
    value = _slow(body) if quick is None else quick
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise ValueError("it is not an event")
    return value


def _quick(body: bytes) -> dict[str, Any] | None:
    """None when the other is to judge."""
    try:
        value = orjson.loads(body)
        if type(value) is not dict or orjson.dumps(value, option=orjson.OPT_SORT_KEYS) != body:
            return None
    except (ValueError, TypeError):
        return None
    for item in value.values():
        if type(item) not in _PLAIN and (type(item) is not list or set(map(type, item)) - {str}):
            return None
    return value


def _slow(body: bytes) -> object:
    try:
        value = json.loads(body)
        again = ENCODER.encode(value).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("it is not an event") from error
    if again != body:
        raise ValueError("it is not in its one form")
    return value


def instances_of(fields: Mapping[str, Any]) -> frozenset[str]:
    """The instances that an entry is of, as keys of results name them; none when it is of the whole."""
    if isinstance(fields.get("instance"), str):
        return frozenset((fields["instance"],))
    if fields.get("kind") == "results.updated":
        return frozenset(row.rsplit(" ", 2)[0] for row in fields["results"])
    return frozenset()
