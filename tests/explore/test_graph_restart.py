"""Every moment at which a controller may be killed while a graph runs: what was accepted ends once, and as it was told.

The real graph core and the real decisions of a start, driven through all orders of a small graph: actions that end
well or badly, one cancel, two kills. The scheduler between them is as small as it can be; tests/explore/test_restart.py
walks the real one. Each mechanism is then switched off, and its hole appears.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.digest import UNKNOWN, Digest
from buildnet.model.operation import GraphTerms, Intended, Stored, StoredGraph, StoredLease, StoredOperation
from buildnet.scheduler import graph as core
from buildnet.scheduler.recovery import decide
from tests.explore.search import search

NEEDS = {"a": (), "b": ("a",), "c": ()}
NAMES = tuple(NEEDS)
NUMBER = {name: number for number, name in enumerate(NAMES, 1)}
GRAPH = StoredGraph("g", 1, GraphTerms("", ""), 0, tuple((name, name) for name in NAMES), b"")
WANTED = {name: Wanted(ActionKey("", Digest(f"{NUMBER[name]:064x}", 1)), frozenset(), 1.0) for name in NAMES}
OUTCOMES = {
    "well": Outcome("ok", b""),
    "badly": Outcome("ok", b"", exit_code=1),
    "cancelled": Outcome("cancelled", None),
}
DEPENDENT = Outcome("dependency_failed", None)
KILLS = 2
STATES_MAX = 400_000


@dataclass(frozen=True)
class Without:
    """What is switched off."""

    graph_before_told: bool = True
    begun_before_run: bool = True
    end_before_told: bool = True
    ended_kept_with_graph: bool = True


@dataclass
class World:
    """The graph's core, the store, and what the world has seen. `due` is done once all that is written is kept."""

    on: Without
    core: core.GraphCore | None = None
    has_graph: bool = False
    rows: dict[str, StoredOperation] = field(default_factory=dict)
    kept: tuple[bool, tuple[tuple[str, StoredOperation], ...]] = (False, ())
    asked: tuple[str, ...] = ()
    stopping: frozenset[str] = frozenset()
    running: frozenset[str] = frozenset()
    ledger: frozenset[tuple[str, str]] = frozenset()
    due: tuple[tuple[str, str], ...] = ()
    named: bool = False
    told: frozenset[tuple[str, str, int]] = frozenset()
    ran: tuple[str, ...] = ()
    cancels: int = 1
    kills: int = KILLS
    wrong: str = ""
    path: tuple[object, ...] = ()

    def copy(self) -> World:
        twin = None if self.core is None else pickle.loads(pickle.dumps(self.core))
        return replace(self, core=twin, rows=dict(self.rows))

    def key(self) -> tuple[object, ...]:
        stands = self.core and (tuple(map(self.core.state, NAMES)), tuple(map(self.core.is_taken, NAMES)))
        seen = (self.named, self.told, self.ran, self.cancels, self.kills, self.wrong, self.ledger)
        return (stands, self.written, self.kept, self.asked, self.stopping, self.running, self.due, seen)

    @property
    def written(self) -> tuple[bool, tuple[tuple[str, StoredOperation], ...]]:
        return (self.has_graph, tuple(sorted(self.rows.items())))


def graph_core() -> core.GraphCore:
    return core.GraphCore(NEEDS, in_flight_max=2)


def apply(world: World, effects: Sequence[core.Effect]) -> None:
    """What the service does about what the core wants."""
    for effect in effects:
        match effect:
            case core.Ask(name):
                world.asked += (name,)
            case core.Fail(name):
                conclude(world, name, DEPENDENT)
            case core.Withdraw(name):
                conclude(world, name, OUTCOMES["cancelled"])
            case core.Stop(name):
                if name in world.asked:
                    world.stopping |= {name}
                elif world.rows[name].outcome is None:
                    # A run that was stopped is none: if the cancelling is lost with its controller, it runs again.
                    world.running -= {name}
                    world.ran = tuple(other for other in world.ran if other != name)
                    end(world, name, OUTCOMES["cancelled"])
            case core.Release():
                pass


def conclude(world: World, name: str, outcome: Outcome) -> None:
    """One that was never begun ends."""
    world.rows[name] = StoredOperation(NUMBER[name], name, replace(WANTED[name], key=ActionKey("", UNKNOWN)), 0)
    end(world, name, outcome)


def end(world: World, name: str, outcome: Outcome) -> None:
    """An operation ends: what is no result is kept before it is told."""
    world.rows[name] = replace(world.rows[name], outcome=outcome, completed_at_unix_ms=0)
    if outcome.code == "ok" or not world.on.end_before_told:
        tell(world, name)
    else:
        world.due += (("tell", name),)


def tell(world: World, name: str) -> None:
    outcome = world.rows[name].outcome
    assert outcome is not None
    if any(name == other for other, _, _ in world.told):
        world.wrong = world.wrong or f"{name} ended twice"
    world.told |= {(name, outcome.code, outcome.exit_code)}
    assert world.core is not None
    apply(world, world.core.ended(name, well=outcome.code == "ok" and not outcome.exit_code))
    if not world.on.ended_kept_with_graph:
        del world.rows[name]


def successors(world: World) -> Iterator[tuple[object, World]]:
    """Everything that may happen next."""
    if world.core is None:
        yield "accept", accepted(world)
        return
    if world.asked:
        yield "bind", bound(world)
    for name, row in world.rows.items():
        if row.outcome is None:
            yield from steps_of(world, name)
    if world.due or world.kept != world.written:
        yield "keep", keep(world)
    if world.cancels and world.named:
        after = world.copy()
        after.cancels -= 1
        assert after.core is not None
        apply(after, after.core.cancel())
        yield "cancel", after
    if world.kills:
        yield "kill", killed(world)


def accepted(world: World) -> World:
    after = world.copy()
    after.core, after.has_graph = graph_core(), True
    apply(after, after.core.start())
    if after.on.graph_before_told:
        after.due += (("name", ""),)
    else:
        after.named = True
    return after


def keep(world: World) -> World:
    after = world.copy()
    after.kept, due, after.due = world.written, world.due, ()
    for what, name in due:
        if what == "name":
            after.named = True
        else:
            tell(after, name)
    return after


def steps_of(world: World, name: str) -> Iterator[tuple[object, World]]:
    """What may become of one that was begun: it runs, its result is in the ledger, it has ended."""
    published = [how for other, how in world.ledger if other == name]
    if name in world.running:
        for how in ("well", "badly"):
            after = world.copy()
            after.running -= {name}
            after.ledger |= {(name, how)}
            yield (how, name), after
    elif published:
        after = world.copy()
        end(after, name, OUTCOMES[published[0]])
        yield ("end", name), after
    elif name in dict(world.kept[1]) or not world.on.begun_before_run:
        yield ("run", name), run(world, name)


def bound(world: World) -> World:
    after = world.copy()
    name, *rest = world.asked
    after.asked = tuple(rest)
    if name in world.stopping:
        after.stopping -= {name}
        conclude(after, name, OUTCOMES["cancelled"])
    else:
        after.rows[name] = StoredOperation(NUMBER[name], name, WANTED[name], 0)
    return after


def run(world: World, name: str) -> World:
    after = world.copy()
    after.running |= {name}
    if name in after.ran:
        after.wrong = after.wrong or f"{name} ran twice"
    after.ran += (name,)
    if any((below, "well") not in world.ledger for below in NEEDS[name]):
        after.wrong = after.wrong or f"{name} ran before what it takes was there"
    return after


def killed(world: World) -> World:
    """Kill the controller and start the next: what was kept, the ledger and what workers run remain."""
    after = world.copy()
    after.kills -= 1
    after.core, after.due, after.asked, after.stopping = None, (), (), frozenset()
    after.has_graph, rows = world.kept[0], dict(world.kept[1])
    leases = [
        StoredLease(
            Lease(NUMBER[name], WANTED[name].key, "v", 1, 1.0), NUMBER[name], False, Intended(OUTCOMES[how], True, 0)
        )
        for name, how in world.ledger
        if name in rows and rows[name].outcome is None
    ]
    stored = Stored(sorted(rows.values(), key=lambda row: row.number), leases, [GRAPH] if after.has_graph else [])
    recovered = decide(stored, {held.lease.fence: 0 for held in leases}, 0)
    after.rows = {one.id: one for one in (*recovered.ended, *(waiting.operation for waiting in recovered.waiting))}
    after.kept = after.written
    for name, code, exit_code in world.told:
        row = after.rows.get(name)
        if row is None or row.outcome is None or (row.outcome.code, row.outcome.exit_code) != (code, exit_code):
            after.wrong = after.wrong or f"{name} had ended and does not know it"
    after.running = frozenset(name for name in world.running if name in after.rows)
    if not recovered.graphs:
        if world.named:
            after.wrong = after.wrong or "an accepted graph is forgotten"
        return after
    (held,) = recovered.graphs
    outcomes = {GRAPH.members[number - 1][1]: one.outcome for number, one in held.operations.items()}
    ended = {name: o.code == "ok" and not o.exit_code for name, o in outcomes.items() if o is not None}
    after.told |= {(name, o.code, o.exit_code) for name, o in outcomes.items() if o is not None}
    after.core = graph_core()
    effects = after.core.restore(outcomes.keys() - ended.keys(), ended)
    apply(after, [*effects, *after.core.start()])
    return after


def broken(world: World) -> str:
    """What is wrong with a world, if anything."""
    if world.wrong:
        return world.wrong
    if world.core is None or world.asked or world.due or world.running or world.kept != world.written:
        return ""
    left = set(NAMES) - {name for name, _, _ in world.told}
    going = {name for name, row in world.rows.items() if row.outcome is None}
    return f"nothing will ever happen for {sorted(left)}" if left and not going else ""


def explore(on: Without) -> tuple[str, int]:
    """Search breadth first; return what went wrong (empty when nothing can) and how many worlds were seen."""
    return search(World(on), broken, successors, STATES_MAX)


@pytest.mark.timeout(300)
def test_a_kill_at_any_moment_loses_no_action_of_a_graph() -> None:
    why, states = explore(Without())
    assert not why, why
    assert states > 1_000
    print(f"{states} worlds")


HOLES: Sequence[tuple[str, str]] = (
    ("graph_before_told", "an accepted graph is forgotten"),
    ("begun_before_run", "had ended and does not know it"),
    ("end_before_told", "had ended and does not know it"),
    ("ended_kept_with_graph", "had ended and does not know it"),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("missing", "hole"), HOLES)
def test_each_mechanism_closes_a_hole(missing: str, hole: str) -> None:
    why, states = explore(replace(Without(), **{missing: False}))
    assert hole in why, f"without {missing}: {why or 'nothing'} in {states} worlds"
    print(f"without {missing}: {why} ({states} worlds)")
