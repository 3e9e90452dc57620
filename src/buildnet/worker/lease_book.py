"""A worker owes an answer for every lease until it is settled or cancelled. Decides what to say;
says nothing itself.

Sessions break and messages repeat. The book is what survives a session: which fences run, which
results are not yet settled, and what must be told again to the next session. It never drops a
result on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from buildnet.model.action import ActionKey, Outcome

LEASES_MAX: Final = 4096
_ENDED_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the controller asks for under one fence. `timeout_s` covers execution alone (REAPI
    Action.timeout). The amounts are what the controller counts for it; 0 means the worker's own limit. `action` and
    `command` are bytes that may come along, empty when they do not; nobody has checked them.
    """

    fence: int
    key: ActionKey
    timeout_s: float
    attempt: int = 1
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    action: bytes = field(default=b"", repr=False)
    command: bytes = field(default=b"", repr=False)


# What happens to the book.


@dataclass(frozen=True, slots=True)
class Joined:
    """A session began; the controller knows the fences that `Book.held` named in its Hello."""

    controller_id: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """The session ended."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """Assign came, perhaps not for the first time."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Cancel came, perhaps for a fence that is not here."""

    fence: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """The controller has taken the result, or refused it for good."""

    fence: int


@dataclass(frozen=True, slots=True)
class Begun:
    """Execution has begun here."""

    fence: int


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """The command has ended here; its outputs are still to be sent."""

    fence: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt has ended here and its scratch is gone."""

    fence: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Somebody, here or at the controller, wants this worker to take no more."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Leave now, results or not."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The controller has been away for so long that it will not want what runs."""


Event = (
    Joined
    | Lost
    | Assigned
    | CancelAsked
    | Settled
    | Begun
    | CommandEnded
    | Finished
    | DrainAsked
    | StopAsked
    | Abandoned
)


# What is to be done about it.


@dataclass(frozen=True, slots=True)
class Start:
    """Begin this attempt as soon as a slot is free."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Kill:
    """Stop this attempt; its end is reported as Finished all the same."""

    fence: int
    reason: str


@dataclass(frozen=True, slots=True)
class TellAccepted:
    """Send Accepted."""

    fence: int


@dataclass(frozen=True, slots=True)
class TellCommandEnded:
    """Send CommandEnded, to a controller that takes it."""

    fence: int


@dataclass(frozen=True, slots=True)
class TellDone:
    """Send Done."""

    fence: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class TellDraining:
    """Send Draining."""


Effect = Start | Kill | TellAccepted | TellCommandEnded | TellDone | TellDraining


@dataclass(frozen=True, slots=True)
class Attempt:
    """A lease that runs here. `unwanted` once it was cancelled: its outcome is told to nobody."""

    assignment: Assignment
    begun: bool = False
    command_ended: bool = False
    unwanted: bool = False


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A result that the controller has not confirmed."""

    assignment: Assignment
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Book:
    """Every lease of this worker. `ended` remembers the newest ended fences, so that a repeated
    Assign runs nothing.
    """

    running: Mapping[int, Attempt] = field(default_factory=lambda: MappingProxyType({}))
    unsettled: Mapping[int, Unsettled] = field(default_factory=lambda: MappingProxyType({}))
    ended: tuple[int, ...] = ()
    joined: bool = False
    draining: bool = False
    stopping: bool = False
    controller_id: str = ""

    @property
    def wanted(self) -> tuple[Assignment, ...]:
        """Leases to renew: what runs. Once a result is told in a session, its lease is over."""
        return tuple(a.assignment for a in self.running.values() if not a.unwanted)

    @property
    def held(self) -> tuple[Assignment, ...]:
        """Leases to report in Hello: what runs, and what has run but is not settled."""
        return (*self.wanted, *(u.assignment for u in self.unsettled.values()))

    @property
    def free_to_leave(self) -> bool:
        """Whether a draining worker owes nothing any more."""
        return self.draining and not self.running and (self.stopping or not self.unsettled)


Step = tuple[Book, tuple[Effect, ...]]


def step(book: Book, event: Event) -> Step:
    """Return the book after `event`, and the effects in the order in which they must happen."""
    match event:
        case Joined():
            return _joined(book, event)
        case Lost():
            return replace(book, joined=False), ()
        case Assigned():
            return _assigned(book, event.assignment)
        case CancelAsked():
            return _cancelled(book, event)
        case Settled():
            return _settled(book, event.fence)
        case Begun():
            return _begun(book, event.fence)
        case CommandEnded():
            return _command_ended(book, event.fence)
        case Finished():
            return _finished(book, event)
        case DrainAsked():
            return _drained(book)
        case StopAsked():
            return _stopped(book)
        case Abandoned():
            return _abandoned(book)


def _joined(book: Book, event: Joined) -> Step:
    # Another controller counts its fences anew; what ended under the old one says nothing about
    # them.
    ended = book.ended if event.controller_id == book.controller_id else ()
    book = replace(book, joined=True, controller_id=event.controller_id, ended=ended)
    told: list[Effect] = [TellDraining()] if book.draining else []
    told += [TellAccepted(fence) for fence, a in book.running.items() if a.begun and not a.unwanted]
    told += [TellCommandEnded(fence) for fence, a in book.running.items() if a.command_ended and not a.unwanted]
    told += [TellDone(fence, u.outcome) for fence, u in book.unsettled.items()]
    return book, tuple(told)


def _assigned(book: Book, assignment: Assignment) -> Step:
    fence = assignment.fence
    if fence in book.running or fence in book.ended or book.stopping:
        return book, ()
    if (unsettled := book.unsettled.get(fence)) is not None:
        return book, _if_joined(book, TellDone(fence, unsettled.outcome))
    if len(book.running) + len(book.unsettled) >= LEASES_MAX:
        refusal = Outcome("overloaded", None, f"this worker holds {LEASES_MAX} leases; ask later")
        # Not kept for repetition: a lease that was refused here is not held.
        return book, _if_joined(book, TellDone(fence, refusal))
    # An Assign that crossed with our Draining is honoured: the controller granted the lease in good
    # faith.
    running = {**book.running, fence: Attempt(assignment)}
    return replace(book, running=MappingProxyType(running)), (Start(assignment),)


def _cancelled(book: Book, event: CancelAsked) -> Step:
    attempt = book.running.get(event.fence)
    if attempt is None:
        if event.fence not in book.unsettled:
            return book, ()
        return _settled(book, event.fence)
    if attempt.unwanted:
        return book, ()
    running = {**book.running, event.fence: replace(attempt, unwanted=True)}
    return replace(book, running=MappingProxyType(running)), (Kill(event.fence, event.reason),)


def _settled(book: Book, fence: int) -> Step:
    if fence not in book.unsettled:
        # A Settled for what still runs would be the controller's mistake; the result is offered all
        # the same.
        return book, ()
    unsettled = {f: u for f, u in book.unsettled.items() if f != fence}
    return _remember(replace(book, unsettled=MappingProxyType(unsettled)), fence), ()


def _begun(book: Book, fence: int) -> Step:
    attempt = book.running.get(fence)
    if attempt is None or attempt.begun:
        return book, ()
    running = {**book.running, fence: replace(attempt, begun=True)}
    told = () if attempt.unwanted else _if_joined(book, TellAccepted(fence))
    return replace(book, running=MappingProxyType(running)), told


def _command_ended(book: Book, fence: int) -> Step:
    attempt = book.running.get(fence)
    if attempt is None or attempt.command_ended:
        return book, ()
    running = {**book.running, fence: replace(attempt, command_ended=True)}
    told = () if attempt.unwanted else _if_joined(book, TellCommandEnded(fence))
    return replace(book, running=MappingProxyType(running)), told


def _finished(book: Book, event: Finished) -> Step:
    attempt = book.running.get(event.fence)
    if attempt is None:
        return book, ()
    running = {f: a for f, a in book.running.items() if f != event.fence}
    book = replace(book, running=MappingProxyType(running))
    if attempt.unwanted:
        return _remember(book, event.fence), ()
    unsettled = {**book.unsettled, event.fence: Unsettled(attempt.assignment, event.outcome)}
    book = replace(book, unsettled=MappingProxyType(unsettled))
    return book, _if_joined(book, TellDone(event.fence, event.outcome))


def _drained(book: Book) -> Step:
    if book.draining:
        return book, ()
    return replace(book, draining=True), _if_joined(book, TellDraining())


def _stopped(book: Book) -> Step:
    book, told = _drained(book)
    if book.stopping:
        return book, told
    # Told to nobody: nobody cancelled these actions, so the loss of the session must move them.
    book, kills = _unwanted(replace(book, stopping=True), "the worker is stopping")
    return book, (*told, *kills)


def _abandoned(book: Book) -> Step:
    if book.joined:
        return book, ()
    # Results that wait to be settled cost nothing, and are kept.
    return _unwanted(book, "the controller has been away for too long")


def _unwanted(book: Book, reason: str) -> tuple[Book, tuple[Kill, ...]]:
    running = {fence: replace(attempt, unwanted=True) for fence, attempt in book.running.items()}
    kills = tuple(Kill(fence, reason) for fence, attempt in book.running.items() if not attempt.unwanted)
    return replace(book, running=MappingProxyType(running)), kills


def _if_joined(book: Book, *effects: Effect) -> tuple[Effect, ...]:
    # Without a session nothing can be told; `_joined` tells it all to the next one.
    return effects if book.joined else ()


def _remember(book: Book, fence: int) -> Book:
    return replace(book, ended=(*book.ended, fence)[-_ENDED_MAX:])
