"""The rows of the table. A ratio is wanted of a row only where a figure of the peer was known when it was written."""

from __future__ import annotations

from dataclasses import dataclass

LARGE = "large"
# Of ours over bazel-remote's, which syncs each blob and entry to the disk, where ours is durable to loss of power.
DURABLE_RATIO = 3.0


@dataclass(frozen=True)
class Row:
    """One call under one load; `target` is what ours is to be over buildbox-casd's, in calls a second.

    `durable_per_s` is what ours is to do durable to loss of power, where bazel-remote is not beside it.
    Without `peers`, only ours and the floor are asked: others would look for an action whose bytes were never sent.
    """

    name: str
    arguments: tuple[str, ...]
    target: float | None = None
    durable_per_s: float | None = None
    peers: bool = True

    @property
    def large(self) -> bool:
        """Whether bytes count rather than calls."""
        return LARGE in self.name


def _row(name: str, target: float | None, *arguments: str, durable_per_s: float | None = None) -> Row:
    call = name.split(" ")[0]
    return Row(name, ("--call", call, *arguments), target, durable_per_s)


# Two seconds of 64 MiB uploads fill the page cache, and what is measured then is the disk: so many calls are enough.
_LARGE = ("--calls", "24")

ROWS = (
    _row("get-action-result-hit", 2.8),
    _row("get-action-result-miss", 3.2),
    _row("update-action-result", 5.0, durable_per_s=16_000),
    _row("find-missing 10", 2.4, "--digests", "10"),
    _row("find-missing 100", 4.4, "--digests", "100"),
    _row("find-missing 1000", 7.5, "--digests", "1000"),
    _row("batch-update", 6.0, durable_per_s=3_900),
    _row("batch-read", 2.2),
    _row("write-small", 4.5, durable_per_s=17_000),
    _row("read-small", 2.8),
    _row("write-large 1", 1.05, "--streams", "1", *_LARGE),
    _row("write-large 4", 1.15, "--streams", "4", *_LARGE),
    _row("read-large 1", 3.5, "--streams", "1"),
    _row("read-large 4", 2.2, "--streams", "4"),
    _row("get-action-result-hit serial", None, "--serial"),
    Row("execute-hit", ("--call", "execute-hit"), peers=False),
    _row("find-missing serial", None, "--digests", "10", "--serial"),
    _row("write-small serial", None, "--serial"),
    _row("read-small serial", None, "--serial"),
)
