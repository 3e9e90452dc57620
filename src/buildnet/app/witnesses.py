"""Wire a controller to those who witness its ledger: a client, a loop, and their end. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx2

from buildnet.app.config import ControllerConfig
from buildnet.edge.web.witnesses import TIMEOUT_S, Witnesses
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog

# One connection to each stays open between two questions.
_KEPT_S: Final = 120.0


@asynccontextmanager
async def asked(config: ControllerConfig, ledger: LedgerLog, cosigned: Cosigned) -> AsyncIterator[Witnesses]:
    """Ask the witnesses of a configuration for as long as the body runs; nobody, when it names none."""
    who = [(witness.url, witness.key) for witness in config.witnesses]
    limits = httpx2.Limits(max_connections=len(who) or 1, keepalive_expiry=_KEPT_S)
    async with httpx2.AsyncClient(timeout=TIMEOUT_S, limits=limits, follow_redirects=False) as client:
        witnesses = Witnesses(ledger, cosigned, who, client, config.witness_interval_s)
        if not who:
            yield witnesses
            return
        task = asyncio.ensure_future(witnesses.run())
        try:
            yield witnesses
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
