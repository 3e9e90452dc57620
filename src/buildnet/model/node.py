"""What a worker says of itself when it joins, and what is known and decided of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from buildnet.errors import InvalidRequest
from buildnet.model.action import Properties
from buildnet.model.amounts import NOTHING, Amounts


@dataclass(frozen=True, slots=True)
class WorkerOffer:
    """One worker: `node` is its stable id, `boot_id` changes with every start of its process.

    `properties` are name and value pairs that requirements are matched against; a name may have several values.
    `tier` is the controller's trust in it, not its own claim. `capacity` is what its actions may use together; None
    bounds them by `slots` alone, which else bounds those that ask for no cpus. `action_max` is the most memory and disk
    that one of them may ask for; zero is what all may use together.
    """

    node: str
    boot_id: str
    slots: int
    properties: Properties
    tier: str = "local"
    capacity: Amounts | None = None
    action_max: Amounts = NOTHING

    def gives(self, asked: Amounts) -> bool:
        """Whether one action may ask so much of it while it runs nothing."""
        most = self.action_max
        return (
            (self.capacity is None or asked.within(self.capacity))
            and not 0 < most.memory_bytes < asked.memory_bytes
            and not 0 < most.disk_bytes < asked.disk_bytes
        )

    @property
    def attempts_max(self) -> int:
        """How many run at once, whatever they ask."""
        return attempts_max(self.slots, self.capacity)


SLOTS_MAX: Final = 1024
"""Of one worker; and of what runs there at once."""

_ATTEMPTS_OF_SLOT: Final = 16


def attempts_max(slots: int, capacity: Amounts | None) -> int:
    """How many attempts run at once on such a worker, whatever they ask: its threads and processes are bounded.

    Those that ask for cpus are bounded by those that there are, and may be small: there are 16 for each slot at most.
    """
    if capacity is None or not capacity.cpu_milli:
        return slots
    return min(_ATTEMPTS_OF_SLOT * slots, SLOTS_MAX)


NODE_POLICIES_MAX: Final = 10_000
"""Nodes that are cordoned or removed at one controller."""

NodeState = Literal["joining", "active", "cordoned", "draining", "left", "removed"]


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """What was decided of a node for as long as nobody decides otherwise. `by` is the last who decided, "" for a caller
    without credentials.
    """

    cordoned: bool = False
    removed: bool = False
    by: str = ""

    @property
    def is_free(self) -> bool:
        """Whether nothing is decided, so that it need not be kept."""
        return not self.cordoned and not self.removed


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a node said when it joined. `sent_unix_ms` is when, by its clock; None when it did not tell it."""

    offer: WorkerOffer
    hostname: str = ""
    version: str = ""
    sent_unix_ms: int | None = None


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as it stands. `greeting` is None for one that was not seen since the controller started.

    `session` is the number of its open session; times are of the controller's clock, 0 for never. `skew_ms` is its
    clock less the controller's, None when it did not tell it.
    """

    node: str
    state: NodeState
    policy: NodePolicy
    greeting: Greeting | None = None
    session: int | None = None
    draining: bool = False
    asked_by: str = ""
    joined_at_unix_ms: int = 0
    last_seen_unix_ms: int = 0
    skew_ms: int | None = None


def check_node_id(text: str, field_name: str = "node_id") -> str:
    """Refuse what is no node's id: ids are printed, kept in files and written to the ledger as they are.

    Raises:
        InvalidRequest: it is empty, over 128 characters, or holds other than letters, digits and `._-`.
    """
    if 0 < len(text) <= 128 and text.isascii() and all(c.isalnum() or c in "._-" for c in text):
        return text
    raise InvalidRequest(
        f"{field_name} must be 1 to 128 letters, digits or ._-, not {text[:32]!r}; `buildnet fleet ls` shows ids",
        field=field_name,
    )
