"""Says what the node offers, signed, in each session: everything first, then what changes, and again before it expires.

What is refused is said anew in full, once at once and then with the next renewal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from buildnet._native import SigningKey
from buildnet.catalog import announcement
from buildnet.errors import TooLarge
from buildnet.model.resource import Announcement, Key, Resource
from buildnet.ports import Clock
from buildnet.wire._gen.buildnet.v1 import fleet_pb2, resource_pb2
from buildnet.wire.announcements import body_of
from buildnet.worker.identity import Identity
from buildnet.worker.inventory import Inventory, Stocktaker

_log = logging.getLogger(__name__)

RENEW_S: Final = announcement.VALID_MS / 3000

Send = Callable[[fleet_pb2.JoinRequest], None]


class Announcer:
    """One node's voice. Its sequence rises over all sessions of this boot."""

    def __init__(
        self,
        stock: Stocktaker,
        identity: Identity,
        key: SigningKey,
        clock: Clock,
        *,
        renew_s: float = RENEW_S,
    ) -> None:
        self._stock = stock
        self._identity = identity
        self._key = key
        self._clock = clock
        self._renew_s = renew_s
        self._sequence = 0
        self._told: Mapping[Key, Resource] | None = None
        self._was_full = False
        self._again = asyncio.Event()

    async def run(self, controller: str, send: Send) -> None:
        """Announce within one session, until cancelled."""
        self._told = None
        while True:
            changed = self._stock.changed
            if self._stock.current is not None:
                send(self._say(controller, self._stock.current))
            self._again.clear()
            await self._until(changed)

    def heard(self, answer: resource_pb2.Announced) -> None:
        """Take what the controller answers."""
        if not answer.error_code:
            return
        _log.warning("announcement %d was refused: %s", answer.sequence, answer.message)
        full, self._told = self._was_full, None
        if not full:
            self._again.set()

    async def _until(self, changed: asyncio.Event) -> None:
        tasks = [asyncio.ensure_future(event.wait()) for event in (changed, self._again)]
        try:
            await asyncio.wait(tasks, timeout=self._renew_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _say(self, controller: str, stock: Inventory) -> fleet_pb2.JoinRequest:
        told, base = self._told, self._sequence
        self._sequence += 1
        if told is not None:
            present = {key: resource for key, resource in stock.resources.items() if told.get(key) != resource}
            gone = sorted(key for key in told if key not in stock.resources)
            try:
                message = self._signed(self._body(controller, base, present, gone, stock.left_out))
            except TooLarge:
                # So much has changed that everything is as easily said.
                self._told = None
            else:
                self._told, self._was_full = stock.resources, False
                return message
        kept = dict(stock.resources)
        while True:
            left_out = stock.left_out + len(stock.resources) - len(kept)
            try:
                message = self._signed(self._body(controller, 0, kept, [], left_out))
            except TooLarge as error:
                _log.warning("%s; half of it is left out", error.message)
                kept = {key: kept[key] for key in sorted(kept)[: len(kept) // 2]}
                continue
            # What was left out is not told as a change either: the whole inventory counts as told.
            self._told, self._was_full = stock.resources, True
            return message

    def _body(
        self, controller: str, base: int, present: Mapping[Key, Resource], gone: list[Key], left_out: int
    ) -> tuple[int, bytes]:
        now_unix_ms = self._clock.now_unix_ms()
        return body_of(
            Announcement(
                node=self._identity.node,
                boot=self._identity.boot,
                controller=controller,
                sequence=self._sequence,
                base=base,
                made_at_unix_ms=now_unix_ms,
                expires_at_unix_ms=now_unix_ms + announcement.VALID_MS,
                present=tuple(present[key] for key in sorted(present)),
                gone=tuple(gone),
                left_out=left_out,
            )
        )

    def _signed(self, packed: tuple[int, bytes]) -> fleet_pb2.JoinRequest:
        packing, body = packed
        message = fleet_pb2.JoinRequest()
        message.announcement.body = body
        message.announcement.packing = packing  # type: ignore[assignment]
        message.announcement.public_key = self._key.public
        message.announcement.signature = announcement.sign(self._key, packing, body)
        return message
