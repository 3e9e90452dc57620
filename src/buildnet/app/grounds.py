"""What a controller stands on: its store and its ledger, opened lowest first. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from buildnet import __version__
from buildnet._native import Store
from buildnet.app import state
from buildnet.app.clock import SystemClock, random_id
from buildnet.app.config import ControllerConfig
from buildnet.app.recorder import LedgerRecorder
from buildnet.app.stores import NativeStores, opened_tiers
from buildnet.app.tiers import parse_tiers
from buildnet.app.usage_record import UsageRecord
from buildnet.app.witnesses import Told, asked
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry, Value
from buildnet.wire.native import translated


@dataclass(frozen=True, slots=True)
class Grounds:
    """Open until the stack that they were opened in is left. `term` counts this directory's controllers."""

    directory: Path
    clock: SystemClock
    store: Store
    stores: NativeStores
    ledger: LedgerLog
    cosigned: Cosigned
    witnesses: Told
    recorder: LedgerRecorder
    usage: UsageRecord
    term: int
    controller_id: str

    def record(self, kind: str, facts: Mapping[str, Value]) -> None:
        """Write an entry that nobody waits for."""
        _record(self.recorder, self.clock, kind, facts)

    async def append(self, kind: str, facts: Mapping[str, Value]) -> None:
        """Write an entry after those that were recorded, and return when the ledger has it."""
        await self.recorder.append([Entry(kind, self.clock.now_unix_ms(), facts)])


async def opened_grounds(config: ControllerConfig, clock: SystemClock, held: AsyncExitStack) -> Grounds:
    """Open them, to be closed with `held`.

    Raises:
        BuildNetError: the configuration or the state directory cannot be used.
    """
    behind = parse_tiers(config.tiers)
    directory = held.enter_context(state.opened(config.state))
    with translated():
        store = Store(
            str(directory / "cas"),
            config.durability,
            size_bytes_max=config.cache_size_bytes,
            keep_s=config.cache_keep_s,
        )
    held.callback(store.close)
    tiers = await held.enter_async_context(opened_tiers(behind, store, directory / "tiers"))
    signer = load_or_create_key(directory / "keys" / "ledger.key")
    ledger = LedgerLog.open(directory / "ledger", signer, config.durability)
    held.push_async_callback(ledger.close)
    cosigned = Cosigned.open(directory / "ledger", signer.verifier, ledger.size)
    witnesses = await held.enter_async_context(asked(config, ledger, cosigned))
    recorder = LedgerRecorder(ledger)
    ledger.gather(recorder.recorded)
    held.push_async_callback(recorder.close)
    usage = UsageRecord(store.statistics, partial(_record, recorder, clock), clock.monotonic_s)
    held.callback(usage.look, last=True)
    grounds = Grounds(
        directory,
        clock,
        store,
        NativeStores(store, tiers, syncs=config.durability == "power"),
        ledger,
        cosigned,
        witnesses,
        recorder,
        usage,
        state.next_term(directory),
        random_id(),
    )
    told: dict[str, Value] = {"controller": grounds.controller_id, "term": grounds.term, "version": __version__}
    await grounds.append("controller.started", told)
    return grounds


def _record(recorder: LedgerRecorder, clock: SystemClock, kind: str, facts: Mapping[str, Value]) -> None:
    recorder.record(Entry(kind, clock.now_unix_ms(), facts))


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` beside the body, and end it with the body."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
