"""How far long work is, for a person at a terminal and for nobody else: pipes and scripts see only the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Protocol, TypeVar

from buildnet.errors import NodeDown


class Step(Protocol):
    """What a server says of its work while it is at it, and last when it is done."""

    @property
    def done(self) -> bool:
        """Whether this is the end."""
        ...


S = TypeVar("S", bound=Step)


def followed(steps: Iterator[S], what: str, *, quiet: bool = False) -> S:
    """The last step, after showing the others.

    Raises:
        NodeDown: the server ended before the work was done.
    """
    last: S | None = None
    if quiet or not sys.stderr.isatty():
        for step in steps:
            last = step
    else:
        last = _shown(steps, what)
    if last is None or not last.done:
        raise NodeDown(f"the server ended before it was done {what}; ask again", url="")
    return last


def _shown(steps: Iterator[S], what: str) -> S | None:
    from rich.console import Console
    from rich.progress import Progress

    last: S | None = None
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        for last in steps:
            total = getattr(last, "records_total", None)
            bar.update(task, completed=getattr(last, "records", 0), total=total)
    return last
