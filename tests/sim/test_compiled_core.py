"""The compiled core decides as its sources do, and is never older than they are."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

import buildnet
from buildnet.scheduler import core
from buildnet.scheduler.compiled import DIRECTORY, MODULES, READ, directory_of, sum_of

PACKAGE = Path(buildnet.__file__).parent
SEEDS = 10

needs_compiled = pytest.mark.skipif(
    not directory_of(PACKAGE).is_dir(),
    reason="THE SCHEDULER'S CORE IS NOT COMPILED of these sources, and runs half as fast: make core",
)


def imported_of_buildnet(module: str) -> set[str]:
    """Files of ours that a module of the scheduler imports, as READ and MODULES name them."""
    tree = ast.parse((PACKAGE / "scheduler" / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("buildnet."):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                path = Path(*name.split(".")[1:]).with_suffix(".py")
                if (PACKAGE / path).is_file():
                    found.add(path.as_posix())
    return found


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The sources that a core is made of, and an empty directory of what was compiled of them."""
    package = tmp_path / "buildnet"
    for name in ("__init__.py", "scheduler/__init__.py", "scheduler/compiled.py", *READ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, package / name)
    for module in MODULES:
        shutil.copy(PACKAGE / f"scheduler/{module}.py", package / "scheduler")
    directory_of(package).mkdir(parents=True)
    return package


def path_of_scheduler(package: Path) -> list[str]:
    asked = "import buildnet.scheduler as s; print(*s.__path__, sep='\\n')"
    environment = {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    return told.stdout.split()


@needs_compiled
def test_what_setup_builds_is_compiled(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--interpreted"):
        pytest.skip("this run is of the sources")
    assert DIRECTORY in Path(core.__file__).parts


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


def test_who_edits_a_source_runs_what_was_edited(copied: Path) -> None:
    of_these = directory_of(copied)
    assert path_of_scheduler(copied) == [str(of_these), str(copied / "scheduler")]
    with (copied / "scheduler/queue.py").open("a") as source:
        source.write("\n")
    assert path_of_scheduler(copied) == [str(copied / "scheduler")]


@pytest.mark.parametrize("name", [*READ, *(f"scheduler/{module}.py" for module in MODULES)])
def test_every_source_counts(copied: Path, name: str) -> None:
    was = sum_of(copied)
    with (copied / name).open("a") as source:
        source.write("#")
    assert sum_of(copied) != was


def test_whatever_the_compiled_files_import_counts() -> None:
    of_ours = set().union(*(imported_of_buildnet(module) for module in MODULES))
    assert of_ours == {*READ, *(f"scheduler/{module}.py" for module in MODULES)} - {"scheduler/core.py"}
