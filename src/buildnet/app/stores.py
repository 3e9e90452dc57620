"""The native store behind the ports of the rooms, and the tiers behind it.

What may wait for a disk or a network runs in threads. What only looks into the index and the page cache does not: a hop
to a thread and back takes longer than that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from buildnet._native import Store, Tiers, keep_log
from buildnet.app.tiers import TierConfig
from buildnet.errors import BuildNetError
from buildnet.model.action import ActionKey
from buildnet.model.caller import looked_up
from buildnet.model.digest import Digest
from buildnet.wire.native import translated

log = logging.getLogger(__name__)

_RESULT_BYTES_INLINE_MAX: Final = 64 << 10


class NativeStores:
    """BlobStore and ActionCache over one native Store and what stands behind it."""

    def __init__(self, store: Store, tiers: Tiers | None = None, *, syncs: bool = False) -> None:
        """`syncs`: a write waits for the disk."""
        self._store = store
        self._syncs = syncs
        self.tiers = tiers

    async def missing_of_result(self, result: bytes) -> Sequence[str]:
        """See BlobStore. A worker does not send what a tier has, so what is absent here is brought from there."""
        with translated():
            missing = self._store.missing_of_flat_result(result)
            if missing is None:
                missing = await asyncio.to_thread(self._store.missing_of_result, result)
            if missing and self.tiers is not None:
                await asyncio.to_thread(self.tiers.pull_result, result)
                missing = await asyncio.to_thread(self._store.missing_of_result, result)
        return missing

    async def hold_action(self, key: ActionKey) -> None:
        """See BlobStore."""
        name, action = _held_name(key), key.digest.text
        with translated():
            if not self._store.hold_flat_action(name, action):
                await asyncio.to_thread(self._store.hold_action, name, action)

    async def hold_each(self, keys: Sequence[ActionKey]) -> Sequence[BuildNetError | None]:
        """See BlobStore."""
        return await asyncio.to_thread(lambda: [self._held(key) for key in keys])

    def _held(self, key: ActionKey) -> BuildNetError | None:
        try:
            with translated():
                self._store.hold_action(_held_name(key), key.digest.text)
        except BuildNetError as error:
            return error
        return None

    def release_action(self, key: ActionKey) -> None:
        """See BlobStore."""
        with translated():
            self._store.release(_held_name(key))

    async def hold_result(self, name: str, result: bytes) -> Sequence[str]:
        """See BlobStore. As of a result, what a tier has is brought from there."""
        with translated():
            missing = self._store.hold_flat_result(name, result)
            if missing is None:
                missing = await asyncio.to_thread(self._store.hold_result, name, result)
            if missing and self.tiers is not None:
                await asyncio.to_thread(self.tiers.pull_result, result)
                missing = await asyncio.to_thread(self._store.hold_result, name, result)
        return missing

    def release(self, name: str) -> None:
        """See BlobStore."""
        with translated():
            self._store.release(name)

    async def get(self, key: ActionKey) -> bytes | None:
        """See ActionCache."""
        return (await self.get_each([key]))[0]

    async def get_each(self, keys: Sequence[ActionKey]) -> Sequence[bytes | None]:
        """See ActionCache."""
        return await asyncio.to_thread(lambda: [self._found(key) for key in keys])

    def peek(self, key: ActionKey) -> bytes | None:
        """See ActionCache."""
        return self._found(key)

    def _found(self, key: ActionKey) -> bytes | None:
        try:
            with translated():
                for instance in looked_up(key.instance):
                    result = self._store.get_action_result(instance, key.digest.text)
                    if result is not None:
                        return result
        except BuildNetError as error:
            log.warning("the action cache could not be read for %s: %s", key.digest.text, error)
        return None

    async def put(self, key: ActionKey, result: bytes, entry_index: int) -> None:
        """See ActionCache. What is published is published: a tier that does not take it is told of, and no more."""
        put = partial(self._store.put_action_result, key.instance, key.digest.text, result, entry_index)
        with translated():
            if self._syncs or len(result) > _RESULT_BYTES_INLINE_MAX:
                await asyncio.to_thread(put)
            else:
                put()
        if self.tiers is not None:
            try:
                with translated():
                    await asyncio.to_thread(self.tiers.result_written, key.instance, key.digest.text)
            except BuildNetError as error:
                log.warning("the result of %s is in this cache only: %s", key.digest.text, error.message)

    async def keep_log(self, digest: Digest, stream: int, segments: Sequence[tuple[str, int, int]]) -> bool:
        """Store what spooled segments have of a stream as the blob that it is said to be; False where they lack some.

        Raises:
            BuildNetError: it is another, or cannot be stored as durably as an upload.
        """
        with translated():
            kept = await asyncio.to_thread(keep_log, self._store, digest.text, stream, list(segments))
            if kept and self.tiers is not None:
                await asyncio.to_thread(self.tiers.blob_written, digest.text)
        return kept

    def read(self, digest: str) -> bytes:
        """A small blob that the door has just admitted; from the page cache, so not worth a thread."""
        with translated():
            return self._store.get_bytes(digest)

    def write(self, data: bytes) -> str:
        """Store a small blob; *blocks*. Returns its digest text."""
        with translated():
            return self._store.put_bytes(data)

    def export(self, digest: str, dest: Path) -> None:
        """Write a blob to a file. Blocks."""
        with translated():
            self._store.export_file(digest, str(dest))


def _held_name(key: ActionKey) -> str:
    return f"action {key.instance}:{key.digest.text}"


@asynccontextmanager
async def opened_tiers(configs: Sequence[TierConfig], store: Store, directory: Path) -> AsyncIterator[Tiers | None]:
    """What stands behind `store`, its reports going to the log; none when nothing does.

    Raises:
        NodeDown: a required tier does not answer.
        InvalidRequest: one cannot be used as configured.
    """
    if not configs:
        yield None
        return
    tables = [config.native() for config in configs]
    with translated():
        tiers = await asyncio.to_thread(Tiers, store, tables, str(directory))
    telling = asyncio.ensure_future(_tell(tiers))
    try:
        yield tiers
    finally:
        # Closed first, so that the last reports are still told.
        await asyncio.to_thread(tiers.close)
        await telling


async def _tell(tiers: Tiers) -> None:
    while (report := await asyncio.to_thread(tiers.next_report)) is not None:
        log.warning("%s", report)
