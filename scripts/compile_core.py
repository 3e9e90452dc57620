#!/usr/bin/env python3
"""Compile each room's pure core with mypyc, into a directory named by what it is made of (buildnet/compiled.py).

    compile_core.py

Without a C compiler or Python's headers it says so and ends well: they run interpreted, half as fast. What was
made of these sources already is left; what was made of others is removed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
from buildnet.compiled import LEDGER, SCHEDULER, Compiled, directory_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src/buildnet"

# In a process of its own: mypyc ends the one that it meets an error in.
_BUILD = """
import sys
from setuptools import setup
from mypyc.build import mypycify

config, scratch, group, *sources = sys.argv[1:]
extensions = mypycify(
    ["--config-file", config, "--cache-dir", f"{scratch}/mypy", *sources],
    only_compile_paths=sources,
    group_name=group,
    target_dir=f"{scratch}/c",
    opt_level="2",
    debug_level="0",
)
built = ["--build-lib", f"{scratch}/lib", "--build-temp", f"{scratch}/o"]
setup(name="core", ext_modules=extensions, script_args=["--quiet", "build_ext", *built])
"""


def lacking() -> str:
    """What is missing for compiling, in words; empty when nothing is."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"the C compiler {compiler} is not here; install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"Python's headers are not here; install python{version}-dev"
    return ""


def compile_into(target: Path, those: Compiled) -> None:
    """Compile all of a room's; the directory is there whole or not at all."""
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        # Tracebacks name files as mypyc is told of them: as from the repository's `src`.
        sources = [f"buildnet/{name}" for name in those.files]
        group = f"buildnet.{those.room}.core"
        command = [sys.executable, "-c", _BUILD, str(ROOT / "pyproject.toml"), scratch, group, *sources]
        subprocess.run(command, cwd=ROOT / "src", check=True)
        if directory_of(PACKAGE, those) != target:
            sys.exit(f"the {those.room}'s sources were changed while they were compiled; start again")
        Path(scratch, "lib/buildnet", those.room).rename(target)


def main() -> int:
    """Compile each that is not, where that can be."""
    for those in (SCHEDULER, LEDGER):
        target = directory_of(PACKAGE, those)
        if not target.is_dir():
            if lack := lacking():
                print(f"{lack}, then make core: until then the cores run interpreted, half as fast")
                return 0
            compile_into(target, those)
        for other in target.parent.iterdir():
            if other != target:
                shutil.rmtree(other)
    return 0


if __name__ == "__main__":
    sys.exit(main())
