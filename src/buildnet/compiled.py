"""Where a room's compiled files are, if they were made of these very sources: what is stale is never chosen.

Beside a `core.py` Python would take a `core.so` of any age. So compiled modules stand in a directory of their own,
named by the sum of all that they were made of: whoever edits a line runs that line, interpreted, until `make core`.
It compiles none (scripts/compile_core.py).
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Final, NamedTuple


class Compiled(NamedTuple):
    """Pure files of one room that are compiled, all together: they know each other's fields by place, not by name.

    `read` is what they import besides, and stays Python: constants of these, and types, are in what was compiled.
    """

    room: str
    modules: tuple[str, ...]
    read: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Those that are compiled, below the package."""
        return tuple(f"{self.room}/{module}.py" for module in self.modules)


SCHEDULER: Final = Compiled(
    "scheduler",
    (
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
    ),
    (
        "model/action.py",
        "model/amounts.py",
        "model/node.py",
        "model/tier.py",
        "ports.py",
        "scheduler/events.py",
        "scheduler/limits.py",
    ),
)
LEDGER: Final = Compiled(
    "ledger",
    ("accounts", "book", "drafts", "leaf"),
    ("errors.py", "model/entry.py", "model/posting.py"),
)
DIRECTORY: Final = "_compiled"


def sum_of(package: Path, those: Compiled) -> str:
    """The sum of all that a room's compiled files are made of, and of this Python's ABI.

    Args:
        package: the directory of `buildnet`.
        those: which files.
    """
    told = hashlib.sha256((sys.implementation.cache_tag or "").encode())
    for name in (*those.files, *those.read):
        data = (package / name).read_bytes()
        told.update(f"\n{name} {len(data)}\n".encode())
        told.update(data)
    return told.hexdigest()[:32]


def directory_of(package: Path, those: Compiled) -> Path:
    """Where the modules are that were compiled of the sources as they stand; there need be none."""
    return package / those.room / DIRECTORY / sum_of(package, those)


def chosen(package: Path, those: Compiled) -> list[str]:
    """What a room is to put before its own directory on its path: where its compiled files are, if they are there."""
    directory = directory_of(package, those)
    return [str(directory)] if directory.is_dir() else []
