"""Actions that ended, as the history knows them, and how two of them differ. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from buildnet.model.action import ActionKey
from buildnet.model.digest import Digest
from buildnet.model.quick import quick


@quick
@dataclass(frozen=True, slots=True)
class Requested:
    """For whom a call was made, in its caller's own words (REAPI RequestMetadata); "" for what it did not say."""

    tool: str = ""
    invocation: str = ""
    target: str = ""
    mnemonic: str = ""


@dataclass(frozen=True, slots=True)
class OutputFact:
    """One output of a run: `text` is a digest HASH/SIZE (of a directory its Tree's), or ` -> ` and a target."""

    path: str
    kind: Literal["file", "directory", "symlink"]
    text: str


@dataclass(frozen=True, slots=True)
class Ran:
    """What a result says of the run that made it; times are None when its worker told none.

    `outputs` are the first of `output_count`. `worker_started_at_unix_ms` is by the worker's clock.
    """

    exit_code: int = 0
    worker_started_at_unix_ms: int | None = None
    staged_ms: int | None = None
    ran_ms: int | None = None
    uploaded_ms: int | None = None
    outputs: tuple[OutputFact, ...] = ()
    output_count: int = 0


@quick
@dataclass(frozen=True, slots=True)
class EndedOperation:
    """One operation that has ended, as the scheduler knows it. One that a client ran by itself has no `worker`.

    `result` holds the exact bytes of its ActionResult, whose exit code counts where there is one.

    `kept`: whether its result might go to the cache, which neither a `do_not_cache` nor a run apart may.
    """

    operation: str
    key: ActionKey
    submitted_at_unix_ms: int
    ended_at_unix_ms: int
    code: str
    exit_code: int = 0
    cached: bool = False
    kept: bool = True
    lookup_skipped: bool = False
    entry_index: int | None = None
    worker: str = ""
    caller: str = ""
    result: bytes | None = None
    requested: Requested = Requested()

    @property
    def by_client(self) -> bool:
        """Whether its client ran it by itself and wrote its result: nothing else ends well without a worker."""
        return self.code == "ok" and not self.worker and not self.cached


@dataclass(frozen=True, slots=True)
class PastOperation:
    """One operation as the history keeps it. `number` rises; 0 is one that has not ended and stands in for itself.

    `command` and `root` are None when the Action could not be read. `queued_ms` is from its submission to the start of
    its worker's work, as far as their clocks agree.
    """

    number: int
    operation: str
    key: ActionKey
    submitted_at_unix_ms: int
    ended_at_unix_ms: int | None
    code: str = "ok"
    exit_code: int = 0
    cached: bool = False
    kept: bool = True
    lookup_skipped: bool = False
    entry_index: int | None = None
    worker: str = ""
    caller: str = ""
    requested: Requested = Requested()
    command: Digest | None = None
    root: Digest | None = None
    queued_ms: int | None = None
    ran: Ran = Ran()

    @property
    def succeeded(self) -> bool:
        """Whether its result is one that is cached."""
        return self.code == "ok" and self.exit_code == 0

    @property
    def by_client(self) -> bool:
        """See EndedOperation."""
        return self.code == "ok" and not self.worker and not self.cached


@dataclass(frozen=True, slots=True)
class Parts:
    """What an Action's digest is made of, read apart; sequences are in the order of the messages.

    `properties` are those that count: the Action's, else the Command's (REAPI 2.2). `output_kinds` says file or
    directory for each of `outputs` when they are of the older fields, and is empty else. `timeout_ns` may be None.
    """

    arguments: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    properties: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ()
    output_kinds: tuple[str, ...] = ()
    working_directory: str = ""
    timeout_ns: int | None = None
    do_not_cache: bool = False
    salt: bytes = b""
    output_format: str = ""
    output_properties: tuple[str, ...] = ()
    root: Digest | None = None


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One name in a directory. `target` is a symlink's, `digest` of everything else; `more` is what else it says."""

    name: str
    kind: Literal["file", "directory", "symlink"]
    digest: Digest | None = None
    executable: bool = False
    target: str = ""
    more: str = ""

    @property
    def text(self) -> str:
        """All that it says, for a person."""
        if self.kind == "symlink":
            text = f"-> {self.target}"
        else:
            text = self.digest.text if self.digest else ""
            text = f"directory {text}" if self.kind == "directory" else text
        return " ".join(filter(None, (text, "executable" if self.executable else "", self.more)))


@dataclass(frozen=True, slots=True)
class TreeDirectory:
    """One directory: its names, and what it says of itself beside them."""

    nodes: tuple[TreeNode, ...] = ()
    more: str = ""


Part = Literal[
    "input",
    "argument",
    "variable",
    "property",
    "effect",
    "constraint",
    "output",
    "working_directory",
    "timeout",
    "do_not_cache",
    "salt",
    "output_format",
    "encoding",
]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing in which two actions differ; None is that it was, or is, not there.

    `name` is an input's or output's path, an argument's place from 0, or a variable's or property's name. `note` says
    what cannot be told, and why.
    """

    part: Part
    name: str = ""
    before: str | None = None
    after: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """All in which two actions differ, in a fixed order; `left_out` counts changes beyond what is listed."""

    changes: tuple[Change, ...] = ()
    left_out: int = 0


Reason = Literal[
    "cached",
    "joined",
    "not_cacheable",
    "lookup_skipped",
    "failed_before",
    "not_kept",
    "evicted",
    "written_again",
    "changed",
    "never_seen",
]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one operation was not answered from the cache.

    `relative` is the nearest earlier one, and `relation` says in what it is that. `since_unix_ms` is how far back the
    history goes, None when it is empty.
    """

    subject: PastOperation
    reason: Reason
    relative: PastOperation | None = None
    relation: str = ""
    difference: Difference = field(default_factory=Difference)
    since_unix_ms: int | None = None
