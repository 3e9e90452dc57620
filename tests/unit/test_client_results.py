"""What clients wrote shares entries of the ledger, each within its limit, and every row knows its entry."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from buildnet.edge.results import ClientResult, ClientResults
from buildnet.ledger.files import BODY_BYTES_MAX
from buildnet.testing.memory_ledger import MemoryLedger


class Still:
    """A clock that stands."""

    def now_unix_ms(self) -> int:
        return 1

    def monotonic_s(self) -> float:
        return 0.0


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"]), max_size=300)


@given(st.lists(names, max_size=60))
async def test_each_row_is_in_the_entry_that_is_said(found: list[str]) -> None:
    rows = [f"{name} {number} {'0' * 64}" for number, name in enumerate(found)]
    ledger = MemoryLedger()
    heard: list[tuple[ClientResult, int]] = []
    actions = [ClientResult(place, "", "", b"", "", b"") for place in range(0, len(rows), 3)]
    indices = await ClientResults(ledger, Still(), lambda *told: heard.append(told)).record(rows, actions)
    assert heard == [(action, indices[action.row]) for action in actions]
    told = [json.loads(body)["results"] for body in ledger.bodies]
    assert sorted(row for group in told for row in group) == sorted(rows)
    assert all(len({row.partition(" ")[0] for row in group}) == 1 for group in told)
    for row, index in zip(rows, indices, strict=True):
        assert row in json.loads(ledger.bodies[index])["results"]
    assert all(len(body) <= BODY_BYTES_MAX for body in ledger.bodies)
