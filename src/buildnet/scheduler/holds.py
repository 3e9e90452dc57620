"""What live actions need stays in the store: held from admission until the last operation of the action has ended.

It decides nothing about actions; a hold that fails is said in the log, and the action runs all the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from buildnet.errors import BuildNetError
from buildnet.model.action import ActionKey
from buildnet.ports import BlobStore

log = logging.getLogger(__name__)


class LiveActions:
    """Counts the operations of every action, and holds its inputs while there are any."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._live: Counter[ActionKey] = Counter()

    def began(self, key: ActionKey) -> bool:
        """An operation was admitted; whether it is the action's first, for which `hold` is due."""
        self._live[key] += 1
        return self._live[key] == 1

    async def hold(self, key: ActionKey) -> None:
        """Hold what the action needs. Its admission has just found it all present, which protects it until then."""
        try:
            await self._blobs.hold_action(key)
        except BuildNetError as error:
            self._held(key, error)
        else:
            self._held(key, None)

    async def hold_each(self, keys: Iterable[ActionKey]) -> None:
        """Hold what many actions need, in one turn of a thread: after a start there may be a queue of them."""
        live = [key for key in keys if key in self._live]
        for key, error in zip(live, await self._blobs.hold_each(live), strict=True):
            self._held(key, error)

    def _held(self, key: ActionKey, error: BuildNetError | None) -> None:
        if error is not None:
            log.warning("the inputs of %s are not held: %s", key.digest, error)
        if key not in self._live:
            # The action ended while its inputs were looked up.
            self._blobs.release_action(key)

    def ended(self, key: ActionKey) -> None:
        """An operation ended; after the last one nothing is held."""
        self._live[key] -= 1
        if self._live[key] <= 0:
            del self._live[key]
            self._blobs.release_action(key)
