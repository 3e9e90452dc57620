"""Fixtures that start the real thing on free loopback ports and always stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.interpreted import interpret

# A property holds however busy the machine is. BUILDNET_EXAMPLES=5000 looks for what a hundred examples do not find.
settings.register_profile("buildnet", deadline=None, max_examples=int(os.environ.get("BUILDNET_EXAMPLES", "100")))
settings.load_profile("buildnet")

# Who starts the tests in the background of a shell has them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

COMMAND = [sys.executable, "-m", "buildnet.cli.main"]
STOP_TIMEOUT_S = 20
# What tools told earlier workers, as a worker keeps it over its restarts: to ask every compiler of a machine anew would
# cost each worker of a session a second of processor time.
TOLD = "versions.json"
_told = b""


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is chosen for a whole run."""
    parser.addoption("--interpreted", action="store_true", help="take the scheduler's core as its sources stand")


def pytest_configure(config: pytest.Config) -> None:
    """Before the first test's module imports anything."""
    if config.getoption("--interpreted"):
        interpret()


def _environment(directory: Path) -> dict[str, str]:
    """Of a role: its state is nowhere else, and no version manager's scripts are among its tools: they start slowly."""
    path = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(place).name != "shims"]
    return {**os.environ, "PATH": os.pathsep.join(path), "BUILDNET_STATE": str(directory / "nowhere")}


@dataclass
class Role:
    """One process of ours: a controller or a worker."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    worker_state: Path | None

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def stop(self) -> int:
        """End it as a person would, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            if self.worker_state is not None:
                _remember(self.worker_state / TOLD)

    def kill(self) -> None:
        """End it as a power switch would."""
        self.process.kill()
        self.process.wait()


def _remember(told: Path) -> None:
    global _told
    with suppress(FileNotFoundError):
        _told = _told or told.read_bytes()


@dataclass
class House:
    """Starts controllers and workers below one directory."""

    directory: Path
    roles: list[Role] = field(default_factory=list)

    def _start(self, *arguments: str, worker_state: Path | None = None, within: Sequence[str] = ()) -> Role:
        if _told and worker_state and "--no-worker" not in arguments and not worker_state.exists():
            for place in (worker_state.parent, worker_state):
                place.mkdir(mode=0o700, exist_ok=True)
            (worker_state / TOLD).write_bytes(_told)
        process = subprocess.Popen(
            [*within, *COMMAND, *arguments, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(self.directory),
            start_new_session=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"{arguments} ended with {process.wait()} before it was ready")
        role = Role(process, json.loads(line), worker_state)
        self.roles.append(role)
        return role

    def up(
        self, *arguments: str, name: str = "controller", listen: str = "127.0.0.1:0", within: Sequence[str] = ()
    ) -> Role:
        """Start a controller and wait for its ready line. `within` runs the command."""
        state = self.directory / name
        told = ("--state", str(state), "--listen", listen, *arguments)
        return self._start("up", *told, worker_state=state / "worker", within=within)

    def join(self, url: str, *arguments: str, name: str = "worker", within: Sequence[str] = ()) -> Role:
        """Start a worker and wait until it has joined. `url` "" is where it was before; `within` runs the command."""
        where = [url] if url else []
        state = self.directory / name
        return self._start("join", *where, "--state", str(state), *arguments, worker_state=state, within=within)

    def close(self) -> None:
        """Stop all of them, workers first."""
        for role in reversed(self.roles):
            role.stop()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A place to start roles in."""
    house = House(tmp_path)
    try:
        yield house
    finally:
        house.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """One controller with one local worker, shared by the tests of a module."""
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield house.up("--slots", "2")
    finally:
        house.close()
