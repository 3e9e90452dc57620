"""The scheduler's core as its sources stand, whether or not it is compiled: for what is shown of both forms."""

from __future__ import annotations

import sys

import buildnet.scheduler


def interpret() -> None:
    """Take no compiled module from here on; to be called before the first is imported."""
    assert "buildnet.scheduler.core" not in sys.modules, "the core is chosen when it is first imported"
    # The sources' own directory is the last: `buildnet.scheduler` puts what is compiled before it.
    buildnet.scheduler.__path__[:] = buildnet.scheduler.__path__[-1:]
