"""A node says everything first, then what changes, and everything again when it was not believed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from buildnet._native import SigningKey
from buildnet.catalog import announcement
from buildnet.model.resource import Announcement, Resource
from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire._gen.buildnet.v1 import fleet_pb2, resource_pb2
from buildnet.wire.announcements import announcement_of
from buildnet.worker.announcer import Announcer
from buildnet.worker.identity import Identity
from buildnet.worker.inventory import Inventory, Stocktaker

GCC, CLANG = Resource("tool", "gcc", "12.2"), Resource("tool", "clang", "14.0")


@dataclass
class Heard:
    """What a controller hears; each message's signature is checked."""

    stock: Stocktaker = field(default_factory=lambda: Stocktaker([]))
    said: asyncio.Queue[Announcement] = field(default_factory=asyncio.Queue)

    def __call__(self, request: fleet_pb2.JoinRequest) -> None:
        message = request.announcement
        announcement.verify(message.public_key, message.packing, message.body, message.signature)
        self.said.put_nowait(announcement_of(message.packing, message.body))

    def offer(self, *resources: Resource, left_out: int = 0) -> None:
        self.stock.current = Inventory({resource.key: resource for resource in resources}, left_out)
        self.stock.changed.set()
        self.stock.changed = asyncio.Event()

    async def next(self) -> Announcement:
        async with asyncio.timeout(10):
            return await self.said.get()


def announcer_of(heard: Heard, renew_s: float = 60.0) -> Announcer:
    identity = Identity("n" * 32, "b" * 32)
    return Announcer(heard.stock, identity, SigningKey(secrets.token_bytes(32)), ManualClock(), renew_s=renew_s)


@asynccontextmanager
async def announcing(announcer: Announcer, heard: Heard, controller: str = "c") -> AsyncIterator[None]:
    task = asyncio.ensure_future(announcer.run(controller, heard))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()


async def test_everything_then_changes_then_everything_in_the_next_session() -> None:
    heard = Heard()
    announcer = announcer_of(heard)
    async with announcing(announcer, heard, "first"):
        heard.offer(GCC, left_out=3)
        said = await heard.next()
        assert (said.sequence, said.base, said.present, said.left_out) == (1, 0, (GCC,), 3)
        assert (said.node, said.boot, said.controller) == ("n" * 32, "b" * 32, "first")
        assert said.expires_at_unix_ms - said.made_at_unix_ms == announcement.VALID_MS
        heard.offer(CLANG)
        said = await heard.next()
        assert (said.sequence, said.base, said.present, said.gone) == (2, 1, (CLANG,), (GCC.key,))
    async with announcing(announcer, heard, "second"):
        said = await heard.next()
        assert (said.sequence, said.base, said.present, said.controller) == (3, 0, (CLANG,), "second")


async def test_it_is_renewed_though_nothing_changes() -> None:
    heard = Heard()
    async with announcing(announcer_of(heard, renew_s=0.01), heard):
        heard.offer(GCC)
        assert (await heard.next()).base == 0
        for sequence in (2, 3):
            said = await heard.next()
            assert (said.sequence, said.base, said.present, said.gone) == (sequence, sequence - 1, (), ())


async def test_a_change_that_is_refused_is_followed_by_everything_once() -> None:
    heard = Heard()
    announcer = announcer_of(heard)
    refusal = resource_pb2.Announced(sequence=2, error_code="invalid_request", message="no")
    async with announcing(announcer, heard):
        heard.offer(GCC)
        await heard.next()
        announcer.heard(resource_pb2.Announced(sequence=1))
        heard.offer(GCC, CLANG)
        await heard.next()
        announcer.heard(refusal)
        said = await heard.next()
        assert (said.base, said.present) == (0, (CLANG, GCC))
        # Everything was refused as well: saying it at once again would change nothing.
        announcer.heard(refusal)
        await asyncio.sleep(0)
        assert heard.said.empty()
        heard.offer(GCC)
        assert (await heard.next()).base == 0


async def test_what_does_not_fit_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.wire.announcements.UNPACKED_BYTES_MAX", 2000)
    heard = Heard()
    async with announcing(announcer_of(heard), heard):
        heard.offer(*(Resource("tool", f"t{number:03}") for number in range(200)), left_out=1)
        said = await heard.next()
        assert 0 < len(said.present) < 200
        assert said.left_out == 1 + 200 - len(said.present)
