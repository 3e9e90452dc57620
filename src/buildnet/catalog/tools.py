"""Every executable along a search path, the first of each name, as a shell finds them. Runs only tools that it knows.

Names that a terminal would obey or that are not UTF-8 are not told, nor what is over the limits; both are counted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from buildnet.catalog.known import Probe, languages, probe_of
from buildnet.catalog.versions import FileKey, Versions
from buildnet.model.resource import TEXT_BYTES_MAX, Resource, attributes_of, speakable
from buildnet.ports import Found

TOOLS_MAX: Final = 15_000
ENTRIES_MAX: Final = 50_000
"""Of one directory."""
DIRECTORIES_MAX: Final = 64
_DOCKER_SOCKET: Final = "/var/run/docker.sock"


@dataclass(slots=True)
class _Listing:
    """Executables of one directory."""

    tools: dict[str, tuple[str, FileKey]] = field(default_factory=dict)
    left_out: int = 0
    cut: bool = False


class PathTools:
    """A ports.Discoverer: tools, the toolchains among them, and runtimes of containers and wasm."""

    name = "tools"

    def __init__(
        self,
        search_path: Sequence[str],
        versions: Versions,
        *,
        tools_max: int = TOOLS_MAX,
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        self._search_path = search_path
        self._versions = versions
        self._tools_max = tools_max
        self._entries_max = entries_max
        self._directories: list[str] = []

    def watched(self) -> Sequence[str]:
        """See ports.Discoverer."""
        return self._directories

    def discover(self) -> Found:
        """See ports.Discoverer."""
        self._directories = list(_distinct(self._search_path))[:DIRECTORIES_MAX]
        tools: dict[str, tuple[str, FileKey]] = {}
        left_out = 0
        notes = []
        for directory in self._directories:
            listing = self._list(directory)
            left_out += listing.left_out
            if listing.cut:
                notes.append(f"of {directory!r} only {self._entries_max} entries were looked at")
            for name, where in listing.tools.items():
                tools.setdefault(name, where)
        if len(tools) > self._tools_max:
            notes.append(f"{len(tools)} tools are on the path; the first {self._tools_max} by name are announced")
            left_out += len(tools) - self._tools_max
            # Those that have versions are the ones that somebody may ask for.
            names = sorted(tools, key=lambda name: (probe_of(name) is None, name))[: self._tools_max]
            tools = {name: tools[name] for name in names}
        known = {name: probe for name in tools if (probe := probe_of(name)) is not None}
        versions = self._versions.of({name: (*tools[name], probe) for name, probe in known.items()})
        return Found(list(_resources(tools, known, versions)), left_out, notes)

    def _list(self, directory: str) -> _Listing:
        listing = _Listing()
        try:
            entries = os.scandir(directory)
        except OSError:
            # A search path names what is not there on most machines.
            return listing
        with entries:
            for count, entry in enumerate(entries):
                if count >= self._entries_max:
                    listing.cut = True
                    break
                self._look(entry, listing)
        return listing

    def _look(self, entry: os.DirEntry[str], listing: _Listing) -> None:
        try:
            status = entry.stat()
        except OSError:
            # A link to nothing, or gone since.
            return
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111 or not os.access(entry.path, os.X_OK):
            return
        path = entry.path
        # Bytes that are not UTF-8 become surrogates here (PEP 383), which cannot be printed.
        if not speakable(path, TEXT_BYTES_MAX):
            listing.left_out += 1
            return
        listing.tools[entry.name] = (path, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))


def _distinct(directories: Sequence[str]) -> Iterator[str]:
    """Absolute directories, each once: /bin is a link to /usr/bin on most machines."""
    seen = set()
    for directory in directories:
        if os.path.isabs(directory) and (real := os.path.realpath(directory)) not in seen:
            seen.add(real)
            yield directory


def _resources(
    tools: dict[str, tuple[str, FileKey]], known: dict[str, Probe], versions: dict[str, str]
) -> Iterator[Resource]:
    for name, (path, _) in tools.items():
        yield Resource("tool", name, versions.get(name, ""), (("path", path),))
    for name, probe in known.items():
        if probe.runtime:
            path = tools[name][0]
            usable = os.access(_DOCKER_SOCKET, os.W_OK) if name == "docker" else None
            facts = attributes_of(path=path, type=probe.runtime, usable=None if usable is None else int(usable))
            yield Resource("runtime", name, versions.get(name, ""), facts)
    for language, names in languages().items():
        # The first that works stands for its language; each is a tool of its own besides.
        for name in names:
            if name in tools and name in versions:
                yield Resource("toolchain", language, versions[name], attributes_of(tool=name, path=tools[name][0]))
                break
