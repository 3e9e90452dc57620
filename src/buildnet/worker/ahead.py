"""What the action needs that is likely to come next is fetched while others run. Nobody waits, nothing fails by it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from buildnet._native import NativeError, Store
from buildnet.errors import BuildNetError
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_of

_log = logging.getLogger(__name__)
_ACTION_BYTES_MAX: Final = 4 << 20


class Fetches(Protocol):
    """What brings blobs and trees to the worker's own store; buildnet._native.Crew does."""

    def fetch(self, blobs: Sequence[str], tree: str | None = None) -> None:
        """Bring what is lacked of these, and of a Directory and all below it. Blocks."""
        ...


class Ahead:
    """Fetches for one action at a time; of those that are asked for meanwhile, for the newest.

    Args:
        store: the worker's own CAS.
        crew: brings things there.
    """

    def __init__(self, store: Store, crew: Fetches) -> None:
        self._store = store
        self._crew = crew
        self._lock = threading.Lock()
        self._next: Digest | None = None
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def fetch(self, action: Digest) -> None:
        """Have it fetched soon. Never blocks."""
        with self._lock:
            self._next = action
            if self._busy:
                return
            self._busy = True
        self._thread.submit(self._run)

    def _run(self) -> None:
        while True:
            with self._lock:
                action, self._next = self._next, None
                if action is None:
                    self._busy = False
                    return
            try:
                self._fetch(action)
            except (NativeError, BuildNetError, DecodeError) as error:
                # Its attempt will say what is wrong, to somebody who waits.
                _log.debug("what %s needs was not fetched ahead: %s", action, error)
            except Exception:  # noqa: BLE001 - a later one is still to be fetched; it is logged
                _log.exception("fetching ahead failed inside")

    def _fetch(self, digest: Digest) -> None:
        self._crew.fetch([digest.text])
        action = re.Action.FromString(self._store.get_bytes(digest.text, _ACTION_BYTES_MAX))
        self._crew.fetch([digest_of(action.command_digest).text], digest_of(action.input_root_digest).text)

    def close(self) -> None:
        """Begin no more. What is being fetched ends with the crew."""
        with self._lock:
            self._next = None
        self._thread.shutdown(wait=False, cancel_futures=True)
