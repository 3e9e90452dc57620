"""Results that clients write are in the ledger before they are in the cache, and the history hears of them after.

It decides nothing about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from buildnet.model.entry import Entry
from buildnet.ports import Clock, Ledger

# An entry's limit is 8 KiB (docs/design/ledger.md); this leaves room for its other fields.
_ROWS_BYTES_MAX: Final = 7 << 10
# Quotes, a comma, and what JSON makes of a quote or a backslash in a name.
_ROW_COST_BYTES: Final = 3


@dataclass(frozen=True, slots=True)
class ClientResult:
    """A result that a client wrote of an action whose Action message is stored (native/door/src/hub.rs).

    `row` is the place of its row in the batch; `action` a digest HASH/SIZE; `result` the exact bytes of the
    ActionResult; `caller` "" when nobody said; `requested` the RequestMetadata as it came, whatever it holds.
    """

    row: int
    namespace: str
    action: str
    result: bytes
    caller: str
    requested: bytes


class ClientResults:
    """Tells the ledger what clients wrote, many rows with one entry; then `tell` hears of each action and its entry."""

    def __init__(self, ledger: Ledger, clock: Clock, tell: Callable[[ClientResult, int], None]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._tell = tell

    async def record(self, rows: Sequence[str], actions: Sequence[ClientResult] = ()) -> Sequence[int]:
        """Commit `rows`, each `NAMESPACE NAME SHA256` of a value; returns the index of the entry that holds each.

        `actions` are those of them of which more is known.

        Raises:
            BuildNetError: the ledger refused; none of them is committed.
        """
        now = self._clock.now_unix_ms()
        # An entry is of one namespace, so that who may see no other may see it whole.
        order = sorted(range(len(rows)), key=lambda place: _namespace(rows[place]))
        groups = list(_grouped([rows[place] for place in order]))
        first = await self._ledger.append([Entry("results.updated", now, {"results": group}) for group in groups])
        indices = [0] * len(rows)
        entries = (first + number for number, group in enumerate(groups) for _ in group)
        for place, index in zip(order, entries, strict=True):
            indices[place] = index
        for written in actions:
            self._tell(written, indices[written.row])
        return indices


def _namespace(row: str) -> str:
    return row.partition(" ")[0]


def _grouped(rows: Sequence[str]) -> Iterator[list[str]]:
    """Rows that stand together and are of one namespace, as many as fit an entry."""
    group: list[str] = []
    size_bytes = 0
    for row in rows:
        cost_bytes = len(row.encode()) + row.count('"') + row.count("\\") + _ROW_COST_BYTES
        full = size_bytes + cost_bytes > _ROWS_BYTES_MAX
        if group and (full or _namespace(row) != _namespace(group[0])):
            yield group
            group, size_bytes = [], 0
        group.append(row)
        size_bytes += cost_bytes
    if group:
        yield group
