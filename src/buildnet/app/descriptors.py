"""As many open files as the machine allows: a store keeps its segments open and a door thousands of connections.

Child processes get back what this one was started with, since some programs close every descriptor they may have.
"""

from __future__ import annotations

import resource
from typing import Final

WANTED: Final = 65_536


def raise_limit() -> tuple[int, int]:
    """Raise the soft limit towards the hard one; returns the limits as they were, for child processes."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return before


def give_back(pid: int, before: tuple[int, int]) -> None:
    """Let a child process have the limits of before. One that has ended already needs none."""
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    except ProcessLookupError:
        return
