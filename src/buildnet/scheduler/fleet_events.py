"""What happens to a fleet, and what is to be done about it: the words of `scheduler/fleet.py`. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from buildnet.errors import BuildNetError
from buildnet.model.entry import Value
from buildnet.model.node import Greeting, NodePolicy

Policies: TypeAlias = Mapping[str, NodePolicy]


# Events. `session` numbers are the caller's, each used once.


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker dialled."""

    session: int
    greeting: Greeting
    at_unix_ms: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class Welcomed:
    """Welcome was sent."""

    session: int


@dataclass(frozen=True, slots=True)
class TimeSaid:
    """What the worker's clock showed when it sent a message, and ours when that was heard."""

    session: int
    sent_unix_ms: int
    heard_unix_ms: int


@dataclass(frozen=True, slots=True)
class DrainSaid:
    """The worker takes no more."""

    session: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A session is over; `clean` when the worker said goodbye."""

    session: int
    clean: bool
    last_seen_unix_ms: int


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Somebody wants a node to finish and leave."""

    node: str
    by: str


@dataclass(frozen=True, slots=True)
class CordonAsked:
    """Somebody wants a node to be given no more work, or work again."""

    node: str
    cordoned: bool
    by: str


@dataclass(frozen=True, slots=True)
class RemoveAsked:
    """Somebody wants a node gone; it need not be known."""

    node: str
    by: str


@dataclass(frozen=True, slots=True)
class AllowAsked:
    """Somebody lets a removed node in again."""

    node: str
    by: str


Ask: TypeAlias = DrainAsked | CordonAsked | RemoveAsked | AllowAsked
Event: TypeAlias = Hello | Welcomed | TimeSaid | DrainSaid | Ended | Ask


# Effects.


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the one who dialled why not."""

    session: int
    error: BuildNetError


@dataclass(frozen=True, slots=True)
class Begin:
    """The scheduler may give work to this session, unless it is cordoned."""

    session: int
    cordoned: bool


@dataclass(frozen=True, slots=True)
class Lose:
    """The scheduler takes back what this node has."""

    node: str
    may_return: bool


@dataclass(frozen=True, slots=True)
class Close:
    """End a session with this error; what it says from now on is not heard."""

    session: int
    error: BuildNetError


@dataclass(frozen=True, slots=True)
class TellDrain:
    """Ask the worker itself to finish and leave."""

    session: int


@dataclass(frozen=True, slots=True)
class NoMoreWork:
    """The scheduler gives this node nothing more until its session ends."""

    node: str


@dataclass(frozen=True, slots=True)
class SetCordon:
    """The scheduler gives this node nothing more, or work again."""

    node: str
    cordoned: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Write an entry to the ledger."""

    kind: str
    facts: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Changed:
    """What is known of this node is not what it was."""

    node: str


Effect: TypeAlias = Refuse | Begin | Lose | Close | TellDrain | NoMoreWork | SetCordon | Record | Changed


@dataclass(frozen=True, slots=True)
class Plan:
    """What an ask would change: policies to keep and one entry to write, both before `step` is told of the ask."""

    policies: Policies
    kind: str
    facts: Mapping[str, Value]
