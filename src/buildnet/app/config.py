"""What each role is told at its start, checked before anything opens. The only reader of the environment."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from buildnet.errors import InvalidRequest, NodeDown
from buildnet.model.action_spec import is_ours, is_text
from buildnet.model.credentials import NONE, Credentials
from buildnet.model.join_line import JoinLine, check_organisation
from buildnet.model.node import SLOTS_MAX
from buildnet.model.tier import tier_of
from buildnet.model.timeout import TIMEOUT_CEILING_S, TIMEOUT_MAX_S
from buildnet.sandbox.policy import SEARCH_PATH
from buildnet.sandbox.policy import Limits as ActionLimits

# Only what a controller is set up with: workers and every command read this file too, and these take as long to import
# as all else that a command needs.
if TYPE_CHECKING:
    from buildnet.app.admission import AccessConfig, TlsConfig
    from buildnet.ledger.cosignature import WitnessKey
    from buildnet.scheduler.limits import Limits

DEFAULT_LISTEN = "127.0.0.1:8980"
DURABILITIES = ("process", "power")
CACHE_SIZE_BYTES_MIN = 64 << 20
SECRET_BYTES_MAX = 64 << 10
WITNESSES_MAX = 16
IGNORED_PROPERTIES = ("container-image",)
IGNORED_PROPERTIES_MAX = 100
_SLOW_MS_MAX = 86_400_000
QUEUED_MAX = 10_000_000
WITNESS_INTERVAL_S_MAX = 86_400
ABSENT_AFTER_S_MAX = 86_400
CPU_LIMITS = ("share", "strict")
ACTION_LIMITS = {
    "memory_max": "memory_bytes",
    "pids_max": "pids_max",
    "disk_max": "disk_bytes",
    "log_max": "log_size_bytes_max",
    "cpu_limit": "cpu_is_capped",
}
"""Settings of a worker, and the limit of an action that each is."""
_OWN = frozenset(
    ("BUILDNET_TOKEN", "BUILDNET_TOKEN_FILE", "BUILDNET_CA_FILE", "BUILDNET_CERT_FILE", "BUILDNET_KEY_FILE")
)


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
        if not 0 <= self.slow_ms <= _SLOW_MS_MAX:
            message = f"slow calls take from 0 to {_SLOW_MS_MAX} ms, not {self.slow_ms}"
            raise InvalidRequest(message, field="slow_ms")


@dataclass(frozen=True, slots=True)
class WitnessConfig:
    """Who cosigns the ledger's checkpoints: the URL of its submission prefix, and its key (c2sp.org/tlog-witness)."""

    url: str
    key: WitnessKey

    @classmethod
    def parse(cls, url: str, key: str) -> WitnessConfig:
        """A witness as it is written.

        Raises:
            InvalidRequest: the URL is not HTTP's, or the key is not a witness's.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidRequest(f"a witness is reached over http:// or https://, not by {url!r}", field="witness")
        from buildnet.ledger.cosignature import WitnessKey

        return cls(url, WitnessKey.parse(key))


def _access() -> AccessConfig:
    from buildnet.app.admission import AccessConfig

    return AccessConfig()


def _limits() -> Limits:
    from buildnet.scheduler.limits import Limits

    return Limits()


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """One controller with its door and, unless told otherwise, one local worker.

    `durability` is what an acknowledged write survives: `process` the kill of any process, `power` also the loss of
    power (every acknowledgement waits for an fsync). `cache_size_bytes` and `cache_keep_s` are the store's own when
    None: what it holds at most, and for how long nothing is evicted that was used. `cpu_milli` is what the local worker
    offers, all that the machine gives when None. `tiers` are `[[cache.tier]]` of the
    configuration file as they are written there. `organisation` is whose it is, to nodes that dial by sessions.
    `toolchain` are paths that the local worker's actions may read besides the usual ones, `secrets` the files of those
    that they may name, `limits` what one of them may use; `strict`: they write nothing but what they declare, and so
    do actions on nodes of one of the `strict_tiers`. `witnesses` are asked at most
    every `witness_interval_s`. Platform properties called as in `ignored_properties` need no worker that offers them.
    `scheduler` is what bounds the queue and weighs who waits in it. `absent_after_s`: when what runs for clients that
    are gone is stopped. `timeout_max_s`: for how long an action may ask to run.
    """

    state: Path
    listen: str = DEFAULT_LISTEN
    organisation: str = "local"
    slots: int = 1
    cpu_milli: int | None = None
    worker: bool = True
    durability: str = "process"
    cache_size_bytes: int | None = None
    cache_keep_s: int | None = None
    toolchain: tuple[Path, ...] = ()
    strict: bool = False
    limits: ActionLimits = field(default_factory=ActionLimits)
    strict_tiers: tuple[str, ...] = ()
    secrets: Mapping[str, Path] = field(default_factory=dict)
    tiers: tuple[Mapping[str, object], ...] = ()
    witnesses: tuple[WitnessConfig, ...] = ()
    witness_interval_s: int = 10
    tls: TlsConfig | None = None
    access: AccessConfig = field(default_factory=_access)
    access_log: AccessLogConfig | None = None
    ignored_properties: tuple[str, ...] = IGNORED_PROPERTIES
    scheduler: Limits = field(default_factory=_limits)
    absent_after_s: int = 120
    timeout_max_s: float = TIMEOUT_MAX_S

    def __post_init__(self) -> None:
        if self.durability not in DURABILITIES:
            raise InvalidRequest(
                f"durability {self.durability!r} is not known; use {' or '.join(DURABILITIES)}",
                field="durability",
            )
        if not 1 <= self.scheduler.queue_length_max <= QUEUED_MAX:
            raise InvalidRequest(f"the queue holds 1 to {QUEUED_MAX} actions", field="scheduler.queued_max")
        if not 1 <= self.absent_after_s <= ABSENT_AFTER_S_MAX:
            raise InvalidRequest("clients may be absent for 1 s to 1 d", field="scheduler.absent_after")
        if not 1 <= self.timeout_max_s <= TIMEOUT_CEILING_S:
            raise InvalidRequest("actions may run for at most 1 s to 7 d", field="scheduler.timeout_max")
        _check_state(self.state)
        _check_slots(self.slots)
        _check_cache_size(self.cache_size_bytes)
        for tier in self.strict_tiers:
            tier_of(tier, "fleet.strict_tiers")
        if len(self.witnesses) > WITNESSES_MAX or len({one.key.key_id for one in self.witnesses}) < len(self.witnesses):
            raise InvalidRequest(f"name at most {WITNESSES_MAX} witnesses, each once", field="ledger.witnesses")
        if len(self.ignored_properties) > IGNORED_PROPERTIES_MAX:
            raise InvalidRequest(f"ignore at most {IGNORED_PROPERTIES_MAX} properties", field="ignored_properties")
        for name in self.ignored_properties:
            if not name or is_ours(name):
                raise InvalidRequest(
                    f"the property {name!r} decides what an action may do and cannot be ignored",
                    field="ignored_properties",
                )
        if not 1 <= self.witness_interval_s <= WITNESS_INTERVAL_S_MAX:
            raise InvalidRequest("witnesses are asked every 1 s to 1 d", field="ledger.witness_interval")
        check_organisation(self.organisation)
        from buildnet.app.admission import check

        check(self.listen, self.access, self.tls)


@dataclass(frozen=True, slots=True)
class WorkerRunConfig:
    """One worker that dials the controller at `url`, by sessions when there is a `line`. Its actions find the
    directories `hidden` empty, and may read `toolchain` besides the usual paths. `secrets` are files by secrets' names.
    `strict`: its actions write nothing but what they declare. `limits`: what one of them may use. `cpu_milli`: what
    all of them may ask for together; None for all that the machine gives.

    `cache_size_bytes`: blobs and input trees that it keeps, together; None for blobs as the disk allows.
    `cache_keep_s`: for how long no blob is evicted that was used; None for as long as the store does.
    """

    url: str
    state: Path
    slots: int = 1
    cpu_milli: int | None = None
    hidden: tuple[Path, ...] = ()
    toolchain: tuple[Path, ...] = ()
    strict: bool = False
    limits: ActionLimits = field(default_factory=ActionLimits)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    credentials: Credentials = NONE
    line: JoinLine | None = None
    cache_size_bytes: int | None = None
    cache_keep_s: int | None = None

    def __post_init__(self) -> None:
        _check_state(self.state)
        _check_slots(self.slots)
        _check_cache_size(self.cache_size_bytes)


def action_limits(settings: Mapping[str, object]) -> ActionLimits:
    """What one action may use, of settings by the names in `ACTION_LIMITS`; None leaves the default.

    Raises:
        InvalidRequest: nothing could be run within them.
    """
    given = {ACTION_LIMITS[name]: value for name, value in settings.items() if value is not None}
    if (cpu_limit := given.pop("cpu_is_capped", "share")) not in CPU_LIMITS:
        raise InvalidRequest(f"cpu_limit {cpu_limit!r} is not known; use {' or '.join(CPU_LIMITS)}", field="cpu_limit")
    return ActionLimits(**given, cpu_is_capped=cpu_limit == "strict")  # type: ignore[arg-type]


def _check_state(state: Path) -> None:
    # It is told in JSON, and crosses to the native half as text.
    if not is_text(str(state)):
        raise InvalidRequest(
            f"the state directory {str(state)!a} is not named in UTF-8; choose another with --state", field="state"
        )


def _check_cache_size(size_bytes: int | None) -> None:
    if size_bytes is not None and size_bytes < CACHE_SIZE_BYTES_MIN:
        raise InvalidRequest(
            f"a cache of {size_bytes} bytes is too small to be one; give it 64 MiB or more",
            field="cache.size",
        )


def _check_slots(slots: int) -> None:
    if not 1 <= slots <= SLOTS_MAX:
        raise InvalidRequest(f"slots must be from 1 to {SLOTS_MAX}, not {slots}", field="slots")


def offered_cpu_milli(asked_milli: int | None) -> int:
    """What a worker on this machine offers, in thousandths of processors: all that it may use, unless less is asked.

    Raises:
        InvalidRequest: more is asked.
    """
    from buildnet.model.amounts import decimal_of_milli
    from buildnet.worker.capacity import processors_milli

    granted_milli = processors_milli()
    if asked_milli is not None and asked_milli > granted_milli:
        raise InvalidRequest(
            f"a worker cannot offer {decimal_of_milli(asked_milli)} cpus: this machine, or the control group that the "
            f"worker is in, gives it {decimal_of_milli(granted_milli)}",
            field="cpus",
        )
    return granted_milli if asked_milli is None else asked_milli


def default_slots(cpu_milli: int) -> int:
    """One slot for each processor that is offered."""
    return max(1, min(SLOTS_MAX, cpu_milli // 1000))


def search_path() -> tuple[str, ...]:
    """Directories of programs: $PATH, and those in which an action looks unless it says otherwise."""
    own = os.environ.get("PATH", "").split(":")
    return tuple(dict.fromkeys(place for place in (*own, *SEARCH_PATH) if os.path.isabs(place)))


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


def token_of_environment() -> str:
    """$BUILDNET_TOKEN, else what the file $BUILDNET_TOKEN_FILE holds, else nothing."""
    if token := os.environ.get("BUILDNET_TOKEN"):
        return token.strip()
    if path := os.environ.get("BUILDNET_TOKEN_FILE"):
        return _read(Path(path), "token").decode(errors="replace").strip()
    return ""


def credentials_of(
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    token_file: Path | None = None,
) -> Credentials:
    """What options name, else what the environment does: BUILDNET_CA_FILE, BUILDNET_CERT_FILE, BUILDNET_KEY_FILE,
    BUILDNET_TOKEN, BUILDNET_TOKEN_FILE. A token's file is read again each time the token is wanted.

    Raises:
        InvalidRequest: a file cannot be read.
    """

    def pem(path: Path | None, name: str, what: str) -> bytes | None:
        path = path or (Path(value) if (value := os.environ.get(name)) else None)
        return None if path is None else _read(path, what)

    def token() -> str:
        if token_file is not None:
            return _read(token_file, "token").decode(errors="replace").strip()
        return token_of_environment()

    # Told now rather than in the middle of something.
    token()
    return Credentials(
        pem(ca_file, "BUILDNET_CA_FILE", "authority"),
        pem(cert_file, "BUILDNET_CERT_FILE", "certificate"),
        pem(key_file, "BUILDNET_KEY_FILE", "key"),
        token,
    )


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot read the {what} in {path}: {error.strerror}", field=f"{what}_file") from error
    if len(data) > SECRET_BYTES_MAX:
        raise InvalidRequest(f"the {what} in {path} is over {SECRET_BYTES_MAX} bytes", field=f"{what}_file")
    return data


def child_environment() -> Mapping[str, str]:
    """The environment for a worker process that this one starts, without credentials that are this one's own."""
    return {name: value for name, value in os.environ.items() if name not in _OWN}


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
    """$BUILDNET_LOG, default warning.

    Raises:
        InvalidRequest: it is no level.
    """
    level = os.environ.get("BUILDNET_LOG", "warning")
    if level.upper() not in logging.getLevelNamesMapping():
        raise InvalidRequest(
            f"BUILDNET_LOG is {level!r}; write debug, info, warning, error or critical", field="BUILDNET_LOG"
        )
    return level.upper()


def log_json() -> bool:
    """Logs are JSON unless a person watches."""
    return not sys.stderr.isatty()
