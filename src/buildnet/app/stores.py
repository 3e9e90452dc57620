"""The native store behind the ports of the rooms; its blocking calls run in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from buildnet._native import Store
from buildnet.model.action import ActionKey
from buildnet.model.caller import looked_up
from buildnet.wire.native import translated


class NativeStores:
    """BlobStore and ActionCache over one native Store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def missing_of_result(self, result: bytes) -> Sequence[str]:
        """See BlobStore."""
        with translated():
            return await asyncio.to_thread(self._store.missing_of_result, result)

    async def hold_action(self, key: ActionKey) -> None:
        """See BlobStore."""
        with translated():
            await asyncio.to_thread(self._store.hold_action, _held_name(key), key.digest.text)

    def release_action(self, key: ActionKey) -> None:
        """See BlobStore."""
        with translated():
            self._store.release(_held_name(key))

    async def get(self, key: ActionKey) -> bytes | None:
        """See ActionCache."""
        with translated():
            for instance in looked_up(key.instance):
                result = await asyncio.to_thread(self._store.get_action_result, instance, key.digest.text)
                if result is not None:
                    return result
        return None

    async def put(self, key: ActionKey, result: bytes, entry_index: int) -> None:
        """See ActionCache."""
        with translated():
            await asyncio.to_thread(self._store.put_action_result, key.instance, key.digest.text, result, entry_index)

    def read(self, digest: str) -> bytes:
        """A small blob that the door has just admitted; from the page cache, so not worth a thread."""
        with translated():
            return self._store.get_bytes(digest)


def _held_name(key: ActionKey) -> str:
    return f"action {key.instance}:{key.digest.text}"
