"""What a worker is told at its start, checked before anything opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from buildnet.errors import InvalidRequest
from buildnet.model.amounts import Amounts
from buildnet.model.credentials import NONE, Address, Credentials
from buildnet.model.join_line import JoinLine
from buildnet.model.node import SLOTS_MAX, attempts_max
from buildnet.sandbox.policy import SEARCH_PATH, Limits

TREES_SIZE_BYTES_DEFAULT = 4 << 30
_TREES_SHARE = 4


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker.

    Args:
        url: the controller's door, `grpc://HOST:PORT`, or `grpcs://HOST:PORT` for TLS; with a line, what is told of it.
        state: the worker's own directory: its identity, its CAS and its scratch space.
        slots: attempts that may run at once of those that ask for no cpus; without a capacity, of all.
        version: of this program; the controller refuses another.
        hostname: for people.
        limits: what one command may use; the timeout comes with each lease.
        isolation: the strongest backend to use, `namespaces` or `process`; None for the best that
            the kernel allows.
        hidden: directories that no command may look into, where namespaces are to be had; the
            worker's own state is always among them.
        toolchain: paths of this machine that every command may read, besides the usual ones, where namespaces are to be
            had.
        strict: an action that does not say so may write nothing but its outputs, and nothing is left to trust.
        secrets: files with the values of secrets, by the names that actions know them by.
        properties: offered to requirements, besides those found out by the worker itself.
        search_path: directories whose programs are announced as tools.
        credentials: what the controller is verified by, and what it is shown; with a line whose sessions HTTP/2
            carries, what whoever ends TLS before the controller is verified by.
        line: by which to join with sessions, in place of `url`.
        capacity: what its actions may use together; None to let the controller count slots alone.
        gpus: the numbers of the device files of its gpus.
        durability: of the worker's own CAS; a cache of the controller's, so never more than
            `process`.
        cache_size_bytes: what the worker keeps of blobs and of input trees together; None: blobs as
            the disk allows, and trees up to `TREES_SIZE_BYTES_DEFAULT`.
        cache_keep_s: for how long none of these blobs is evicted that was used; None: as the store does.
        settle_timeout_s: how long a draining worker without a session waits to hand over its last
            results.
        away_timeout_s: for how long attempts run on, and their transfers are tried again, without a session.
        stop_timeout_s: how long a worker that was told to stop now waits for attempts that are
            stuck, in a transfer for example, before it leaves them behind.
    """

    url: str
    state: Path
    slots: int = 1
    version: str = ""
    hostname: str = ""
    limits: Limits = field(default_factory=Limits)
    isolation: str | None = None
    hidden: tuple[Path, ...] = ()
    toolchain: tuple[str, ...] = ()
    strict: bool = False
    secrets: Mapping[str, Path] = field(default_factory=dict)
    properties: frozenset[tuple[str, str]] = frozenset()
    search_path: tuple[str, ...] = SEARCH_PATH
    credentials: Credentials = NONE
    line: JoinLine | None = None
    capacity: Amounts | None = None
    gpus: tuple[int, ...] = ()
    durability: str = "process"
    cache_size_bytes: int | None = None
    cache_keep_s: int | None = None
    settle_timeout_s: float = 10.0
    away_timeout_s: float = 600.0
    stop_timeout_s: float = 5.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= SLOTS_MAX:
            raise InvalidRequest(f"slots must be from 1 to {SLOTS_MAX}, not {self.slots}", field="slots")
        if self.isolation not in (None, "namespaces", "process"):
            raise InvalidRequest(
                f"isolation {self.isolation!r} is not known; use namespaces or process",
                field="isolation",
            )
        if self.line is None:
            _ = self.address

    @property
    def attempts_max(self) -> int:
        """Attempts that may run at once, whatever they ask: as the controller counts them."""
        return attempts_max(self.slots, self.capacity)

    @property
    def trees_size_bytes(self) -> int:
        """What kept input trees take at most: a quarter of the cache."""
        return TREES_SIZE_BYTES_DEFAULT if self.cache_size_bytes is None else self.cache_size_bytes // _TREES_SHARE

    @property
    def blobs_size_bytes(self) -> int | None:
        """What the worker's own CAS holds at most."""
        return None if self.cache_size_bytes is None else self.cache_size_bytes - self.trees_size_bytes

    @property
    def address(self) -> Address:
        """Where the controller is.

        Raises:
            InvalidRequest: the URL is not one that a worker can dial.
        """
        return Address.parse(self.url)
