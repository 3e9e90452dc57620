"""The project: two versions of Lua, 64 translation units and a host for each, described as actions."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
VERSIONS = ("lua-5.4.9", "lua-5.5.1")
FLAGS = ("-O2", "-std=gnu99", "-DLUA_USE_LINUX", "-I.")
PLATFORM = {"OSFamily": "linux"}
VARIABLES = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True)
class Compilation:
    """One translation unit: `gcc -c` over its source and every header beside it."""

    version: str
    source: Path
    headers: tuple[Path, ...]

    @property
    def object_name(self) -> str:
        """The output's name in the action."""
        return f"{self.source.stem}.o"

    @property
    def arguments(self) -> list[str]:
        """The command."""
        return ["gcc", *FLAGS, "-c", self.source.name, "-o", self.object_name]

    @property
    def inputs(self) -> dict[str, Path]:
        """The input tree: name in the action to local file."""
        return {path.name: path for path in (self.source, *self.headers)}


def fetch(directory: Path) -> Path:
    """Bring the pinned sources with cargo, which checks their hash; return the crate's directory.

    Raises:
        subprocess.CalledProcessError: cargo cannot bring them; its output says why.
    """
    source = directory / "source"
    shutil.copytree(HERE / "source", source)
    vendored = directory / "vendored"
    subprocess.run(
        ["cargo", "vendor", "--locked", "--quiet", "--versioned-dirs", str(vendored)],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return next(vendored.glob("lua-src-*"))


def compilations(crate: Path, version: str) -> list[Compilation]:
    """Every translation unit of one version, the host among them."""
    root = crate / version
    headers = tuple(sorted(root.glob("*.h")))
    sources = [*sorted(root.glob("*.c")), HERE / "host.c"]
    return [Compilation(version, source, headers) for source in sources]
