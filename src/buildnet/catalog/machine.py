"""Processor, memory and disks, as the kernel tells them. What it does not tell is left out, never guessed."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from buildnet.model.resource import ATTRIBUTES_MAX, Resource, Value, attributes_of, speakable
from buildnet.ports import Found

_FILE_BYTES_MAX: Final = 1 << 20
_DISKS_MAX: Final = 64
# Free space that rises and falls by less is no news.
_FREE_STEP_BYTES: Final = 1 << 30
_FEATURE: Final = re.compile(r"[a-z0-9_]{1,64}")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class Machine:
    """A ports.Discoverer: `cpu`, `memory` and one `disk` for each mounted block device and for the node's own state.

    Args:
        root: where /proc is looked for; another one in tests.
        state: the node's state directory, whose file system is told as disk `state`.
    """

    name = "machine"

    def __init__(self, state: Path, root: Path = Path("/")) -> None:
        self._root = root
        self._state = state

    def watched(self) -> Sequence[str]:
        """Nothing: none of this comes and goes by files."""
        return ()

    def discover(self) -> Found:
        """See ports.Discoverer."""
        return Found([*self._cpu(), *self._memory(), *self._disks()])

    def _cpu(self) -> Iterator[Resource]:
        facts: dict[str, Value] = {"arch": platform.machine(), "cores": len(os.sched_getaffinity(0))}
        for line in _text(self._root / "proc/cpuinfo").split("\n\n", 1)[0].splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name == "model name" and speakable(value):
                facts["model"] = value
            elif name in ("flags", "Features", "isa"):
                features = [word for word in value.lower().split() if _FEATURE.fullmatch(word)]
                facts = {**dict.fromkeys(features[: ATTRIBUTES_MAX - 8], 1), **facts}
        yield Resource("cpu", "cpu", attributes=tuple(sorted(facts.items())))

    def _memory(self) -> Iterator[Resource]:
        for line in _text(self._root / "proc/meminfo").splitlines():
            words = line.split()
            if words[:1] == ["MemTotal:"] and words[1].isdigit():
                yield Resource("memory", "memory", attributes=attributes_of(size_bytes=int(words[1]) << 10))
                return

    def _disks(self) -> Iterator[Resource]:
        seen = set()
        if (own := _disk("state", str(self._state), "")) is not None:
            yield own
        for line in _text(self._root / "proc/self/mountinfo").splitlines():
            # proc(5): ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS FIELDS... - TYPE SOURCE SUPER
            before, _, after = line.partition(" - ")
            words, rest = before.split(" "), after.split(" ")
            if len(words) < 6 or len(rest) < 2 or not rest[1].startswith("/dev/") or words[2] in seen:
                continue
            seen.add(words[2])
            place = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), words[4])
            if speakable(place) and (disk := _disk(place, place, rest[0])) is not None:
                yield disk
            if len(seen) >= _DISKS_MAX:
                return


def _disk(name: str, place: str, kind: str) -> Resource | None:
    try:
        status = os.statvfs(place)
    except OSError:
        # Unmounted since, or not for this user to see.
        return None
    free_bytes = status.f_bavail * status.f_frsize // _FREE_STEP_BYTES * _FREE_STEP_BYTES
    facts = attributes_of(size_bytes=status.f_blocks * status.f_frsize, free_bytes=free_bytes, type=kind or None)
    return Resource("disk", name, attributes=facts)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""
