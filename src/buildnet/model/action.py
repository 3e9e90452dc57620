"""What one action is to the rooms: its identity, what it requires, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import Digest
from buildnet.model.quick import quick

Properties = frozenset[tuple[str, str]]

CONSTRAINT: Final = "require"
"""The platform property whose value is a constraint on resources; it may come several times."""

TIER: Final = "tier"
"""The platform property whose value is the trust that the controller has in a worker."""

SECRET: Final = "secret"
"""The property by which a worker offers a secret; its value is the secret's name."""


RESULT_BYTES_MAX: Final = 32 << 20
"""Of an encoded ActionResult: 100,000 outputs with paths of some 200 bytes."""


@quick
@dataclass(frozen=True, slots=True, order=True)
class ActionKey:
    """Identity of one action's result: the instance name and the digest of the Action's exact bytes."""

    instance: str
    digest: Digest

    def __hash__(self) -> int:
        # Of one action in two instances the hashes are equal, and the keys are not.
        return hash(self.digest.hash)


@quick
@dataclass(frozen=True, slots=True)
class Wanted:
    """One request to have an action's result.

    `requirements` are the platform properties of the Action (else of the Command), each of which a worker must offer.
    `timeout_s` is already bounded by the server's maximum. `priority`: lower runs sooner (REAPI ExecutionPolicy).
    `caller` is who asked, "" for nobody known; of those who join, it stays the first.
    `asked` is what it uses up while it runs. `share` is who it is counted for: organisation, user and invocation, each
    "" when it is not known. `near` are numbers that actions with something in common share (input root, target): the
    worker that ran one lately is preferred. `pinned` is the node that alone may run it, "" for any.
    """

    key: ActionKey
    requirements: Properties
    timeout_s: float
    priority: int = 0
    do_not_cache: bool = False
    skip_cache_lookup: bool = False
    caller: str = ""
    asked: Amounts = NOTHING
    share: tuple[str, str, str] = ("", "", "")
    near: tuple[int, ...] = ()
    pinned: str = ""

    @property
    def constraints(self) -> tuple[str, ...]:
        """What is required of resources, in order."""
        return tuple(sorted(value for name, value in self.requirements if name == CONSTRAINT))

    def hold_equal(self, requirements: Properties, asked: Amounts, share: tuple[str, ...]) -> None:
        """Hold these, which equal its own and are held by many, so that of a long queue not each has its own copies."""
        if self.requirements is not requirements:
            object.__setattr__(self, "requirements", requirements)
        if self.asked is not asked:
            object.__setattr__(self, "asked", asked)
        if self.share is not share:
            object.__setattr__(self, "share", share)


@quick
@dataclass(frozen=True, slots=True)
class Lease:
    """A fenced assignment of one action to one worker; a fence that is not one of the action's own may not publish.

    `reserved` is what is counted for it at the worker.
    """

    fence: int
    key: ActionKey
    worker: str
    attempt: int
    timeout_s: float
    caller: str = ""
    reserved: Amounts = NOTHING


Code = Literal[
    "ok",
    "invalid_request",
    "blobs_missing",
    "output_invalid",
    "deadline_passed",
    "cancelled",
    "too_large",
    "storage_full",
    "sandbox_failed",
    "node_down",
    "no_capable_worker",
    "dependency_failed",
    "overloaded",
    "internal",
]


@quick
@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended.

    `result` holds the exact bytes of an ActionResult; it is there when `code` is "ok" (whatever the exit code was)
    and may be there otherwise, to carry the logs of a command that was stopped. `missing` lists digest texts when
    `code` is "blobs_missing". `worker` is the node that ran it, "" when none did. `cpu_ms` is processor time as
    known by `cpu_from`: usage (measured), wall (only how long it took, on one processor), or "" (not known).
    """

    code: str
    result: bytes | None
    message: str = ""
    worker: str = ""
    exit_code: int = 0
    missing: tuple[str, ...] = ()
    cached: bool = False
    entry_index: int | None = None
    cpu_ms: int = 0
    cpu_from: str = ""
