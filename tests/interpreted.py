"""The compiled rooms as their sources stand, whether or not they are compiled: for what is shown of both forms."""

from __future__ import annotations

import sys

import buildnet.ledger
import buildnet.scheduler


def interpret() -> None:
    """Take no compiled module from here on; to be called before the first is imported."""
    for room, first in ((buildnet.scheduler, "core"), (buildnet.ledger, "leaf")):
        assert f"{room.__name__}.{first}" not in sys.modules, "it is chosen when it is first imported"
        # The sources' own directory is the last: the room puts what is compiled before it.
        room.__path__[:] = room.__path__[-1:]
