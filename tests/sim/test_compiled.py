"""What is compiled does as its sources do, and is never older than they are."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

import buildnet
from buildnet.compiled import DIRECTORY, LEDGER, SCHEDULER, Compiled, directory_of, sum_of
from buildnet.ledger import accounts
from buildnet.scheduler import core

PACKAGE = Path(buildnet.__file__).parent
SEEDS = 10

ROOMS = (SCHEDULER, LEDGER)

each_room = pytest.mark.parametrize("those", ROOMS, ids=[those.room for those in ROOMS])
needs_compiled = pytest.mark.skipif(
    not all(directory_of(PACKAGE, those).is_dir() for those in ROOMS),
    reason="NOT ALL IS COMPILED of these sources: what is not runs half as fast: make core",
)


def imported_of_buildnet(file: str) -> set[str]:
    """Files of ours that one imports, below the package."""
    tree = ast.parse((PACKAGE / file).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("buildnet."):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                path = Path(*name.split(".")[1:]).with_suffix(".py")
                if (PACKAGE / path).is_file():
                    found.add(path.as_posix())
    return found


def copied(to: Path, those: Compiled) -> Path:
    """The sources that a room's compiled files are made of, and an empty directory of what was compiled of them."""
    package = to / "buildnet"
    for name in ("__init__.py", "compiled.py", f"{those.room}/__init__.py", *those.read, *those.files):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, package / name)
    directory_of(package, those).mkdir(parents=True)
    return package


def path_of(room: str, package: Path) -> list[str]:
    asked = f"import buildnet.{room} as s; print(*s.__path__, sep='\\n')"
    environment = {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    return told.stdout.split()


@needs_compiled
def test_what_setup_builds_is_compiled(request: pytest.FixtureRequest) -> None:
    is_compiled = [DIRECTORY in Path(module.__file__).parts for module in (core, accounts)]
    assert is_compiled == [not request.config.getoption("--interpreted")] * 2


@needs_compiled
def test_both_forms_decide_the_same() -> None:
    said = {}
    for form in ("compiled", "interpreted"):
        command = [sys.executable, "-m", "tests.sim.decisions", form, str(SEEDS)]
        told = subprocess.run(command, cwd=PACKAGE.parent.parent, capture_output=True, text=True, check=True)
        was, said[form] = told.stdout.split()
        assert was == form
    assert said["compiled"] == said["interpreted"]


@needs_compiled
def test_an_error_in_the_compiled_core_names_file_and_line() -> None:
    with pytest.raises(KeyError) as caught:
        core.SchedulerCore(core.Limits()).step("no event")  # type: ignore[arg-type]
    where = traceback.extract_tb(caught.tb)[-1]
    assert where.filename.endswith("buildnet/scheduler/core.py")
    assert where.lineno is not None
    assert "_HANDLERS[type(event)]" in (PACKAGE / "scheduler/core.py").read_text().splitlines()[where.lineno - 1]


@each_room
def test_who_edits_a_source_runs_what_was_edited(tmp_path: Path, those: Compiled) -> None:
    package = copied(tmp_path, those)
    of_these = directory_of(package, those)
    assert path_of(those.room, package) == [str(of_these), str(package / those.room)]
    with (package / those.files[-1]).open("a") as source:
        source.write("\n")
    assert path_of(those.room, package) == [str(package / those.room)]


@each_room
def test_every_source_counts(tmp_path: Path, those: Compiled) -> None:
    package = copied(tmp_path, those)
    sums = {sum_of(package, those)}
    for name in (*those.read, *those.files):
        with (package / name).open("a") as source:
            source.write("#")
        sums.add(sum_of(package, those))
    assert len(sums) == 1 + len(those.read) + len(those.files)


@each_room
def test_whatever_the_compiled_files_import_counts(those: Compiled) -> None:
    of_ours = set().union(*map(imported_of_buildnet, those.files))
    assert of_ours <= {*those.files, *those.read}
    assert set(those.read) <= of_ours
