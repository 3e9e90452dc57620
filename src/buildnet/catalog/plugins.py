"""Every way of finding out what a node offers: those built in, and those that installed packages bring.

A package names, in the entry point group `buildnet.discoverers`, a callable that takes this Setting and returns a
ports.Discoverer. One that cannot be loaded costs only itself.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from buildnet.catalog import probe
from buildnet.catalog.endpoints import FILE, Endpoints
from buildnet.catalog.gpus import Gpus
from buildnet.catalog.machine import Machine
from buildnet.catalog.tools import PathTools
from buildnet.catalog.versions import Versions
from buildnet.ports import Discoverer

log = logging.getLogger(__name__)

GROUP: Final = "buildnet.discoverers"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a discoverer may use: the node's own state directory, and the directories of programs."""

    state: Path
    search_path: tuple[str, ...]


def built_in(setting: Setting) -> list[Discoverer]:
    """The ways that need nothing installed."""
    joined = ":".join(setting.search_path)

    def nvidia_smi(arguments: tuple[str, ...]) -> bytes | None:
        found = shutil.which("nvidia-smi", path=joined)
        # A driver that was idle takes seconds to say what it has.
        return None if found is None else probe.ask(found, arguments, joined, timeout_s=10.0)

    return [
        PathTools(setting.search_path, Versions(setting.state / "versions.json", joined)),
        Machine(setting.state),
        Gpus(lambda arguments: nvidia_smi(tuple(arguments))),
        Endpoints(setting.state / FILE),
    ]


def installed(setting: Setting, points: list[EntryPoint] | None = None) -> list[Discoverer]:
    """Those of installed packages, by name."""
    found: list[Discoverer] = []
    for point in sorted(entry_points(group=GROUP) if points is None else points, key=lambda point: point.name):
        try:
            discoverer = point.load()(setting)
        except Exception as error:  # noqa: BLE001 - a stranger's code must not keep a worker from its work
            log.warning("the discoverer %r cannot be used: %s", point.name, error)
            continue
        found.append(discoverer)
    return found
