"""`buildnet up --config FILE`: each option by a key of a TOML file. Refuses what it does not know, and says what was
meant.

Every mistake is told with the file, the key and the reason before anything opens. The tiers of a cache are handed on as
they are written: who builds them checks them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from buildnet.app.admission import AccessConfig, CertificateGrant, TlsConfig
from buildnet.app.config import (
    ACTION_LIMITS,
    AccessLogConfig,
    ControllerConfig,
    WitnessConfig,
    action_limits,
    default_slots,
    default_state_dir,
    offered_cpu_milli,
)
from buildnet.app.scheduling import cpu_milli_of, limits_of, quotas_of
from buildnet.errors import InvalidRequest
from buildnet.model.quantity import duration_s_of, size_bytes_of

_FILE_BYTES_MAX: Final = 1 << 20

Parse = Callable[[Any, str, Path], Any]
"""Takes a value, where it stands and the directory of the file; returns the setting."""


def _is(kind: type, words: str) -> Parse:
    def parse(value: Any, where: str, base: Path) -> Any:
        # TOML's true is no number, though Python's is.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidRequest(f"{where} must be {words}, not {value!r}", field=where)
        return value

    return parse


_text = _is(str, "a text")
_flag = _is(bool, "true or false")
_number = _is(int, "a number")


def _path(value: Any, where: str, base: Path) -> Path:
    return base / Path(_text(value, where, base)).expanduser()


def _log(value: Any, where: str, base: Path) -> str:
    text = str(_text(value, where, base))
    return text if text == "-" else str(_path(text, where, base))


def _share(value: Any, where: str, base: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{where} must be a number from 0 to 1, not {value!r}", field=where)
    return float(value)


def _texts(value: Any, where: str, base: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidRequest(f"{where} must be a list of texts, not {value!r}", field=where)
    return tuple(value)


def _paths(value: Any, where: str, base: Path) -> tuple[Path, ...]:
    return tuple(_path(item, where, base) for item in _texts(value, where, base))


def _files(value: Any, where: str, base: Path) -> dict[str, Path]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be a table of files by name, not {value!r}", field=where)
    return {name: _path(path, f"{where}.{name}", base) for name, path in value.items()}


def _quantity(of: Callable[[str, str], int]) -> Parse:
    def parse(value: Any, where: str, base: Path) -> int:
        text = _text(value, where, base)
        try:
            return of(text, where)
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: {error.message}", field=where) from error

    return parse


def _tables(value: Any, where: str, base: Path) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRequest(f"{where} must be tables, written [[{where.strip('[]').replace('] ', '.')}]]", field=where)
    return tuple(value)


def _certificates(value: Any, where: str, base: Path) -> tuple[CertificateGrant, ...]:
    grants = []
    for number, table in enumerate(_tables(value, where, base), 1):
        at = f"[[access.certificate]] {number}:"
        known: dict[str, Parse] = {"name": _text, "scopes": _texts, "instances": _texts, "namespace": _text}
        settings = _section(table, known, at, base)
        if "name" not in settings:
            raise InvalidRequest(f"{at} lacks its name", field="access.certificate")
        try:
            grants.append(CertificateGrant(**settings))
        except InvalidRequest as error:
            raise InvalidRequest(f"{at} {error.message}", field="access.certificate") from error
    return tuple(grants)


def _witnesses(value: Any, where: str, base: Path) -> tuple[WitnessConfig, ...]:
    witnesses = []
    for number, table in enumerate(_tables(value, where, base), 1):
        at = f"[[ledger.witnesses]] {number}:"
        settings = _section(table, {"url": _text, "key": _text}, at, base)
        if len(settings) != 2:
            raise InvalidRequest(f"{at} needs url and key", field="ledger.witnesses")
        try:
            witnesses.append(WitnessConfig.parse(**settings))
        except InvalidRequest as error:
            raise InvalidRequest(f"{at} {error.message}", field="ledger.witnesses") from error
    return tuple(witnesses)


KEYS: Final[Mapping[str, Mapping[str, Parse]]] = {
    "controller": {
        "state": _path,
        "listen": _text,
        "organisation": _text,
        "slots": _number,
        "worker": _flag,
        "ignored_properties": _texts,
    },
    "cache": {
        "size": _quantity(size_bytes_of),
        "keep": _quantity(duration_s_of),
        "durability": _text,
        "tier": _tables,
    },
    "worker": {
        "cpus": lambda value, where, base: cpu_milli_of(value, where),
        "toolchain_paths": _paths,
        "secrets": _files,
        "strict": _flag,
        "memory_max": _quantity(size_bytes_of),
        "pids_max": _number,
        "disk_max": _quantity(size_bytes_of),
        "log_max": _quantity(size_bytes_of),
        "cpu_limit": _text,
    },
    "fleet": {"strict_tiers": _texts},
    "tls": {"certificate": _path, "key": _path, "client_ca": _path},
    "access": {
        "anonymous": _text,
        "trusted_keys": _paths,
        "insecure_plaintext": _flag,
        "certificate_scopes": _texts,
        "certificate": _certificates,
    },
    "ledger": {"witnesses": _witnesses, "witness_interval": _quantity(duration_s_of)},
    "scheduler": {
        "default_cpus": lambda value, where, base: cpu_milli_of(value, where),
        "speculate": _flag,
        "hold_after": _quantity(duration_s_of),
        "absent_after": _quantity(duration_s_of),
        "timeout_max": _quantity(duration_s_of),
        "queued_max": _number,
        "share": lambda value, where, base: quotas_of(value, where),
    },
    "log": {"access": _log, "slow_ms": _number, "sample": _share},
}
"""What may stand in the file, by section and key."""

Settings = dict[str, Any]
"""Settings by `section.key`."""


def read(path: Path) -> Settings:
    """The settings of a file.

    Raises:
        InvalidRequest: it cannot be read, is no TOML, or holds what is not known or has the wrong type.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}", field="config") from error
    if len(data) > _FILE_BYTES_MAX:
        raise InvalidRequest(f"{path} is over {_FILE_BYTES_MAX} bytes", field="config")
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not TOML: {error}", field="config") from error
    settings: Settings = {}
    base = path.absolute().parent
    try:
        for section, table in document.items():
            if section not in KEYS:
                raise InvalidRequest(f"[{section}] is not a section; {_meant(section, KEYS)}", field=section)
            if not isinstance(table, dict):
                raise InvalidRequest(f"{section} must be a section, written [{section}]", field=section)
            found = _section(table, KEYS[section], f"[{section}]", base)
            settings |= {f"{section}.{key}": value for key, value in found.items()}
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error.message}", **error.fields) from error
    return settings


def _section(table: Mapping[str, Any], known: Mapping[str, Parse], where: str, base: Path) -> dict[str, Any]:
    found = {}
    for key, value in table.items():
        if key not in known:
            raise InvalidRequest(f"{where} has no key {key!r}; {_meant(key, known)}", field=key)
        found[key] = known[key](value, f"{where} {key}", base)
    return found


def _meant(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def configured(path: Path | None, overrides: Settings) -> ControllerConfig:
    """The configuration of a controller: what was said on the command line, else in the file, else the default.

    Raises:
        InvalidRequest: a setting cannot be, or not beside another.
    """
    settings = {} if path is None else read(path)
    settings |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return _assembled(settings)
    except InvalidRequest as error:
        if path is None:
            raise
        raise InvalidRequest(f"{path}: {error.message}", **error.fields) from error


def _assembled(settings: Settings) -> ControllerConfig:
    tls = None
    certificate, key, client_ca = (settings.get(f"tls.{name}") for name in ("certificate", "key", "client_ca"))
    if certificate and key:
        tls = TlsConfig(certificate, key, client_ca)
    elif certificate or key or client_ca:
        raise InvalidRequest("TLS needs both a certificate and its key: --tls-cert and --tls-key", field="tls")
    access = {key.removeprefix("access."): value for key, value in settings.items() if key.startswith("access.")}
    if "certificate" in access:
        access["certificates"] = access.pop("certificate")
    log = {key.removeprefix("log."): value for key, value in settings.items() if key.startswith("log.")}
    # Checked without a log too: who mistyped a share hears of it now, not on the day that the log is switched on.
    told = AccessLogConfig(log.pop("access", "-"), **log)
    access_log = told if "log.access" in settings else None
    named = {
        "controller.listen": "listen",
        "controller.organisation": "organisation",
        "controller.slots": "slots",
        "controller.worker": "worker",
        "controller.ignored_properties": "ignored_properties",
        "cache.durability": "durability",
        "cache.size": "cache_size_bytes",
        "cache.keep": "cache_keep_s",
        "cache.tier": "tiers",
        "worker.toolchain_paths": "toolchain",
        "worker.secrets": "secrets",
        "worker.strict": "strict",
        "fleet.strict_tiers": "strict_tiers",
        "ledger.witnesses": "witnesses",
        "ledger.witness_interval": "witness_interval_s",
        "scheduler.absent_after": "absent_after_s",
        "scheduler.timeout_max": "timeout_max_s",
    }
    scheduling = {
        "scheduler.default_cpus": "default_cpu_milli",
        "scheduler.speculate": "speculate",
        "scheduler.hold_after": "hold_after_s",
        "scheduler.queued_max": "queue_length_max",
        "scheduler.share": "quotas",
    }
    given = {field: settings[key] for key, field in named.items() if key in settings}
    asked_milli = settings.get("worker.cpus")
    offered_milli = offered_cpu_milli(asked_milli)
    given["cpu_milli"] = asked_milli
    given.setdefault("slots", default_slots(offered_milli))
    given["limits"] = action_limits({name: settings.get(f"worker.{name}") for name in ACTION_LIMITS})
    given["scheduler"] = limits_of({field: settings[key] for key, field in scheduling.items() if key in settings})
    state = settings.get("controller.state") or default_state_dir()
    return ControllerConfig(
        state=state.absolute(), tls=tls, access=AccessConfig(**access), access_log=access_log, **given
    )
