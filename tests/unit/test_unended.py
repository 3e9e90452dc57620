"""What a killed controller ended without a word is ended by the next: that, and nothing that somebody waits for."""

from __future__ import annotations

from collections.abc import Sequence

from buildnet.app.unended import unended
from buildnet.ledger.action_view import Run
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.ports import Progress
from buildnet.scheduler.operation import Operation

BEGAN_MS = 1_000
DIGEST = Digest("a" * 64, 142)
OTHER = Digest("b" * 64, 142)


def operation(name: str, code: str = "", at_ms: int = BEGAN_MS - 1, digest: Digest = DIGEST) -> Operation:
    one = Operation(name, Wanted(ActionKey("i", digest), frozenset(), 60.0), 1)
    if code:
        one.progress, one.completed_at_unix_ms = Progress("completed", Outcome(code, None, "why")), at_ms
    return one


def told(runs: Sequence[Run], *known: Operation) -> list[tuple[str, object]]:
    by_id = {one.id: one for one in known}
    entries = list(unended(runs, known, by_id.get, BEGAN_MS, BEGAN_MS + 5))
    assert all(entry.fields["action"] == DIGEST.text and entry.fields["instance"] == "i" for entry in entries)
    assert all(entry.at_unix_ms == BEGAN_MS + 5 for entry in entries)
    return [(entry.kind, entry.fields.get("error")) for entry in entries]


def held(name: str = "o") -> Run:
    return Run(0, DIGEST.text, "i", 1, name)


def test_it_ends_as_its_operation_did() -> None:
    assert told([held()], operation("o", "cancelled")) == [("action.cancelled", None)]
    assert told([held()], operation("o", "ok")) == [("action.cached", None)]
    assert told([held()], operation("o", "node_down")) == [("action.failed", "node_down")]


def test_what_nobody_knows_any_more_is_cancelled() -> None:
    assert told([held()], operation("p", digest=OTHER)) == [("action.cancelled", None)]
    assert told([held(""), held("")]) == [("action.cancelled", None)] * 2


def test_what_somebody_waits_for_is_left_alone() -> None:
    assert told([held()], operation("o")) == []
    # It was cancelled by one, and another who asked for the same waits.
    assert told([held()], operation("o", "cancelled"), operation("p")) == []


def test_what_ended_under_this_controller_is_told_in_its_own_time() -> None:
    assert told([held()], operation("o", "ok", at_ms=BEGAN_MS)) == []
