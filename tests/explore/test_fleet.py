"""Every order of what may happen to two nodes' sessions, followed by a model of what the scheduler is told."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.errors import BuildNetError
from buildnet.model.node import Greeting, NodePolicy, WorkerOffer
from buildnet.scheduler import fleet_events as fe
from buildnet.scheduler.fleet import FleetCore

BOOTS = ("b1", "b2")
LEGAL = {
    None: {"joining", "removed"},
    "joining": {"joining", "active", "cordoned", "draining", "left", "removed"},
    "active": {"joining", "active", "cordoned", "draining", "left", "removed"},
    "cordoned": {"joining", "active", "cordoned", "draining", "left", "removed"},
    "draining": {"joining", "draining", "left", "removed"},
    "left": {"joining", "left", "removed"},
    "removed": {"removed", "left"},
}


def greeting(node: str, boot: str) -> Greeting:
    return Greeting(WorkerOffer(node, boot, 1, frozenset()), "host", "0.1.0")


@dataclass
class World:
    """A core, and beside it what a scheduler and the workers would hold."""

    core: FleetCore = field(default_factory=lambda: FleetCore({}))
    begun: dict[str, int] = field(default_factory=dict)
    cordoned: dict[str, bool] = field(default_factory=dict)
    # Sessions whose call has not ended, by number: (node, boot).
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    session_next: int = 1
    states: dict[str, str | None] = field(default_factory=dict)
    newest_boot: dict[str, str] = field(default_factory=dict)

    def choices(self, nodes: tuple[str, ...]) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for node in nodes:
            found += [("hello", node, boot) for boot in BOOTS]
            found += [(ask, node) for ask in ("drain", "cordon", "uncordon", "remove", "allow")]
        for session in self.calls:
            found += [(kind, str(session)) for kind in ("welcomed", "said", "bye", "broke")]
        return found

    def do(self, choice: tuple[str, ...]) -> None:
        match choice:
            case ("hello", node, boot):
                number, self.session_next = self.session_next, self.session_next + 1
                self.calls[number] = (node, boot)
                self.apply(fe.Hello(number, greeting(node, boot), 1000 + number))
            case ("welcomed", session):
                self.apply(fe.Welcomed(int(session)))
            case ("said", session):
                self.apply(fe.DrainSaid(int(session)))
            case ("bye" | "broke" as how, session):
                del self.calls[int(session)]
                self.apply(fe.Ended(int(session), how == "bye", 2000))
            case (ask, node):
                asks: dict[str, fe.Ask] = {
                    "drain": fe.DrainAsked(node, "ann"),
                    "cordon": fe.CordonAsked(node, True, "ann"),
                    "uncordon": fe.CordonAsked(node, False, "ann"),
                    "remove": fe.RemoveAsked(node, "ann"),
                    "allow": fe.AllowAsked(node, "ann"),
                }
                self.ask(asks[ask])
        self.check()

    def ask(self, ask: fe.Ask) -> None:
        before = dict(self.core.policies)
        try:
            plan = self.core.plan(ask)
        except BuildNetError:
            assert self.core.policies == before
            return
        assert self.core.policies == before, "a plan changes nothing"
        effects = self.apply(ask)
        if plan is None:
            assert not effects, "what is so already has no effect"
        else:
            assert self.core.policies == plan.policies, "what is in force is what was kept"

    def apply(self, event: fe.Event) -> list[fe.Effect]:
        effects = self.core.step(event)
        for effect in effects:
            match effect:
                case fe.Refuse():
                    assert isinstance(event, fe.Hello)
                    assert effect.session == event.session
                    self.closed.add(effect.session)
                case fe.Begin():
                    node, boot = self.calls[effect.session]
                    assert effect.session not in self.closed, "a closed session begins nothing"
                    assert node not in self.begun, "a node has one session"
                    self.begun[node] = effect.session
                    self.cordoned[node] = effect.cordoned
                    self.newest_boot[node] = boot
                case fe.Lose():
                    assert effect.node in self.begun, "only what began is lost"
                    del self.begun[effect.node]
                case fe.Close():
                    assert effect.session in self.calls
                    assert effect.session not in self.closed
                    self.closed.add(effect.session)
                case fe.SetCordon():
                    assert effect.node in self.begun
                    self.cordoned[effect.node] = effect.cordoned
                case fe.TellDrain():
                    assert effect.session not in self.closed
                case fe.NoMoreWork():
                    assert effect.node in self.begun
        return effects

    def check(self) -> None:
        for node, session in self.begun.items():
            policy = self.core.policies.get(node, NodePolicy())
            assert not policy.removed, "a removed node has no session"
            assert self.cordoned[node] == policy.cordoned, "the scheduler knows what is cordoned"
            assert session in self.calls, "an ended call is lost"
            assert session not in self.closed, "a closed session is lost"
            assert self.core.is_current(session)
        for node in ("m", "n"):
            view = self.core.view(node)
            before, now = self.states.get(node), None if view is None else view.state
            assert now is None or now in LEGAL[before] or (before is None and now == "left"), (before, now)
            if now is not None or before is not None:
                self.states[node] = now
            if view is not None:
                assert (view.session is not None) == (view.state not in ("left", "removed"))
                assert (node in self.begun) == (view.state in ("active", "cordoned", "draining"))


@pytest.mark.parametrize(("nodes", "depth"), [(("n",), 5), (("m", "n"), 3)])
def test_every_order_of_events(nodes: tuple[str, ...], depth: int) -> None:
    seen = 0
    frontier = [World()]
    for _ in range(depth):
        after = []
        for world in frontier:
            for choice in world.choices(nodes):
                fresh = copy.deepcopy(world)
                fresh.do(choice)
                seen += 1
                after.append(fresh)
        frontier = _distinct(after)
    assert seen > 1000


def _distinct(worlds: list[World]) -> list[World]:
    """Worlds that differ in what anything could tell apart: the same state need not be walked from twice."""
    by_key = {}
    for world in worlds:
        core = world.core
        key = (
            repr(sorted(core.policies.items())),
            repr([core.view(name) for name in core.names()]),
            repr(sorted((n, k.displaced_boots, sorted(k.refusals_told)) for n, k in core._nodes.items())),
            repr(sorted(core._removed_told)),
            repr(sorted(world.calls.items())),
            repr(sorted(world.closed & world.calls.keys())),
            repr(sorted(world.begun.items())),
        )
        by_key[key] = world
    return list(by_key.values())


@settings(max_examples=40)
@given(st.data())
def test_long_random_histories_keep_every_promise(data: st.DataObject) -> None:
    world = World()
    for _ in range(40):
        choices = world.choices(("m", "n"))
        world.do(choices[data.draw(st.integers(0, len(choices) - 1))])
