"""Wire a controller to those who witness its ledger: a client, a loop, and their end. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from buildnet.app.config import ControllerConfig
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog

# One connection to each stays open between two questions.
_KEPT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of the witnesses: a row each for people, and numbers for metrics."""

    standings: Callable[[], list[dict[str, Any]]] = list
    counts: Callable[[], dict[str, int]] = dict


@asynccontextmanager
async def asked(config: ControllerConfig, ledger: LedgerLog, cosigned: Cosigned) -> AsyncIterator[Told]:
    """Ask the witnesses of a configuration for as long as the body runs; nobody, when it names none."""
    if not config.witnesses:
        yield Told()
        return
    # An HTTP client takes longer to import than the rest of a controller to start.
    import httpx2

    from buildnet.edge.web.witnesses import TIMEOUT_S, Witnesses

    who = [(witness.url, witness.key) for witness in config.witnesses]
    limits = httpx2.Limits(max_connections=2 * len(who), keepalive_expiry=_KEPT_S)
    async with httpx2.AsyncClient(timeout=TIMEOUT_S, limits=limits, follow_redirects=False) as client:
        witnesses = Witnesses(ledger, cosigned, who, client, config.witness_interval_s)
        task = asyncio.ensure_future(witnesses.run())
        try:
            yield Told(witnesses.standings, witnesses.counts)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
