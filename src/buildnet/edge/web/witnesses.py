"""Asks witnesses to cosign new checkpoints, beside all else: nobody waits for it, and a witness that is down is told.

The client's side of c2sp.org/tlog-witness. A witness that has seen more than this ledger holds is an alarm, not a fault
to repeat.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import httpx2

from buildnet.errors import BadSignature, BuildNetError, InvalidRequest, LedgerCorrupt, NodeDown
from buildnet.ledger import note as notes
from buildnet.ledger.cosignature import WitnessKey
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog
from buildnet.ledger.witness import SIZE_TYPE, AddCheckpoint

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0
_SIZE: Final = re.compile(r"(0|[1-9][0-9]{0,18})\n")


@dataclass(slots=True)
class Standing:
    """One witness: the `size` that it cosigned last as far as is known, and how often it was asked and answered."""

    name: str
    url: str
    size: int = 0
    cosigned: int = 0
    failed: int = 0
    error: str = ""


class Witnesses:
    """Those who are asked. One loop asks; reading what is known costs nothing."""

    def __init__(
        self,
        ledger: LedgerLog,
        kept: Cosigned,
        witnesses: Sequence[tuple[str, WitnessKey]],
        client: httpx2.AsyncClient,
        interval_s: float,
    ) -> None:
        """Ask `witnesses`, each by the URL of its submission prefix and its key, at most every `interval_s`."""
        self._ledger = ledger
        self._kept = kept
        self._client = client
        self._interval_s = interval_s
        self._asked = [(Standing(key.name, url.removesuffix("/")), key) for url, key in witnesses]
        # What was asked for; the same checkpoint is not asked for again unless somebody failed.
        self._done = kept.size

    def standings(self) -> list[dict[str, Any]]:
        """Each witness as a row, for people."""
        return [asdict(standing) for standing, _ in self._asked]

    def counts(self) -> dict[str, int]:
        """Numbers for metrics, all witnesses together."""
        return {
            "witness_cosignatures": sum(standing.cosigned for standing, _ in self._asked),
            "witness_failures": sum(standing.failed for standing, _ in self._asked),
            "ledger_cosigned_entries": self._kept.size,
        }

    async def run(self) -> None:
        """Ask whenever there is something new, without an end."""
        while True:
            try:
                await self.ask()
            except (BuildNetError, OSError) as error:
                log.error("witnesses could not be asked: %s", error)
            await asyncio.sleep(self._interval_s)

    async def ask(self) -> None:
        """Have the newest checkpoint cosigned by all, and keep it when at least one did.

        Raises:
            BuildNetError, OSError: the ledger cannot be read, or the cosigned note not written.
        """
        if self._ledger.size == self._done:
            return
        note = await self._ledger.checkpoint()
        size = self._ledger.verifier.open(note).size
        found = await asyncio.gather(*(self._ask_one(standing, key, note, size) for standing, key in self._asked))
        cosignatures = [signature for one in found if one is not None for signature in one]
        await asyncio.to_thread(self._kept.keep, note, size, cosignatures)
        if None not in found:
            self._done = size

    async def _ask_one(
        self, standing: Standing, key: WitnessKey, note: str, size: int
    ) -> tuple[notes.Signature, ...] | None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await self._cosignatures(standing, key, note, size)
        except (BuildNetError, TimeoutError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            standing.failed += 1
            # The same trouble again is in the counts; the log has its beginning and its end.
            if reason != standing.error:
                log.error("witness %s at %s did not cosign %d entries: %s", key.name, standing.url, size, reason)
            standing.error = reason
            return None
        if standing.error:
            log.warning("witness %s at %s cosigns again", key.name, standing.url)
        standing.size, standing.error = size, ""
        standing.cosigned += 1
        return found

    async def _cosignatures(
        self, standing: Standing, key: WitnessKey, note: str, size: int
    ) -> tuple[notes.Signature, ...]:
        # The second time with the size that the witness says; a third would be a race with somebody who has our key.
        for _ in range(2):
            # Nothing leads from more than there is: then the witness says anew what it has seen.
            older = standing.size if standing.size <= size else 0
            proof = await self._ledger.prove_consistency(older, size) if 0 < older < size else []
            status, kind, text = await self._post(standing.url, AddCheckpoint(older, tuple(proof), note))
            if status != 409 or kind.partition(";")[0] != SIZE_TYPE:
                break
            said = _SIZE.fullmatch(text)
            if said is None:
                raise InvalidRequest(f"it answers 409 without a size: {text[:80]!r}")
            standing.size = int(said[1])
            if standing.size > size:
                raise LedgerCorrupt(
                    f"it cosigned a tree of {standing.size} entries, and this ledger has {size}: the ledger was "
                    "rolled back, or another one uses its key",
                    where="witness",
                )
        if status != 200:
            raise NodeDown(f"it answers {status}: {text[:200]!r}", url=standing.url)
        return _believed(key, note, text)

    async def _post(self, url: str, request: AddCheckpoint) -> tuple[int, str, str]:
        body = bytearray()
        # What is compressed could unpack to anything.
        headers = {"accept-encoding": "identity", "content-type": "text/plain; charset=utf-8"}
        whole = request.encode()
        async with self._client.stream("POST", f"{url}/add-checkpoint", content=whole, headers=headers) as response:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > notes.NOTE_BYTES_MAX:
                    raise InvalidRequest(f"its answer is over {notes.NOTE_BYTES_MAX} bytes")
        return response.status_code, response.headers.get("content-type", ""), body.decode(errors="replace")


def _believed(key: WitnessKey, note: str, lines: str) -> tuple[notes.Signature, ...]:
    text, _ = notes.split(note)
    found = key.of(text, notes.signatures(lines))
    if not found:
        raise BadSignature(f"its answer holds no cosignature of {key.name}")
    return found
