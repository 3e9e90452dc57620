"""What each role is told at its start, checked before anything opens. The only reader of the environment."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from buildnet.errors import InvalidRequest, NodeDown

DEFAULT_LISTEN = "127.0.0.1:8980"
DURABILITIES = ("process", "power")


@dataclass(frozen=True, slots=True)
class AccessLogConfig:
    """Where calls are told: a file, or `-` for standard output.

    Told are every error, every call of `slow_ms` or more, and of the others the share `sample`.
    """

    path: str
    slow_ms: int = 500
    sample: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.sample <= 1:
            raise InvalidRequest(f"the sample must be from 0 to 1, not {self.sample}", field="access_log_sample")
        if self.slow_ms < 0:
            raise InvalidRequest(f"slow calls take 0 ms or more, not {self.slow_ms}", field="slow_ms")


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """One controller with its door and, unless told otherwise, one local worker.

    `durability` is what an acknowledged write survives: `process` the kill of any process, `power` also the loss of
    power (every acknowledgement waits for an fsync).
    """

    state: Path
    listen: str = DEFAULT_LISTEN
    slots: int = 1
    worker: bool = True
    durability: str = "process"
    access_log: AccessLogConfig | None = None

    def __post_init__(self) -> None:
        if self.durability not in DURABILITIES:
            raise InvalidRequest(
                f"durability {self.durability!r} is not known; use {' or '.join(DURABILITIES)}",
                field="durability",
            )
        _check_slots(self.slots)
        _check_loopback(self.listen)


@dataclass(frozen=True, slots=True)
class WorkerRunConfig:
    """One worker that dials the controller at `url`. Its actions find the directories `hidden` empty."""

    url: str
    state: Path
    slots: int = 1
    hidden: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        _check_slots(self.slots)


def _check_slots(slots: int) -> None:
    if not 1 <= slots <= 1024:
        raise InvalidRequest(f"slots must be from 1 to 1024, not {slots}", field="slots")


def _check_loopback(listen: str) -> None:
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise InvalidRequest(
            f"{listen!r} is not an address to listen on; write HOST:PORT, for example {DEFAULT_LISTEN}",
            field="listen",
        )
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise InvalidRequest(
            f"refusing to listen on {listen}: callers beyond this machine must authenticate, and authentication is "
            "not built yet; listen on 127.0.0.1 and reach it through an SSH tunnel",
            field="listen",
        )


def default_slots() -> int:
    """One slot for each processor this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


def default_state_dir() -> Path:
    """$BUILDNET_STATE, else $XDG_STATE_HOME/buildnet, else ~/.local/state/buildnet."""
    if explicit := os.environ.get("BUILDNET_STATE"):
        return Path(explicit)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "buildnet"


def server_url(explicit: str | None, state: Path | None) -> str:
    """Where the server is: the argument, BUILDNET_URL, or what the state directory's controller announced.

    Raises:
        NodeDown: none of them names one.
    """
    if explicit:
        return explicit
    if state is None and (url := os.environ.get("BUILDNET_URL")):
        return url
    directory = state or default_state_dir()
    try:
        announced = json.loads((directory / "controller.json").read_text())
        return str(announced["url"])
    except (OSError, ValueError, KeyError) as error:
        raise NodeDown(
            f"no running BuildNET found in {directory}; start one with: buildnet up, or name one with --url",
            url="",
        ) from error


def child_environment() -> Mapping[str, str]:
    """The environment for a worker process that this one starts."""
    return dict(os.environ)


def traces_wanted() -> bool:
    """Whether the OpenTelemetry variables name a collector and do not switch traces off.

    Raises:
        InvalidRequest: the collector is not reached over plain HTTP.

    Source: OpenTelemetry specification, Environment Variables and OTLP Exporter Configuration.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if endpoint := os.environ.get(name):
            if not endpoint.startswith("http://"):
                raise InvalidRequest(
                    f"{name} is {endpoint!r}, and traces are sent over plain HTTP; "
                    "run a collector beside the server and name it, for example http://127.0.0.1:4318",
                    field=name,
                )
            return True
    return False


def log_level() -> str:
    """$BUILDNET_LOG, default warning."""
    return os.environ.get("BUILDNET_LOG", "warning").upper()


def log_json() -> bool:
    """Logs are JSON unless a person watches."""
    return not sys.stderr.isatty()
