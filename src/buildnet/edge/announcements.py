"""What workers announce, checked and put in the catalog; what it means for requirements. Believes nothing unsigned.

An announcement that is refused costs its session nothing, until there were too many. What a session said ends with it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from buildnet.catalog import announcement
from buildnet.catalog.announcement import Heard
from buildnet.catalog.catalog import Catalog
from buildnet.catalog.constraint import parse
from buildnet.catalog.pins import Pins
from buildnet.errors import BuildNetError, InvalidRequest, TooLarge
from buildnet.ports import Clock
from buildnet.wire._gen.buildnet.v1 import fleet_pb2, resource_pb2
from buildnet.wire.announcements import announcement_of, check_size

FIRST_WITHIN_S: Final = 30.0
"""How long a worker that joined may take to announce before what it did not say counts as not there."""
_REFUSALS_MAX: Final = 3
_HEARD_MAX: Final = 100_000
_REASONS_TOLD: Final = 3
_MESSAGE_MAX: Final = 500

Record = Callable[[str, dict[str, str | int]], None]


@dataclass(slots=True)
class _Session:
    """A worker that joined. `silent_at_s`: until then nobody can tell what it offers, unless it has announced."""

    said: announcement.Session
    silent_at_s: float
    refusals: int = 0
    expires_at_unix_ms: int | None = None


class Announcements:
    """The catalog as workers fill it; see ports.ResourceMatcher for what the scheduler asks of it."""

    def __init__(self, catalog: Catalog, pins: Pins, clock: Clock, *, controller_id: str, record: Record) -> None:
        self.catalog = catalog
        self.controller_id = controller_id
        self._pins = pins
        self._clock = clock
        self._record = record
        self._sessions: dict[str, _Session] = {}
        self._heard: OrderedDict[str, Heard] = OrderedDict()
        self._followers: list[Callable[[], None]] = []
        self._deadline_changed = asyncio.Event()

    def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change of the catalog, and when a silent worker is given up."""
        self._followers.append(changed)

    def unfollow(self, changed: Callable[[], None]) -> None:
        """Call it no more."""
        self._followers.remove(changed)

    # Sessions.

    def joined(self, node: str, boot: str) -> None:
        """A session began; what an older one of the node said is over."""
        self._withdraw(node, "a new session")
        session = announcement.Session(node, boot, self.controller_id)
        self._sessions[node] = _Session(session, self._clock.monotonic_s() + FIRST_WITHIN_S)
        self._deadline_changed.set()

    def lost(self, node: str) -> None:
        """The node's session ended."""
        self._sessions.pop(node, None)
        self._withdraw(node, "the session ended")

    def take(self, node: str, message: resource_pb2.Announcement) -> fleet_pb2.JoinResponse:
        """Believe or refuse one announcement; return what to answer.

        Raises:
            BuildNetError: it is refused, and so many were before that the session should end.
        """
        session = self._sessions.get(node)
        if session is None:
            raise InvalidRequest(f"no session of node {node} is open", field="announcement")
        sequence = 0
        try:
            check_size(message.body)
            announcement.verify(message.public_key, message.packing, message.body, message.signature)
            said = announcement_of(message.packing, message.body)
            sequence = said.sequence
            if len(said.present) > announcement.RESOURCES_MAX:
                raise TooLarge(f"{len(said.present)} resources are over the limit", limit=announcement.RESOURCES_MAX)
            heard = announcement.check(
                said,
                session.said,
                self._heard.get(node),
                self._clock.now_unix_ms(),
                held=session.expires_at_unix_ms is not None,
            )
            if said.base and self.catalog.count(node) + len(said.present) > 2 * announcement.RESOURCES_MAX:
                raise TooLarge("the node offers too much; announce everything", limit=announcement.RESOURCES_MAX)
            self._pins.pin(node, message.public_key)
        except BuildNetError as error:
            session.refusals += 1
            reason = error.message[:_MESSAGE_MAX]
            self._record("resource.refused", {"node": node, "error": error.code, "message": reason})
            if session.refusals > _REFUSALS_MAX:
                raise
            return _answer(sequence, error.code, reason)
        self._remember(node, heard)
        first = session.expires_at_unix_ms is None
        session.expires_at_unix_ms = said.expires_at_unix_ms
        self._deadline_changed.set()
        if said.base:
            applied = self.catalog.update(node, said.present, said.gone, left_out=said.left_out)
        else:
            applied = self.catalog.replace(node, said.present, left_out=said.left_out)
        facts: dict[str, str | int] = {"node": node, "boot": said.boot, "sequence": said.sequence}
        if applied.announced or first:
            self._record("resource.announced", {**facts, "count": applied.announced})
        if applied.withdrawn:
            self._record("resource.withdrawn", {**facts, "count": applied.withdrawn})
        if first or applied.announced or applied.withdrawn:
            self._changed()
        return _answer(sequence)

    def _remember(self, node: str, heard: Heard) -> None:
        self._heard[node] = heard
        self._heard.move_to_end(node)
        while len(self._heard) > _HEARD_MAX:
            self._heard.popitem(last=False)

    def _withdraw(self, node: str, why: str) -> None:
        if not self.catalog.knows(node):
            return
        count = self.catalog.withdraw(node)
        self._record("resource.withdrawn", {"node": node, "count": count, "message": why})
        self._changed()

    def _changed(self) -> None:
        for follower in list(self._followers):
            follower()

    # Time.

    async def run(self) -> None:
        """Until cancelled: withdraw what has expired, and give up waiting for workers that say nothing."""
        while True:
            self._deadline_changed.clear()
            delay_s = self._sweep()
            try:
                async with asyncio.timeout(delay_s):
                    await self._deadline_changed.wait()
            except TimeoutError:
                continue

    def _sweep(self) -> float | None:
        """End what is over; return in how many seconds the next will be."""
        now_s, now_unix_ms = self._clock.monotonic_s(), self._clock.now_unix_ms()
        delays: list[float] = []
        fell_silent = False
        for node, session in self._sessions.items():
            if session.expires_at_unix_ms is None:
                if session.silent_at_s > now_s:
                    delays.append(session.silent_at_s - now_s)
                elif session.silent_at_s > 0:
                    session.silent_at_s = 0
                    fell_silent = True
                continue
            left_ms = session.expires_at_unix_ms + announcement.SKEW_MS - now_unix_ms
            if left_ms > 0:
                delays.append(left_ms / 1000)
            else:
                session.expires_at_unix_ms, session.silent_at_s = None, 0
                self._withdraw(node, "the announcement expired")
        if fell_silent:
            self._changed()
        return min(delays, default=None)

    # Requirements; see ports.ResourceMatcher.

    def meets(self, node: str, constraints: tuple[str, ...]) -> bool | None:
        """See ports.ResourceMatcher."""
        if self.catalog.knows(node):
            return self.catalog.meets(node, constraints)
        session = self._sessions.get(node)
        return None if session is None or session.silent_at_s > self._clock.monotonic_s() else False

    def why_not(self, constraints: tuple[str, ...]) -> str:
        """See ports.ResourceMatcher."""
        told = [f"{node[:12]}: {reasons[0]}" for node, reasons in self.verdicts(constraints).items() if reasons]
        more = f"; and {len(told) - _REASONS_TOLD} more" if len(told) > _REASONS_TOLD else ""
        return "; ".join(told[:_REASONS_TOLD]) + more

    def verdicts(self, constraints: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """For each node that joined, by id, the reasons why it does not meet the constraints; none when it does.

        Raises:
            InvalidRequest: one is not a constraint.
        """
        parsed = parse(constraints)
        return {
            node: self.catalog.explain(node, parsed) if self.catalog.knows(node) else ("it has not announced yet",)
            for node in sorted(self._sessions)
        }


def _answer(sequence: int, code: str = "", message: str = "") -> fleet_pb2.JoinResponse:
    answer = fleet_pb2.JoinResponse()
    answer.announced.sequence = sequence
    answer.announced.error_code, answer.announced.message = code, message
    return answer
