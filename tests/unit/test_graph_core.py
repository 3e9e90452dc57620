"""Whatever the order in which actions end, each is asked for once, when what it needs is done, and ends once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest, TooLarge
from buildnet.model.action_spec import OutputInput, spec_of
from buildnet.scheduler import graph
from buildnet.scheduler.graph import Ask, Effect, Fail, GraphCore, Release, Stop, Withdraw, check_taken


class Naive:
    """The same, by looking at everything each time."""

    def __init__(self, needs: Mapping[str, Sequence[str]]) -> None:
        self.needs = needs
        self.ended: dict[str, bool] = {}

    def may_ask(self, name: str) -> bool:
        return all(self.ended.get(below) is True for below in self.needs[name])

    def doomed(self, name: str) -> bool:
        return any(self.ended.get(below) is False or self.doomed(below) for below in self.needs[name])


class Play:
    """One graph, played and checked after every step."""

    def __init__(self, needs: Mapping[str, Sequence[str]], in_flight_max: int) -> None:
        self.core = GraphCore(needs, in_flight_max)
        self.naive = Naive(needs)
        self.max = in_flight_max
        self.asked: list[str] = []
        self.stopped: set[str] = set()
        self.held: set[str] = set()
        self.cancelled = False

    @property
    def going(self) -> list[str]:
        return [name for name in self.asked if name not in self.naive.ended]

    def take(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Ask(name):
                    assert name not in self.asked, "asked for twice"
                    assert self.naive.may_ask(name), "asked for too early"
                    assert not self.cancelled
                    self.asked.append(name)
                case Fail(name):
                    assert self.naive.doomed(name)
                    self.end(name, well=False)
                case Withdraw(name):
                    assert name not in self.asked
                    self.end(name, well=False)
                case Stop(name):
                    assert name in self.going
                    self.stopped.add(name)
                case Release(name):
                    assert self.naive.ended[name], "only what is done has a result"
                    takers = [above for above, needs in self.naive.needs.items() if name in needs]
                    assert all(taker in self.naive.ended for taker in takers), "somebody still takes it"
                    self.held.discard(name)
        self.check()

    def end(self, name: str, *, well: bool) -> None:
        assert name not in self.naive.ended, "ended twice"
        self.naive.ended[name] = well

    def check(self) -> None:
        assert self.core.in_flight == len(self.going) <= self.max
        assert self.core.left == len(self.naive.needs) - len(self.naive.ended)
        for name in self.naive.needs:
            if name not in self.asked and name not in self.naive.ended:
                assert not self.naive.doomed(name), "it waits for what will not come"
                assert not self.cancelled
                if self.naive.may_ask(name):
                    assert len(self.going) == self.max, "it could be asked for"

    def finish(self, name: str, *, well: bool) -> None:
        self.end(name, well=well)
        if well:
            self.held.add(name)
        self.take(self.core.ended(name, well=well))
        self.take(self.core.ended(name, well=not well))

    def restart(self, bound: Sequence[str]) -> None:
        """The next controller goes on: of what was asked for it knows what was bound, and how what ended did."""
        needs, ended = self.naive.needs, self.naive.ended
        self.core = GraphCore(needs, self.max)
        self.asked = [name for name in self.asked if name in ended or name in bound]
        effects = self.core.restore(bound, ended)
        taken = {below for name, belows in needs.items() if name not in ended for below in belows}
        assert {name for name in needs if self.core.is_taken(name)} == taken
        self.held = {name for name, well in ended.items() if well and name in taken}
        self.take([*effects, *self.core.start()])


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    count = draw(st.integers(1, 7))
    names = [f"n{number}" for number in range(count)]
    needs = {
        name: draw(st.lists(st.sampled_from(names[:number]), max_size=3)) if number else []
        for number, name in enumerate(names)
    }
    return {name: needs[name] for name in draw(st.permutations(names))}


@settings(max_examples=60)
@given(graphs(), st.integers(1, 3), st.data())
def test_any_history_of_any_graph(needs: dict[str, list[str]], in_flight_max: int, data: st.DataObject) -> None:
    play = Play(needs, in_flight_max)
    play.take(play.core.start())
    restarts = 2
    while play.core.left:
        assert play.going, "something goes on while something is left"
        what = data.draw(st.sampled_from(["well", "well", "badly", "cancel", "withdraw", "restart"]))
        name = data.draw(st.sampled_from(play.going))
        if what == "cancel":
            effects = play.core.cancel()
            play.cancelled = True
            play.take(effects)
            assert play.stopped >= set(play.going)
        elif what == "restart" and not play.cancelled and restarts:
            restarts -= 1
            play.restart(data.draw(st.lists(st.sampled_from(play.going), unique=True)))
        elif what == "withdraw":
            other = data.draw(st.sampled_from(sorted(needs)))
            play.take(play.core.withdraw(other))
        else:
            play.finish(name, well=what == "well")
    assert play.naive.ended.keys() == needs.keys()
    assert not play.held, "no result is kept for nobody"
    assert play.core.cancel() == []


def test_what_depends_on_a_failure_names_it() -> None:
    core = GraphCore({"a": [], "b": ["a"], "c": ["b"], "d": []})
    assert core.start() == [Ask("a"), Ask("d")]
    assert core.ended("a", well=False) == [Fail("b", "a"), Fail("c", "a")]


def test_a_failure_that_was_kept_alone_goes_up_after_a_restart() -> None:
    core = GraphCore({"a": [], "b": ["a"], "c": ["b"], "d": []})
    assert core.restore(["d"], {"a": False}) == [Fail("b", "a"), Fail("c", "a")]
    assert core.start() == []
    assert (core.left, core.in_flight) == (1, 1)


def test_a_result_is_kept_until_its_last_taker_has_ended() -> None:
    core = GraphCore({"a": [], "b": ["a"], "c": ["a"]})
    core.start()
    assert core.ended("a", well=True) == [Ask("b"), Ask("c")]
    assert core.ended("b", well=False) == []
    assert core.ended("b", well=False) == [], "once"
    assert core.ended("c", well=True) == [Release("a"), Release("c")]


def test_a_wide_graph_is_asked_for_in_parts() -> None:
    core = GraphCore({str(number): [] for number in range(10)}, in_flight_max=4)
    assert len(core.start()) == 4
    assert core.start() == []
    assert core.ended("0", well=True) == [Release("0"), Ask("4")]


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ({"a": ["a"]}, "'a' -> 'a'"),
        ({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}, "'a' -> 'b' -> 'c' -> 'a'"),
        ({"top": ["a"], "a": ["b"], "b": ["a"]}, "'a' -> 'b' -> 'a'"),
    ],
)
def test_a_circle_is_refused_and_shown(needs: dict[str, list[str]], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as told:
        GraphCore(needs)
    assert told.value.fields["field"] == "actions.inputs"


def test_a_long_circle_is_shown_in_part() -> None:
    count = 5000
    needs = {f"n{number}": [f"n{(number + 1) % count}"] for number in range(count)}
    with pytest.raises(InvalidRequest, match="…"):
        GraphCore(needs)


def test_an_unknown_reference_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match="'nobody'") as told:
        GraphCore({"a": [], "b": ["a", "nobody"]})
    assert told.value.fields["field"] == "actions[b].inputs"


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest):
        GraphCore({})
    monkeypatch.setattr(graph, "ACTIONS_MAX", 2)
    with pytest.raises(TooLarge):
        GraphCore({"a": [], "b": [], "c": []})
    monkeypatch.setattr(graph, "REFERENCES_MAX", 1)
    with pytest.raises(TooLarge):
        GraphCore({"a": [], "b": ["a", "a"]})


@pytest.mark.parametrize(
    ("output", "is_there"),
    [("o", True), ("o/below/it", True), ("a/b", True), ("a", False), ("a/bc", False), ("z", False)],
)
def test_what_is_taken_is_a_declared_output_or_below_one(output: str, is_there: bool) -> None:
    specs = {
        "make": spec_of(["true"], outputs=["o", "a/b"]),
        "use": spec_of(["true"], inputs=[OutputInput("i", "make", output)]),
    }
    if is_there:
        check_taken(specs)
        return
    with pytest.raises(InvalidRequest, match=f"'use' takes '{output}' of 'make', which declares no such output"):
        check_taken(specs)
