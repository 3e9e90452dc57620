"""Who may call is in the ledger: the rules at each start, and every token that is revoked later. It decides nothing.

The list of revoked tokens is a file that `buildnet token revoke` appends to and the door reads (access/keys.py). Tokens
are signed wherever the key is, so their making is seen by nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from buildnet.access import keys
from buildnet.model.entry import Value

log = logging.getLogger(__name__)
_EVERY_S: Final = 1.0
# An entry is at most 8 KiB (docs/design/ledger.md), an id at most 255 bytes.
_IDS_MAX: Final = 24

Record = Callable[[str, Mapping[str, Value]], None]


def configured(access: Mapping[str, Any], revoked: frozenset[str]) -> dict[str, Value]:
    """Facts of the rules as the door takes them (AccessConfig.for_door), for the entry `access.configured`."""
    rules = {
        "keys": [hashlib.sha256(key).hexdigest() for key in access["keys"]],
        "anonymous": access["anonymous"],
        "certificates": access["certificates"],
    }
    canonical = json.dumps(rules, sort_keys=True, separators=(",", ":"))
    return {
        "anonymous": list(access["anonymous"]),
        "certificates": len(access["certificates"]),
        "keys": len(access["keys"]),
        "revoked": len(revoked),
        "rules_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
    }


class RevocationWatch:
    """Tells of tokens that come onto the list."""

    def __init__(self, state: Path, record: Record) -> None:
        self._state = state
        self._record = record
        self._stamp = self._stamp_now()
        self.known = keys.revoked(state)

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            facts = keys.revoked_path(self._state).stat()
        except FileNotFoundError:
            return None
        return facts.st_mtime_ns, facts.st_size

    def look(self) -> None:
        """Record what was revoked since the last look."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        # Before the list: what is added while it is read is seen at the next look.
        self._stamp = stamp
        now = keys.revoked(self._state)
        fresh = sorted(now - self.known)
        self.known = self.known | now
        for start in range(0, len(fresh), _IDS_MAX):
            self._record("token.revoked", {"tokens": fresh[start : start + _IDS_MAX]})

    async def run(self) -> None:
        """Look each second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                self.look()
            except OSError as error:
                log.warning("the list of revoked tokens cannot be read, so none is told to the ledger: %s", error)
