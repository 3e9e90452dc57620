"""Transfers outlive an absence of the controller: what cannot be reached is tried again, within a bound. Blocks.

It tries again only what may be repeated: each of these calls moves what the other side lacks, and nothing twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from buildnet._native import NativeError, Store
from buildnet.errors import NodeDown
from buildnet.ports import Clock
from buildnet.wire.native import error_of
from buildnet.worker.backoff import Backoff
from buildnet.worker.identity import Randomness

_T = TypeVar("_T")
_FIRST_S = 0.1
_MAX_S = 2.0


class Transfers(Protocol):
    """What an executor asks of the controller's CAS; buildnet._native.Link is one."""

    def push_blobs(self, store: Store, digests: Sequence[str]) -> Mapping[str, int]:
        """Send what is lacked there."""
        ...

    def fetch_blobs(self, store: Store, digests: Sequence[str]) -> Mapping[str, int]:
        """Bring what is lacked here."""
        ...

    def fetch_tree(self, store: Store, root: str) -> Mapping[str, int]:
        """Bring what is lacked here of a Directory and all below it."""
        ...


class PatientTransfers:
    """Transfers that wait for a controller that is away, for at most `away_timeout_s` each, or until `give_up`."""

    def __init__(self, link: Transfers, away_timeout_s: float, clock: Clock, rng: Randomness) -> None:
        self._link = link
        self._away_timeout_s = away_timeout_s
        self._clock = clock
        self._rng = rng
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Wait no longer: this worker is leaving."""
        self._given_up.set()

    def push_blobs(self, store: Store, digests: Sequence[str]) -> Mapping[str, int]:
        """See Transfers."""
        return self._tried(lambda: self._link.push_blobs(store, digests))

    def fetch_blobs(self, store: Store, digests: Sequence[str]) -> Mapping[str, int]:
        """See Transfers."""
        return self._tried(lambda: self._link.fetch_blobs(store, digests))

    def fetch_tree(self, store: Store, root: str) -> Mapping[str, int]:
        """See Transfers."""
        return self._tried(lambda: self._link.fetch_tree(store, root))

    def _tried(self, transfer: Callable[[], _T]) -> _T:
        backoff = Backoff(_FIRST_S, _MAX_S, self._rng)
        until_s = self._clock.monotonic_s() + self._away_timeout_s
        while True:
            try:
                return transfer()
            except NativeError as error:
                if not isinstance(error_of(error), NodeDown) or self._clock.monotonic_s() >= until_s:
                    raise
                if self._given_up.wait(backoff.next_s()):
                    raise
