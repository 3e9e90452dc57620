"""What runs on this machine, for tests of what must not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def running_with(mark: str) -> Iterator[str]:
    """Processes of this machine whose arguments hold `mark`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in arguments:
            yield process.name
