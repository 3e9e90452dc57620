"""Where the compiled core is, if one was made of these very sources: what is stale is never chosen. It compiles none.

Beside a `core.py` Python would take a `core.so` of any age. So compiled modules stand in a directory of their own,
named by the sum of all that they were made of: whoever edits a line runs that line, interpreted, until `make core`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Final

MODULES: Final = (
    "admission",
    "core",
    "dispatch",
    "entry",
    "leases",
    "matching",
    "placement",
    "queue",
    "returning",
    "share",
)
"""The scheduler's pure files that are compiled, all together: they know each other's fields by place, not by name."""

READ: Final = (
    "model/action.py",
    "model/amounts.py",
    "model/node.py",
    "model/tier.py",
    "ports.py",
    "scheduler/events.py",
    "scheduler/limits.py",
)
"""What they import besides, and stays Python: constants of these, and types, are in what was compiled."""

DIRECTORY: Final = "_compiled"


def sum_of(package: Path) -> str:
    """The sum of all that a core is made of, and of this Python's ABI.

    Args:
        package: the directory of `buildnet`.
    """
    told = hashlib.sha256((sys.implementation.cache_tag or "").encode())
    for name in (*(f"scheduler/{module}.py" for module in MODULES), *READ):
        data = (package / name).read_bytes()
        told.update(f"\n{name} {len(data)}\n".encode())
        told.update(data)
    return told.hexdigest()[:32]


def directory_of(package: Path) -> Path:
    """Where the modules are that were compiled of the sources as they stand; there need be none."""
    return package / "scheduler" / DIRECTORY / sum_of(package)
