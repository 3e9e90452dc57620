"""A worker keeps one name for as long as it keeps its state, and offers only what it found. Grants
itself no trust.

The names of properties are those of the REAPI platform lexicon (`OSFamily`, `ISA`), beside plain
ones for people. A requirement is met only by an equal name and value, so spellings in common use
are offered side by side. What is not known here, `container-image` above all, is not offered. Nor
is a tier: trust is the controller's to give.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from buildnet._native import SigningKey
from buildnet.access.keys import load_or_create_at
from buildnet.errors import StateCorrupt
from buildnet.files import replace_file
from buildnet.model.action import Properties
from buildnet.sandbox.policy import SEARCH_PATH, Means, offered_effects

_ID = re.compile(r"[0-9a-f]{32}")
_TOOLS = ("gcc", "g++", "cc", "clang", "make", "python3", "java", "node", "git")
_ISA = {
    "x86_64": ("x86-64", "x86_64", "amd64"),
    "aarch64": ("arm-a64", "aarch64", "arm64"),
    "riscv64": ("rv64g", "riscv64"),
}


class Randomness(Protocol):
    """Randomness as an argument; `random.SystemRandom` is one."""

    def random(self) -> float:
        """A float from 0 up to, not including, 1."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """An integer of k random bits."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """`node` stays over restarts; `boot` is new with each start, so that a controller can tell that
    leases are gone.
    """

    node: str
    boot: str


def identity_of(state: Path, rng: Randomness) -> Identity:
    """Read the node's id from `state`, or choose and keep one.

    Raises:
        StateCorrupt: the id file is there and is not one.
    """
    path = state / "id"
    boot = f"{rng.getrandbits(128):032x}"
    try:
        node = path.read_text().strip()
    except FileNotFoundError:
        node = f"{rng.getrandbits(128):032x}"
        replace_file(path, f"{node}\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StateCorrupt(f"cannot read {path}: {error}; restore it or delete it", path=str(path)) from error
    if _ID.fullmatch(node) is None:
        raise StateCorrupt(
            f"{path} does not hold a worker's id; restore it, or delete it to let the worker take a new one",
            path=str(path),
        )
    return Identity(node, boot)


def node_key(state: Path) -> SigningKey:
    """The node's own key, made at its first start with mode 0600; it is never logged and never leaves its file.

    Raises:
        StateCorrupt: the file cannot be read or does not hold a key.
    """
    return load_or_create_at(state / "keys" / "node.key")


def offered(means: Means, extra: Iterable[tuple[str, str]] = ()) -> Properties:
    """Everything that this machine offers to requirements."""
    found = platform_properties(platform.system(), platform.machine())
    tools = {("tool", tool) for tool in tools_in(SEARCH_PATH)}
    own = {("isolation", means.isolation)}
    return found | tools | own | offered_effects(means) | frozenset(extra)


def platform_properties(system: str, machine: str) -> Properties:
    """Operating system and instruction set in every spelling in use."""
    family = system.lower()
    properties = {("os", family), ("OSFamily", family), ("OSFamily", system)}
    for name in _ISA.get(machine, (machine,)):
        properties |= {("ISA", name), ("arch", name), ("cpu", name), ("Arch", name)}
    return frozenset(properties)


def tools_in(directories: Iterable[str]) -> list[str]:
    """Which of a few common tools are there, by name."""
    searched = list(directories)
    return [tool for tool in _TOOLS if any(os.access(f"{d}/{tool}", os.X_OK) for d in searched)]
