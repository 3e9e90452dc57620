#!/usr/bin/env python3
"""Compile the scheduler's core with mypyc, into a directory named by what it is made of (scheduler/compiled.py).

    compile_core.py

Without a C compiler or Python's headers it says so and ends well: the core runs interpreted, half as fast. What was
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
from buildnet.scheduler.compiled import MODULES, directory_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src/buildnet"

# In a process of its own: mypyc ends the one that it meets an error in.
_BUILD = """
import sys
from setuptools import setup
from mypyc.build import mypycify

config, scratch, *sources = sys.argv[1:]
extensions = mypycify(
    ["--config-file", config, "--cache-dir", f"{scratch}/mypy", *sources],
    only_compile_paths=sources,
    group_name="buildnet.scheduler.core",
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


def compile_into(target: Path) -> None:
    """Compile all of MODULES; the directory is there whole or not at all."""
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        # Tracebacks name files as mypyc is told of them: as from the repository's `src`.
        sources = [f"buildnet/scheduler/{name}.py" for name in MODULES]
        command = [sys.executable, "-c", _BUILD, str(ROOT / "pyproject.toml"), scratch, *sources]
        subprocess.run(command, cwd=ROOT / "src", check=True)
        if directory_of(PACKAGE) != target:
            sys.exit("the scheduler's sources were changed while they were compiled; start again")
        Path(scratch, "lib/buildnet/scheduler").rename(target)


def main() -> int:
    """Compile, unless it is done or cannot be."""
    target = directory_of(PACKAGE)
    if not target.is_dir():
        if lack := lacking():
            print(f"{lack}, then make core: until then the scheduler's core runs interpreted, half as fast")
            return 0
        compile_into(target)
    for other in target.parent.iterdir():
        if other != target:
            shutil.rmtree(other)
    return 0


if __name__ == "__main__":
    sys.exit(main())
