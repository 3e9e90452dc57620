"""What is made of the ledger's entries is what they say, however they come, and survives being kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.ledger.action_view import ENDS, ActionView, Run
from buildnet.ledger.node_view import NodeView, SeenNode
from buildnet.ledger.views import Views
from buildnet.model.entry import Entry

Said = dict[str, Any]
KINDS = ("submitted", "assigned", "adopted", "attempted", "cached", "published", "failed", "cancelled")


def body(kind: str, at_unix_ms: int = 0, **said: Any) -> bytes:
    return Entry(kind, at_unix_ms, said).encode()


def views(bodies: Iterable[bytes], **limits: int) -> Views:
    made = Views(**limits)
    made.apply(list(bodies))
    return made


def told(made: Views) -> tuple[object, ...]:
    """All that a reader can ask."""
    runs = [*made.actions.open(), *made.actions.ended()]
    known = [made.actions.find(run.id) for run in runs]
    nodes = made.nodes.nodes()
    sessions = made.nodes.sessions()
    counts = (made.size, made.last, made.kinds, made.results, made.counts())
    return [astuple(run) for run in runs], [astuple(run) for run in known if run], nodes, sessions, counts


# Histories: three actions and three nodes, anything in any order. A fence is one action's.

actions = st.builds(
    lambda what, which, fence, node: body(
        f"action.{what}",
        action=f"a{which}",
        instance="i",
        **({"operation": f"op{which}"} if what == "submitted" else {"fence": 10 * which + fence, "worker": f"n{node}"}),
        **({"exit_code": fence} if what == "published" else {}),
        **({"error": "e", "message": "m"} if what == "failed" else {}),
    ),
    st.sampled_from(KINDS),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 2),
)
nodes = st.builds(
    lambda what, which, boot: body(
        f"node.{what}",
        node=f"n{which}",
        boot=f"b{boot}",
        slots=boot,
        tier="trusted",
        version="1",
        key=f"{which}" * 64,
    ),
    st.sampled_from(
        ("joined", "joined", "left", "draining", "drained", "cordoned", "uncordoned", "removed", "allowed", "key_bound")
    ),
    st.integers(0, 2),
    st.integers(0, 1),
)
others = st.one_of(
    st.just(body("controller.started", term=1)),
    st.builds(lambda count: body("results.updated", results=["x y z"] * count), st.integers(1, 3)),
    st.builds(lambda n, k: body("session.opened", session=n, key=f"{k}" * 64), st.integers(0, 3), st.integers(0, 2)),
    st.builds(lambda n: body("session.closed", session=n), st.integers(0, 3)),
)
histories = st.lists(st.one_of(actions, actions, nodes, others), max_size=40).map(
    lambda bodies: [said.replace(b'"at_unix_ms":0', b'"at_unix_ms":%d' % at) for at, said in enumerate(bodies)]
)


def decoded(history: Sequence[bytes]) -> list[tuple[str, Said]]:
    return [(said["kind"], said) for said in map(orjson.loads, history)]


def naive_run(segment: list[tuple[int, str, Said]], action: str) -> Run:
    """What the entries of one action from its beginning to its end, if it has one, say of it: each asked anew."""
    index, kind, first = segment[0]
    run = Run(index, action, "i", first["at_unix_ms"], first.get("operation", ""))
    alive: list[tuple[int, str]] = []
    for _, kind, said in segment:
        fence = said.get("fence")
        if kind == "controller.started":
            alive = []
        elif kind in ("action.assigned", "action.adopted"):
            alive += [] if fence in [one for one, _ in alive] else [(fence, said["worker"])]
            run.worker = said["worker"]
        elif kind == "action.attempted" and fence in [one for one, _ in alive]:
            alive = [one for one in alive if one[0] != fence]
            run.worker = alive[-1][1] if alive else ""
    run.leases = tuple(alive)
    run.state, run.worker = ("executing", run.worker) if alive else ("queued", "")
    assigned = [said["at_unix_ms"] for _, kind, said in segment if kind == "action.assigned"]
    adopted = [said["at_unix_ms"] for _, kind, said in segment if kind == "action.adopted"]
    begun = [(kind, said["at_unix_ms"]) for _, kind, said in segment if kind in ("action.assigned", "action.adopted")]
    if begun:
        run.assigned_at_unix_ms = max(assigned) if assigned else min(adopted)
    index, kind, last = segment[-1]
    if kind in ENDS:
        run.state, run.leases, run.worker = ENDS[kind], (), last["worker"]
        run.ended_at_unix_ms, run.entry, run.cached = last["at_unix_ms"], index, kind == "action.cached"
        run.exit_code, run.error, run.message = last.get("exit_code"), last.get("error", ""), last.get("message", "")
    return run


def joined(history: Sequence[bytes]) -> list[bytes]:
    """Of each action one at a time: no second submission while there is one open. Those that run apart are below."""
    kept, open_ = [], dict[str, bool]()
    for said, (kind, fields) in zip(history, decoded(history), strict=True):
        action = fields.get("action", "")
        if kind == "action.submitted" and open_.get(action) is False:
            continue
        if kind in ENDS:
            open_.pop(action, None)
        elif kind != "action.attempted":
            open_.setdefault(action, kind == "action.submitted")
        kept.append(said)
    return kept


def naive_runs(history: Sequence[bytes]) -> list[Run]:
    found: list[Run] = []
    for which in range(3):
        segment: list[tuple[int, str, Said]] = []
        for index, (kind, said) in enumerate(decoded(history)):
            is_start = kind == "controller.started"
            if said.get("action") != f"a{which}" and not (is_start and segment):
                continue
            if not segment and kind in ("action.attempted", "action.cached"):
                continue
            segment.append((index, kind, said))
            if kind in ENDS:
                found.append(naive_run(segment, f"a{which}"))
                segment = []
        if segment:
            found.append(naive_run(segment, f"a{which}"))
    return found


@given(histories)
def test_actions_are_what_their_entries_say(history: list[bytes]) -> None:
    history = joined(history)
    made = views(history).actions
    expected = naive_runs(history)
    open_ = sorted((run for run in expected if run.entry is None), key=lambda run: -run.number)
    ended = sorted((run for run in expected if run.entry is not None), key=lambda run: -(run.entry or 0))
    assert [astuple(run) for run in made.open()] == [astuple(run) for run in open_]
    assert [astuple(run) for run in made.ended()] == [astuple(run) for run in ended]


def last_of(history: list[tuple[str, Said]], node: str, *whats: str) -> tuple[int, str]:
    """Place and kind of the last entry of these kinds about a node; a start is about all of them."""
    for at in reversed(range(len(history))):
        kind, said = history[at]
        if kind in whats and said.get("node", node) == node:
            return at, kind
    return -1, ""


@given(histories)
def test_nodes_are_what_their_entries_say(history: list[bytes]) -> None:
    made, said = views(history).nodes, decoded(history)
    named = sorted({one["node"] for _, one in said if "node" in one})
    assert [node.node for node in made.nodes()] == named
    for node in made.nodes():
        about = (said, node.node)
        joined_at, kind = last_of(*about, "node.joined", "node.left", "node.removed", "controller.started")
        assert node.is_joined is (kind == "node.joined")
        assert node.cordoned is (last_of(*about, "node.cordoned", "node.uncordoned")[1] == "node.cordoned")
        assert node.removed is (last_of(*about, "node.removed", "node.allowed")[1] == "node.removed")
        drains_at, _ = last_of(*about, "node.draining")
        ends_at, _ = last_of(*about, "node.drained", "node.removed", "controller.started")
        after = [one for at, (_, one) in enumerate(said) if at > drains_at and said[at][0] == "node.joined"]
        boots = {one["boot"] for one in after if one["node"] == node.node}
        before = last_of(said[: max(drains_at, 0)], node.node, "node.joined")[0]
        boots |= {said[before][1]["boot"]} if before >= 0 else {""}
        assert node.draining is (drains_at > ends_at and len(boots) == 1)
        if node.is_joined:
            assert (node.joined_at_unix_ms, node.boot) == (joined_at, said[joined_at][1]["boot"])
        bound = last_of(*about, "node.key_bound")[0]
        assert node.key == ("" if bound < 0 else said[bound][1]["key"])


@given(histories, st.integers(0, 40))
def test_what_was_kept_goes_on_as_if_it_had_not_been(history: list[bytes], at: int) -> None:
    before = views(history[:at])
    text = b"".join(before.dump())
    again = Views.load(text)
    assert told(again) == told(before)
    assert b"".join(again.dump()) == text
    again.apply(history[at:])
    assert told(again) == told(views(history))


@given(
    st.dictionaries(
        st.sampled_from(("action", "fence", "worker", "node", "session", "slots", "boot")),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.text(max_size=3), max_size=2)
        ),
    ),
    st.sampled_from(
        (*(f"action.{what}" for what in KINDS), "node.joined", "node.left", "session.opened", "x", "node.")
    ),
)
def test_no_entry_makes_it_fail(said: Said, kind: str) -> None:
    runs, seen = ActionView(), NodeView()
    for index in range(3):
        runs.apply(index, kind, 0, said)
        seen.apply(kind, 0, said)
    assert len([*runs.open(), *runs.ended()]) <= 3
    assert len(seen.nodes()) <= 1


@given(histories, st.data())
def test_what_is_damaged_is_not_taken(history: list[bytes], data: st.DataObject) -> None:
    text = bytearray(b"".join(views(history).dump()))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError):  # noqa: PT011 - whatever was damaged
        Views.load(bytes(text))


@given(st.binary(max_size=200))
def test_what_is_no_view_is_not_taken(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it is
        Views.load(text)


def test_another_version_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(Views().dump())
    monkeypatch.setattr("buildnet.ledger.views.VERSION", 99)
    with pytest.raises(ValueError, match="version 1"):
        Views.load(text)


def test_what_ended_is_bounded_and_what_is_open_is_not() -> None:
    made = views(
        [
            *(body("action.submitted", action=f"a{n}", instance="", operation=f"o{n}") for n in range(20)),
            *(body("action.failed", action=f"a{n}", instance="", error="x") for n in range(10)),
        ],
        ended_max=3,
    ).actions
    assert [run.action for run in made.ended()] == ["a9", "a8", "a7"]
    assert [run.action for run in made.open()] == [f"a{n}" for n in reversed(range(10, 20))]
    assert (made.find("o6"), made.find("o7")) == (None, next(run for run in made.ended() if run.operation == "o7"))


def test_equal_actions_that_run_apart_are_told_apart_by_their_fences() -> None:
    named = {"action": "a", "instance": ""}
    made = views(
        [
            body("action.submitted", **named, operation="o1"),
            body("action.submitted", **named, operation="o2"),
            body("action.assigned", **named, fence=7, worker="n1"),
            body("action.assigned", **named, fence=8, worker="n2"),
            body("action.published", **named, fence=8, worker="n2", exit_code=0),
        ]
    ).actions
    assert [(run.operation, run.worker) for run in made.open()] == [("o1", "n1")]
    assert [(run.operation, run.worker, run.entry) for run in made.ended()] == [("o2", "n2", 4)]


def test_what_is_found_again_after_a_kill_is_one_action() -> None:
    named = {"action": "a", "instance": ""}
    found = body("action.cached", **named)
    made = views([body("action.submitted", **named, operation="o"), found, body("controller.started"), found]).actions
    assert [(run.operation, run.entry) for run in made.ended()] == [("o", 1)]


def test_a_second_attempt_is_of_the_same_action() -> None:
    named = {"action": "a", "instance": ""}
    made = views(
        [
            body("action.submitted", **named, operation="o"),
            body("action.assigned", **named, fence=7, worker="n1", attempt=1),
            body("action.assigned", **named, fence=8, worker="n2", attempt=2),
            body("action.attempted", **named, fence=8, worker="n2", error="overtaken"),
        ]
    ).actions
    (run,) = made.open()
    assert (run.state, run.worker, run.attempts) == ("executing", "n1", 2)


def test_nodes_that_left_first_are_forgotten_and_never_those_that_were_judged() -> None:
    joins = [body("node.joined", node=f"n{n}", slots=1) for n in range(6)]
    leaves = [body("node.left", node=f"n{n}") for n in range(5)]
    made = views([*joins, body("node.cordoned", node="n0"), *leaves], absent_max=2).nodes
    assert [(node.node, node.state) for node in made.nodes()] == [
        ("n0", "left"),
        ("n3", "left"),
        ("n4", "left"),
        ("n5", "active"),
    ]


def test_a_node_that_is_refused_is_not_held() -> None:
    refused = [body("node.refused", node=f"n{n}", reason="removed") for n in range(3)]
    assert views(refused).nodes.nodes() == []


def test_the_last_sign_of_a_node_is_its_own() -> None:
    made = views(
        [
            body("node.joined", 10, node="n", slots=1),
            body("action.assigned", 20, action="a", instance="", fence=1, worker="n"),
            body("node.cordoned", 30, node="n", by="x"),
        ]
    ).nodes
    (node,) = made.nodes()
    assert isinstance(node, SeenNode)
    assert (node.last_seen_unix_ms, node.state) == (20, "cordoned")


def test_sessions_are_counted_by_the_key_of_their_node_until_they_close_or_the_controller_ends() -> None:
    key, other = "a" * 64, "b" * 64
    said = [
        # The first is opened before the node has said its id.
        body("session.opened", session=1, key=key, node=""),
        body("node.key_bound", node="n", key=key),
        body("session.opened", session=2, key=key, node="n"),
        body("session.opened", session=3, key=other, node=""),
    ]
    assert views(said).nodes.sessions()[key] == 2
    assert views([*said, body("session.closed", session=1, key=key)]).nodes.sessions()[key] == 1
    assert views([*said, body("controller.started", term=2)]).nodes.sessions()[key] == 0


def test_the_numbers_are_of_entries() -> None:
    counts = views(
        [
            body("results.updated", results=["a b c", "d e f"]),
            body("action.published", action="a", instance="", fence=1, worker="n"),
            body("node.joined", node="n"),
        ]
    ).counts()
    assert {name: value for name, value in counts.items() if value} == {
        "ledger_entries_read": 3,
        "ledger_actions_published": 1,
        "ledger_nodes_joined": 1,
        "ledger_results_updated": 2,
    }
