"""What the action needs that is likely to come next is fetched while others run. Nobody waits, nothing fails by it."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from google.protobuf.message import DecodeError

from buildnet._native import NativeError, Store, Trees
from buildnet.errors import BuildNetError
from buildnet.model.digest import EMPTY, Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_of
from buildnet.worker.patience import Transfers

_log = logging.getLogger(__name__)
_ACTION_BYTES_MAX: Final = 4 << 20


class Ahead:
    """Fetches for one action at a time; of those that are asked for meanwhile, for the newest.

    Args:
        store: the worker's own CAS.
        link: to the controller's CAS.
        trees: input trees that are kept, which nothing is fetched for.
    """

    def __init__(self, store: Store, link: Transfers, trees: Trees | None) -> None:
        self._store = store
        self._link = link
        self._trees = trees
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
        self._link.fetch_blobs(self._store, [digest.text])
        action = re.Action.FromString(self._store.get_bytes(digest.text, _ACTION_BYTES_MAX))
        self._link.fetch_blobs(self._store, [digest_of(action.command_digest).text])
        root = digest_of(action.input_root_digest)
        if root != EMPTY and not self._is_kept(root):
            self._link.fetch_tree(self._store, root.text)

    def _is_kept(self, root: Digest) -> bool:
        if self._trees is None or (kept := self._trees.find(root.text)) is None:
            return False
        kept.release()
        return True

    def close(self) -> None:
        """Begin no more. What is being fetched ends with the link."""
        with self._lock:
            self._next = None
        self._thread.shutdown(wait=False, cancel_futures=True)
