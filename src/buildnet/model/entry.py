"""One event for the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from buildnet.model.quick import quick

# Made once: `json.dumps` would make one for every entry.
ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)

Value = str | int | bool | list[str]


@quick
@dataclass(frozen=True, slots=True)
class Entry:
    """A significant event: `kind` is dotted (`action.published`), `at_unix_ms` is the controller's clock.

    Kinds so far: controller.started, access.configured, token.revoked, join_token.*, session.*, node.*,
    action.submitted, action.assigned, action.adopted, action.attempted, action.cached, action.published, action.failed,
    action.cancelled, results.updated, resource.announced, resource.withdrawn, resource.refused, cache.*, quota.*.
    Values are strings, integers, booleans and lists of strings: no floats, so that one event has one encoding.
    """

    kind: str
    at_unix_ms: int
    fields: Mapping[str, Value] = field(default_factory=dict)

    @property
    def value(self) -> dict[str, Value]:
        """All that the leaf says."""
        return {"at_unix_ms": self.at_unix_ms, "kind": self.kind, "v": 1, **self.fields}

    def encode(self) -> bytes:
        """The leaf's exact bytes: JSON, UTF-8, sorted keys, no white space (docs/design/ledger.md)."""
        return ENCODER.encode(self.value).encode()
