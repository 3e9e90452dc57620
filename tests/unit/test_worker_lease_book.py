"""The lease book, explored: every order of a few events, then long random ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.model.action import ActionKey, Outcome
from buildnet.model.digest import Digest
from buildnet.worker import lease_book
from buildnet.worker.lease_book import (
    Abandoned,
    Assigned,
    Assignment,
    Begun,
    Book,
    CancelAsked,
    CommandEnded,
    DrainAsked,
    Effect,
    Event,
    Finished,
    Joined,
    Kill,
    Lost,
    Settled,
    Start,
    StopAsked,
    TellAccepted,
    TellCommandEnded,
    TellDone,
    TellDraining,
    step,
)

OK = Outcome("ok", b"result")


def assignment(fence: int) -> Assignment:
    return Assignment(fence, ActionKey("", Digest.of(str(fence).encode())), 10.0)


def after(*events: Event) -> tuple[Book, list[Effect]]:
    book, effects = Book(), []
    for event in events:
        book, new = step(book, event)
        effects += new
    return book, effects


def test_a_lease_walks_from_assign_to_settled() -> None:
    book, effects = after(Joined(), Assigned(assignment(1)), Begun(1), Finished(1, OK), Settled(1))
    assert effects == [Start(assignment(1)), TellAccepted(1), TellDone(1, OK)]
    assert not book.held


def test_the_end_of_a_command_is_told_once_a_session_and_not_of_what_nobody_wants() -> None:
    running = (Joined("c"), Assigned(assignment(1)), Begun(1))
    book, effects = after(*running, CommandEnded(1), CommandEnded(1))
    assert effects == [Start(assignment(1)), TellAccepted(1), TellCommandEnded(1)]
    assert {held.fence for held in book.wanted} == {1}, "its lease lasts until its outputs are there"
    book, _ = step(book, Lost())
    assert step(book, Joined("c"))[1] == (TellAccepted(1), TellCommandEnded(1))
    _, effects = after(*running, CancelAsked(1), CommandEnded(1), Finished(1, OK))
    assert effects == [Start(assignment(1)), TellAccepted(1), Kill(1, "")]


def test_a_repeated_assign_runs_nothing_twice() -> None:
    assigned = Assigned(assignment(1))
    book, effects = after(Joined(), assigned, assigned)
    assert effects == [Start(assignment(1))]
    book, effects = after(Joined(), assigned, Finished(1, OK), assigned)
    assert effects == [Start(assignment(1)), TellDone(1, OK), TellDone(1, OK)]
    book, effects = after(Joined(), assigned, Finished(1, OK), Settled(1), assigned)
    assert effects == [Start(assignment(1)), TellDone(1, OK)]
    assert not book.held


def test_a_cancelled_lease_is_killed_once_and_told_to_nobody() -> None:
    cancel = CancelAsked(1, "nobody waits")
    book, effects = after(Joined(), Assigned(assignment(1)), cancel, cancel, Finished(1, OK))
    assert effects == [Start(assignment(1)), Kill(1, "nobody waits")]
    assert not book.held


def test_a_cancel_for_a_result_that_waits_drops_it() -> None:
    book, _ = after(Joined(), Assigned(assignment(1)), Finished(1, OK), CancelAsked(1))
    assert not book.held


@pytest.mark.parametrize("event", [CancelAsked(9), Settled(9), Begun(9), CommandEnded(9), Finished(9, OK), Lost()])
def test_what_is_said_of_an_unknown_fence_changes_nothing(event: Event) -> None:
    book, effects = step(Book(), event)
    assert book == Book()
    assert effects == ()


def test_the_next_session_hears_what_the_last_one_may_have_missed() -> None:
    book, _ = after(
        Joined("c"),
        *(Assigned(assignment(fence)) for fence in (1, 2, 3)),
        Begun(1),
        Lost(),
        Begun(2),
        Finished(1, OK),
    )
    assert {held.fence for held in book.held} == {1, 2, 3}
    _, effects = step(book, Joined("c"))
    assert effects == (TellAccepted(2), TellDone(1, OK))


def test_nothing_is_told_without_a_session() -> None:
    _, effects = after(Joined(), Assigned(assignment(1)), Lost(), Begun(1), Finished(1, OK))
    assert effects == [Start(assignment(1))]


def test_draining_finishes_and_hands_over_before_leaving() -> None:
    book, effects = after(Joined(), Assigned(assignment(1)), DrainAsked(), DrainAsked())
    assert effects == [Start(assignment(1)), TellDraining()]
    assert not book.free_to_leave
    book, _ = step(book, Finished(1, OK))
    assert not book.free_to_leave
    book, _ = step(book, Settled(1))
    assert book.free_to_leave


def test_a_lease_that_crossed_with_draining_still_runs() -> None:
    _, effects = after(Joined(), DrainAsked(), Assigned(assignment(1)))
    assert effects == [TellDraining(), Start(assignment(1))]


def test_draining_is_told_to_each_new_session() -> None:
    _, effects = after(DrainAsked(), Joined())
    assert effects == [TellDraining()]


def test_stopping_kills_and_reports_nothing_so_that_another_worker_runs_it() -> None:
    book, effects = after(Joined(), Assigned(assignment(1)), StopAsked(), StopAsked())
    assert effects == [
        Start(assignment(1)),
        TellDraining(),
        Kill(1, "the worker is stopping"),
    ]
    assert not book.free_to_leave
    book, effects_after = step(book, Finished(1, OK))
    assert book.free_to_leave
    assert effects_after == ()


def test_what_runs_is_stopped_when_the_controller_stays_away_and_results_are_kept() -> None:
    running = (Joined(), Assigned(assignment(1)), Assigned(assignment(2)), Finished(1, OK))
    book, _ = after(*running, Lost())
    book, effects = step(book, Abandoned())
    assert effects == (Kill(2, "the controller has been away for too long"),)
    assert [held.fence for held in book.held] == [1]
    joined, effects = step(after(*running)[0], Abandoned())
    assert (effects, [held.fence for held in joined.held]) == ((), [2, 1])


def test_too_many_leases_are_refused() -> None:
    full = {f: lease_book.Attempt(assignment(f)) for f in range(lease_book.LEASES_MAX)}
    book, effects = step(Book(running=full, joined=True), Assigned(assignment(1 << 40)))
    (refusal,) = effects
    assert isinstance(refusal, TellDone)
    assert refusal.outcome.code == "overloaded"
    assert 1 << 40 not in book.running


def test_another_controller_may_use_old_fences_anew() -> None:
    ended = [Joined("a"), Assigned(assignment(1)), Finished(1, OK), Settled(1), Lost()]
    _, same = after(*ended, Joined("a"), Assigned(assignment(1)))
    _, other = after(*ended, Joined("b"), Assigned(assignment(1)))
    assert Start(assignment(1)) not in same[1:]
    assert same.count(Start(assignment(1))) == 1
    assert other.count(Start(assignment(1))) == 2


FENCES = (1, 2)


def _possible(book: Book) -> Iterator[Event]:
    """Every event that may come, strays too; Begun and Finished only as a runner sends them."""
    yield from (Joined("c"), DrainAsked(), StopAsked(), Abandoned())
    if book.joined:
        yield Lost()
        for fence in FENCES:
            yield from (Assigned(assignment(fence)), CancelAsked(fence), Settled(fence))
    for fence, attempt in book.running.items():
        if not attempt.begun:
            yield Begun(fence)
        if attempt.begun and not attempt.command_ended:
            yield CommandEnded(fence)
        if attempt.begun or attempt.unwanted:
            yield Finished(fence, OK)


@dataclass(frozen=True)
class Told:
    """What an onlooker remembers of the past, whatever the book itself remembers."""

    started: frozenset[int] = frozenset()
    unwanted: frozenset[int] = frozenset()


class RuleBrokenError(Exception):
    """The book did what it must not do."""


def _demand(holds: bool, rule: str) -> None:
    if not holds:
        raise RuleBrokenError(rule)


def _check(told: Told, before: Book, event: Event, book: Book, effects: tuple[Effect, ...]) -> Told:
    started, unwanted = set(told.started), set(told.unwanted)
    if isinstance(event, CancelAsked) and event.fence in (*before.running, *before.unsettled):
        unwanted.add(event.fence)
    for effect in effects:
        match effect:
            case Start():
                fence = effect.assignment.fence
                _demand(fence not in started, "an attempt runs once for a fence")
                _demand(not before.stopping, "a stopping worker starts nothing")
                started.add(fence)
            case Kill():
                _demand(effect.fence in before.running, "only what runs is killed")
            case TellCommandEnded():
                _demand(effect.fence in book.running, "its outputs are still on their way")
                _demand(effect.fence not in unwanted, "what was cancelled is told to nobody")
            case TellDone():
                _demand(effect.fence in book.unsettled, "what is told is kept until settled")
                _demand(effect.fence not in unwanted, "what was cancelled is told to nobody")
        _demand(book.joined or isinstance(effect, Start | Kill), "nothing is told to nobody")
    for fence in before.unsettled:
        dropped_for = isinstance(event, Settled | CancelAsked) and event.fence == fence
        _demand((fence in book.unsettled) != dropped_for, "a result is dropped only when told so")
    for fence, attempt in before.running.items():
        if fence not in book.running:
            _demand(isinstance(event, Finished), "an attempt leaves only by its end")
            kept = fence in book.unsettled
            _demand(kept != attempt.unwanted, "a wanted result is kept, an unwanted one is not")
    if isinstance(event, Joined):
        told_now = {e.fence for e in effects if isinstance(e, TellDone)}
        _demand(told_now == set(book.unsettled), "a new session hears every unsettled result")
    if book.free_to_leave:
        _demand(not book.running, "a worker leaves nothing running")
        _demand(book.stopping or not book.unsettled, "a draining worker hands over first")
    return Told(frozenset(started), frozenset(unwanted))


def _key(book: Book, told: Told) -> object:
    return (
        tuple(sorted((f, a.begun, a.command_ended, a.unwanted) for f, a in book.running.items())),
        tuple(sorted(book.unsettled)),
        tuple(sorted(set(book.ended))),
        book.joined,
        book.draining,
        book.stopping,
        told,
    )


Step = Callable[[Book, Event], tuple[Book, tuple[Effect, ...]]]


def explore(step: Step) -> int:
    """Check every book that can be reached; return how many there are."""
    seen = {_key(Book(), Told())}
    waiting = deque([(Book(), Told())])
    while waiting:
        before, told = waiting.popleft()
        for event in _possible(before):
            book, effects = step(before, event)
            told_after = _check(told, before, event, book, effects)
            if (key := _key(book, told_after)) not in seen:
                seen.add(key)
                waiting.append((book, told_after))
    return len(seen)


def test_every_reachable_book_keeps_the_rules() -> None:
    assert explore(step) > 100


def _without_memory(book: Book, event: Event) -> tuple[Book, tuple[Effect, ...]]:
    book, effects = step(book, event)
    return replace(book, ended=()), effects


def _without_repetition(book: Book, event: Event) -> tuple[Book, tuple[Effect, ...]]:
    book, effects = step(book, event)
    kept = [e for e in effects if not (isinstance(event, Joined) and isinstance(e, TellDone))]
    return book, tuple(kept)


def _without_keeping(book: Book, event: Event) -> tuple[Book, tuple[Effect, ...]]:
    book, effects = step(book, event)
    return (replace(book, unsettled={}) if isinstance(event, Lost) else book), effects


def _without_forgetting(book: Book, event: Event) -> tuple[Book, tuple[Effect, ...]]:
    wanted = {f: replace(a, unwanted=False) for f, a in book.running.items()}
    return step(replace(book, running=wanted), event)


@pytest.mark.parametrize(
    ("weakened", "hole"),
    [
        (_without_memory, "runs once"),
        (_without_repetition, "hears every unsettled"),
        (_without_keeping, "dropped only when told"),
        (_without_forgetting, "told to nobody|an unwanted one is not"),
    ],
)
def test_each_mechanism_is_needed(weakened: Step, hole: str) -> None:
    with pytest.raises(RuleBrokenError, match=hole):
        explore(weakened)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 1 << 16), max_size=60))
def test_long_histories_keep_the_rules(choices: list[int]) -> None:
    book, told = Book(), Told()
    for choice in choices:
        events = list(_possible(book))
        event = events[choice % len(events)]
        before = book
        book, effects = step(before, event)
        told = _check(told, before, event, book, effects)
