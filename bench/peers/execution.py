"""Buildbarn, whole: storage, scheduler, worker and runner, each a process, as its own deployments divide them."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers.servers import (
    HERE,
    RETRY_S,
    START_TIMEOUT_S,
    CannotBeHadError,
    bb_storage,
    end,
    free_ports,
    listens,
    must_be_named,
)


@contextmanager
def buildbarn(slots: int, load: Path) -> Iterator[tuple[str, list[int]]]:
    """A Buildbarn with one worker; yields its URL and the ids of its processes, once it ran an action of
    the generator `load`. Its commands run in no sandbox.

    Raises:
        CannotBeHadError: a program is not here, or does not serve.
    """
    programs = {name: must_be_named(name.upper(), name) for name in ("bb_scheduler", "bb_runner", "bb_worker")}
    with tempfile.TemporaryDirectory(prefix="bench-buildbarn-", ignore_cleanup_errors=True) as scratch:
        state = Path(scratch)
        for directory in ("build", "cache", "storage"):
            (state / directory).mkdir()
        (storage, clients), (workers, _) = free_ports(), free_ports()
        url = f"grpc://127.0.0.1:{storage}"
        values = {
            "STORAGE_PORT": storage,
            "CLIENTS_PORT": clients,
            "WORKERS_PORT": workers,
            "STATE": state,
            "SLOTS": slots,
        }
        listening: list[tuple[list[str], Callable[[], bool]]] = [
            (bb_storage().command(storage, clients, state / "storage"), lambda: listens(storage)),
            ([programs["bb_scheduler"], _config(state, "bb_scheduler", values)], lambda: listens(clients)),
            ([programs["bb_runner"], _config(state, "bb_runner", values)], (state / "runner").exists),
            ([programs["bb_worker"], _config(state, "bb_worker", values)], lambda: _runs_one(url, load)),
        ]
        started: list[subprocess.Popen[bytes]] = []
        try:
            for command, ready in listening:
                log = state / f"{Path(command[0]).name}.log"
                with log.open("wb") as output:
                    started.append(subprocess.Popen(command, stdout=output, stderr=output))
                _wait_until(ready, started[-1], log)
            yield url, [process.pid for process in started]
        finally:
            for process in reversed(started):
                end(process)


def _config(state: Path, program: str, values: dict[str, object]) -> str:
    text = (HERE / f"{program}.jsonnet").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    config = state / f"{program}.jsonnet"
    config.write_text(text)
    return str(config)


def _runs_one(url: str, load: Path) -> bool:
    one = [str(load), "run", "--url", url, "--call", "execute", "--serial", "--calls", "1", "--warmup", "0"]
    return subprocess.run([*one, "--seconds", "5"], capture_output=True, check=False).returncode == 0


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > limit:
            raise CannotBeHadError(f"it did not start; it said: {log.read_text(errors='replace').strip()[-600:]}")
        time.sleep(RETRY_S)
