"""Where a node stands, case by case; tests/explore/test_fleet.py walks every order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import Forbidden, InvalidRequest, NotFound, TooLarge
from buildnet.model.node import NODE_POLICIES_MAX, Greeting, NodePolicy, WorkerOffer, check_node_id
from buildnet.scheduler import core
from buildnet.scheduler import events as ev
from buildnet.scheduler import fleet_events as fe
from buildnet.scheduler.fleet import FleetCore


def greeting(boot: str = "b1", node: str = "n", skew_ms: int | None = 0) -> Greeting:
    sent_unix_ms = None if skew_ms is None else 1000 + skew_ms
    return Greeting(WorkerOffer(node, boot, 2, frozenset()), "host", "0.1.0", sent_unix_ms)


def joined(fleet: FleetCore, session: int = 1, boot: str = "b1", *, skew_ms: int | None = 0) -> list[fe.Effect]:
    effects = fleet.step(fe.Hello(session, greeting(boot, skew_ms=skew_ms), 1000))
    return effects + fleet.step(fe.Welcomed(session))


def records(effects: list[fe.Effect]) -> list[str]:
    return [effect.kind for effect in effects if isinstance(effect, fe.Record)]


def state(fleet: FleetCore, node: str = "n") -> str:
    view = fleet.view(node)
    assert view is not None
    return view.state


def test_a_node_joins_works_and_leaves() -> None:
    fleet = FleetCore({})
    fleet.step(fe.Hello(1, greeting(), 1000))
    assert state(fleet) == "joining"
    effects = fleet.step(fe.Welcomed(1))
    assert fe.Begin(1, cordoned=False) in effects
    assert records(effects) == ["node.joined"]
    assert state(fleet) == "active"
    effects = fleet.step(fe.Ended(1, clean=False, last_seen_unix_ms=1500))
    assert fe.Lose("n", may_return=True) in effects
    assert records(effects) == ["node.left"]
    view = fleet.view("n")
    assert view is not None
    assert (view.state, view.last_seen_unix_ms, view.session) == ("left", 1500, None)


def test_the_same_start_that_dials_again_takes_over_without_a_restart() -> None:
    fleet = FleetCore({})
    joined(fleet)
    effects = fleet.step(fe.Hello(2, greeting("b1"), 1001))
    assert [type(effect) for effect in effects] == [fe.Close, fe.Lose, fe.Changed]
    assert fe.Begin(2, cordoned=False) in fleet.step(fe.Welcomed(2))
    # The older call's end is of no interest any more.
    assert fleet.step(fe.Ended(1, clean=False, last_seen_unix_ms=1)) == []


def test_another_start_is_a_restart_and_the_displaced_one_never_comes_back() -> None:
    fleet = FleetCore({})
    joined(fleet)
    assert records(fleet.step(fe.Hello(2, greeting("b2"), 1001))) == ["node.restarted"]
    fleet.step(fe.Welcomed(2))
    effects = fleet.step(fe.Hello(3, greeting("b1"), 1002))
    refusal = effects[-1]
    assert isinstance(refusal, fe.Refuse)
    assert isinstance(refusal.error, Forbidden)
    assert "delete the file `id`" in refusal.error.message
    assert records(effects) == ["node.refused"]
    # Told to the ledger once, however often it comes.
    assert records(fleet.step(fe.Hello(4, greeting("b1"), 1003))) == []
    assert fleet.is_current(2)


def test_a_restart_is_recognised_after_the_node_has_left_too() -> None:
    fleet = FleetCore({})
    joined(fleet)
    fleet.step(fe.Ended(1, clean=True, last_seen_unix_ms=1001))
    assert records(fleet.step(fe.Hello(2, greeting("b2"), 1002))) == ["node.restarted"]


def test_a_drain_reaches_the_worker_and_outlives_its_connection_but_not_its_process() -> None:
    fleet = FleetCore({})
    joined(fleet)
    ask = fe.DrainAsked("n", "ann")
    plan = fleet.plan(ask)
    assert plan is not None
    assert (plan.kind, plan.facts) == ("node.draining", {"node": "n", "by": "ann"})
    assert fleet.step(ask) == [fe.NoMoreWork("n"), fe.TellDrain(1), fe.Changed("n")]
    assert fleet.plan(ask) is None
    assert "node.drained" not in records(fleet.step(fe.Ended(1, clean=False, last_seen_unix_ms=1)))
    assert fe.TellDrain(2) in joined(fleet, 2)
    assert state(fleet) == "draining"
    effects = fleet.step(fe.Ended(2, clean=True, last_seen_unix_ms=1))
    assert records(effects) == ["node.left", "node.drained"]
    assert fe.TellDrain(3) not in joined(fleet, 3, "b2")
    assert state(fleet) == "active"


def test_a_worker_that_drains_by_itself_is_drained_by_nobody() -> None:
    fleet = FleetCore({})
    joined(fleet)
    assert fleet.step(fe.DrainSaid(1)) == [
        fe.NoMoreWork("n"),
        fe.Record("node.draining", {"node": "n", "by": ""}),
        fe.Changed("n"),
    ]
    ended = fleet.step(fe.Ended(1, clean=True, last_seen_unix_ms=1))
    assert fe.Record("node.drained", {"node": "n", "by": ""}) in ended


def test_a_cordon_outlives_session_process_and_controller() -> None:
    fleet = FleetCore({})
    joined(fleet)
    assert fleet.step(fe.CordonAsked("n", True, "ann")) == [fe.SetCordon("n", True), fe.Changed("n")]
    fleet.step(fe.Ended(1, clean=False, last_seen_unix_ms=1))
    again = FleetCore(fleet.policies)
    assert fe.Begin(1, cordoned=True) in joined(again, 1, "b2")
    assert state(again) == "cordoned"
    assert again.step(fe.CordonAsked("n", False, "bob"))[0] == fe.SetCordon("n", False)
    assert again.policies == {}


def test_a_removed_node_is_lost_closed_and_refused_until_it_is_allowed() -> None:
    fleet = FleetCore({})
    joined(fleet)
    effects = fleet.step(fe.RemoveAsked("n", "ann"))
    assert isinstance(effects[0], fe.Close)
    assert fe.Lose("n", may_return=False) in effects
    assert not fleet.is_current(1)
    again = FleetCore(fleet.policies)
    first = again.step(fe.Hello(1, greeting("b9"), 1))
    assert records(first) == ["node.refused"]
    assert isinstance(first[-1], fe.Refuse)
    assert records(again.step(fe.Hello(2, greeting("b10"), 1))) == []
    again.step(fe.AllowAsked("n", "ann"))
    assert fe.Begin(3, cordoned=False) in joined(again, 3)


def test_a_node_that_is_not_known_can_be_removed_and_nothing_else() -> None:
    fleet = FleetCore({})
    for ask in (fe.DrainAsked("x", ""), fe.CordonAsked("x", True, "")):
        with pytest.raises(NotFound):
            fleet.plan(ask)
    assert fleet.plan(fe.RemoveAsked("x", "")) is not None
    joined(fleet)
    fleet.step(fe.Ended(1, clean=True, last_seen_unix_ms=1))
    with pytest.raises(NotFound, match="no session"):
        fleet.plan(fe.DrainAsked("n", ""))


@pytest.mark.parametrize(("skew_ms", "told"), [(None, 0), (0, 0), (1000, 0), (-1000, 0), (1001, 1)])
def test_a_clock_that_is_ahead_is_told_once_a_start(skew_ms: int | None, told: int) -> None:
    fleet = FleetCore({})
    assert records(joined(fleet, skew_ms=skew_ms)).count("node.clock_skewed") == told
    assert "node.clock_skewed" not in records(joined(fleet, 2, skew_ms=skew_ms))
    assert records(joined(fleet, 3, "b2", skew_ms=skew_ms)).count("node.clock_skewed") == told


def beaten(fleet: FleetCore, heard: Iterable[int], *, skew_ms: int, delay_ms: Callable[[int], int]) -> list[int]:
    """Beats that are heard at these milliseconds after Hello; the skews that are told then."""
    told = list[int]()
    for at_ms in heard:
        for effect in fleet.step(fe.TimeSaid(1, 1000 + at_ms - delay_ms(at_ms) + skew_ms, 1000 + at_ms)):
            if isinstance(effect, fe.Record):
                assert effect.kind == "node.clock_skewed"
                told.append(int(effect.facts["skew_ms"]))
    return told


def test_a_clock_that_is_behind_is_told_once_no_message_says_otherwise() -> None:
    fleet = FleetCore({})
    assert "node.clock_skewed" not in records(joined(fleet, skew_ms=-4000)), "Hello may have waited for that long"
    view = fleet.view("n")
    assert view is not None
    assert view.skew_ms == -4000
    beats = range(5000, 60_001, 5000)
    assert beaten(fleet, beats, skew_ms=-2000, delay_ms=lambda at_ms: at_ms % 7) == [-2001]


def test_a_controller_that_stood_still_takes_no_clock_for_skewed() -> None:
    fleet = FleetCore({})
    # Hello waited for 4 s, and what was sent in the 25 s after it is heard in one turn, as late as that is.
    joined(fleet, skew_ms=-4000)
    assert beaten(fleet, [25_000] * 5, skew_ms=0, delay_ms=lambda _: 3000) == []
    assert beaten(fleet, range(30_000, 90_001, 5000), skew_ms=0, delay_ms=lambda _: 1) == []
    view = fleet.view("n")
    assert view is not None
    assert view.skew_ms == -1


def test_a_worker_whose_beats_tell_no_time_is_understood() -> None:
    fleet = FleetCore({})
    joined(fleet, skew_ms=None)
    assert fleet.step(fe.TimeSaid(1, 5, 90_000)) == [], "nor is one whose Hello did not"
    view = fleet.view("n")
    assert view is not None
    assert view.skew_ms is None


def test_only_so_many_absent_nodes_are_remembered_and_decisions_always() -> None:
    fleet = FleetCore({"kept": NodePolicy(cordoned=True)}, absent_max=3)
    for number in range(6):
        fleet.step(fe.Hello(number, greeting("b", f"n{number}"), number))
        fleet.step(fe.Welcomed(number))
        fleet.step(fe.Ended(number, clean=True, last_seen_unix_ms=number))
    assert fleet.names() == ["kept", "n3", "n4", "n5"]


def test_decisions_are_bounded() -> None:
    fleet = FleetCore({f"n{i}": NodePolicy(removed=True) for i in range(NODE_POLICIES_MAX)})
    with pytest.raises(TooLarge):
        fleet.plan(fe.RemoveAsked("one-more", ""))
    assert fleet.plan(fe.AllowAsked("n1", "")) is not None


@given(st.text())
def test_an_id_is_plain_or_refused(text: str) -> None:
    try:
        check_node_id(text)
    except InvalidRequest:
        return
    assert text.isascii()
    assert text.isprintable()
    assert 0 < len(text) <= 128
    assert not set(text) & set(" /\\\"'\x1b\n")


# What it asks of the scheduler.


def offer(node: str) -> WorkerOffer:
    return WorkerOffer(node, "boot", 1, frozenset({("os", "linux")}))


def wanted(name: str, requirements: frozenset[tuple[str, str]] = frozenset()) -> ev.Want:
    from buildnet.model.action import ActionKey, Wanted
    from buildnet.model.digest import Digest

    key = ActionKey("", Digest.of(name.encode()))
    return ev.Want(name, Wanted(key, requirements, 10.0, skip_cache_lookup=True))


def assigned(effects: list[ev.Effect]) -> list[str]:
    return [effect.lease.worker for effect in effects if isinstance(effect, ev.Assign)]


def test_a_cordoned_worker_is_given_nothing_and_what_waits_is_given_when_it_is_not() -> None:
    scheduler = core.SchedulerCore(core.Limits())
    scheduler.step(ev.WorkerUp(offer("v"), cordoned=True))
    assert assigned(scheduler.step(wanted("a"))) == []
    assert assigned(scheduler.step(ev.Cordon("v", False))) == ["v"]
    scheduler.step(ev.Cordon("v", True))
    assert scheduler.step(ev.Cordon("nobody", True)) == []
    assert assigned(scheduler.step(wanted("b"))) == []


def test_what_a_cordoned_worker_runs_is_finished_there() -> None:
    from buildnet.model.action import Outcome

    scheduler = core.SchedulerCore(core.Limits())
    scheduler.step(ev.WorkerUp(offer("v")))
    scheduler.step(wanted("a"))
    scheduler.step(ev.Cordon("v", True))
    effects = scheduler.step(ev.Done("v", 1, Outcome("ok", b"r")))
    assert any(isinstance(effect, ev.Publish) for effect in effects)


def test_nobody_waits_for_a_worker_that_may_not_return() -> None:
    for may_return in (True, False):
        scheduler = core.SchedulerCore(core.Limits())
        scheduler.step(ev.WorkerUp(offer("v")))
        scheduler.step(ev.WorkerUp(WorkerOffer("w", "boot", 1, frozenset())))
        scheduler.step(ev.WorkerLost("v", may_return))
        told = [e for e in scheduler.step(wanted("a", frozenset({("os", "linux")}))) if isinstance(e, ev.Tell)]
        assert ("completed" in [tell.stage for tell in told]) is not may_return
