"""What stands behind the store, from the `[[cache.tier]]` tables of the configuration, checked before anything opens.

A table names where a credential is, never the credential; a credential shows itself to the engine alone. Nothing here
dials: the native half does, and says which tier does not answer.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import urlsplit

from buildnet.app.config import child_environment
from buildnet.errors import InvalidRequest

Kind = Literal["s3", "redis", "reapi"]
Write = Literal["through", "back", "never"]

TIERS_MAX: Final = 16
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_SIZE_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": _MIB, "GiB": _GIB, "TiB": 1 << 40}
_TIME_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_CREDENTIAL_BYTES_MAX: Final = 64 << 10

_COMMON: Final = frozenset({
    "name", "kind", "address", "read", "write", "blob_size_max", "timeout", "prefix", "required", "queue_entries_max",
    "queue_size_max",
})  # fmt: skip
_CREDENTIALS: Final[dict[Kind, tuple[str, ...]]] = {
    "s3": ("access_key_id", "secret_access_key", "session_token"),
    "redis": ("password",),
    "reapi": ("token",),
}
_OWN: Final[dict[Kind, frozenset[str]]] = {
    "s3": frozenset({"bucket", "region"}),
    "redis": frozenset({"username", "ttl"}),
    "reapi": frozenset({"ca_file", "certificate_file", "key_file"}),
}
_SCHEMES: Final[dict[Kind, tuple[str, ...]]] = {
    "s3": ("http", "https"),
    "redis": ("redis", "rediss"),
    "reapi": ("grpc", "grpcs"),
}


class Secret:
    """A credential that no message, log or traceback shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret"

    def reveal(self) -> str | bytes:
        """The credential, for the engine."""
        return self._value


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier, as the native half takes it. Sizes in bytes, times in seconds.

    `options` holds what only its kind has. Defaults are in docs/how-to/tiers.md.
    """

    name: str
    kind: Kind
    address: str | None
    read: bool
    write: Write
    blob_size_bytes_max: int
    timeout_s: float
    prefix: str
    required: bool
    queue_entries_max: int
    queue_bytes_max: int
    options: Mapping[str, str | int | bytes | Secret] = field(default_factory=dict)

    def native(self) -> dict[str, Any]:
        """The table that `buildnet._native.Tiers` reads, credentials revealed."""
        table: dict[str, Any] = {
            name: value.reveal() if isinstance(value, Secret) else value for name, value in self.options.items()
        }
        for name in self.__slots__:
            if name != "options":
                table[name] = getattr(self, name)
        return table


def parse_tiers(
    tables: Sequence[Mapping[str, object]], environment: Mapping[str, str] | None = None
) -> tuple[TierConfig, ...]:
    """Check `[[cache.tier]]` tables, in order; credentials come from `environment` or the files that they name.

    Raises:
        InvalidRequest: a key is unknown or missing, a value is malformed, or a credential cannot be read. Its `field`
            is `cache.tier.NUMBER.KEY`.
    """
    if len(tables) > TIERS_MAX:
        raise InvalidRequest(f"{len(tables)} tiers are more than the {TIERS_MAX} that are allowed", field="cache.tier")
    environment = child_environment() if environment is None else environment
    tiers = tuple(_Table(number, table, environment).tier() for number, table in enumerate(tables))
    names = [tier.name for tier in tiers]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"two tiers are called {name!r}; give each a name of its own", field="cache.tier")
    return tiers


class _Table:
    """One table being read."""

    def __init__(self, number: int, table: Mapping[str, object], environment: Mapping[str, str]) -> None:
        self._number = number
        self._table = table
        self._environment = environment

    def tier(self) -> TierConfig:
        kind = cast(Kind, self._choice("kind", get_args(Kind)))
        self._check_keys(kind)
        name = self._text("name")
        if not _NAME.fullmatch(name):
            raise self._refused("name", f"{name!r} is no name: small letters, digits and dashes, at most 40")
        hot = kind == "redis"
        return TierConfig(
            name=name,
            kind=kind,
            address=self._address(kind),
            read=self._flag("read", True),
            write=cast(Write, self._choice("write", get_args(Write), "back")),
            blob_size_bytes_max=self._size("blob_size_max", _MIB if hot else 64 * _GIB),
            timeout_s=self._time("timeout", 1.0 if hot else 5.0),
            prefix=self._text("prefix", "" if kind == "reapi" else "buildnet"),
            required=self._flag("required", False),
            queue_entries_max=self._count("queue_entries_max", 65_536),
            queue_bytes_max=self._size("queue_size_max", 8 * _GIB),
            options=self._options(kind),
        )

    def _refused(self, key: str, text: str) -> InvalidRequest:
        return InvalidRequest(f"cache.tier {self._number}: {text}", field=f"cache.tier.{self._number}.{key}")

    def _check_keys(self, kind: Kind) -> None:
        credentials = _CREDENTIALS[kind]
        known = _COMMON | _OWN[kind] | {f"{name}_{where}" for name in credentials for where in ("env", "file")}
        for key in self._table:
            if key in known:
                continue
            if key in credentials:
                raise self._refused(
                    key,
                    f"{key} may not stand in the configuration; name where it is with {key}_env or {key}_file",
                )
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            raise self._refused(key, f"{key} is not a key of a tier of kind {kind}{hint}")

    def _options(self, kind: Kind) -> dict[str, str | int | bytes | Secret]:
        options: dict[str, str | int | bytes | Secret] = {}
        for name in _CREDENTIALS[kind]:
            if (secret := self._credential(name)) is not None:
                options[name] = secret
        match kind:
            case "s3":
                options["bucket"] = self._text("bucket")
                options["region"] = self._text("region", "us-east-1")
                if ("access_key_id" in options) != ("secret_access_key" in options):
                    raise self._refused("access_key_id_env", "access_key_id and secret_access_key go together")
            case "redis":
                if "username" in self._table:
                    options["username"] = self._text("username")
                if "ttl" in self._table:
                    options["ttl_s"] = max(1, math.ceil(self._time("ttl", 1.0)))
            case "reapi":
                for key, name in (("ca_file", "authorities"), ("certificate_file", "certificate")):
                    if key in self._table:
                        options[name] = self._file(key)
                if ("key_file" in self._table) != ("certificate" in options):
                    raise self._refused("key_file", "certificate_file and key_file go together")
                if "key_file" in self._table:
                    options["key"] = Secret(self._decoded("key_file", self._file("key_file")))
        return options

    def _address(self, kind: Kind) -> str | None:
        if "address" not in self._table and kind == "s3":
            return None
        address = self._text("address")
        schemes = _SCHEMES[kind]
        try:
            parts = urlsplit(address)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise self._refused("address", f"{address!r} is not an address: {error}") from error
        if parts.scheme not in schemes or not host:
            forms = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
            raise self._refused("address", f"the address of a tier of kind {kind} is {forms}")
        if parts.username or parts.password:
            # Not repeated in the message: it holds a credential.
            names = ", ".join(f"{name}_env" for name in _CREDENTIALS[kind])
            raise self._refused("address", f"the address may hold no credential; name where it is: {names}")
        return address

    def _credential(self, name: str) -> Secret | None:
        variable, path = f"{name}_env", f"{name}_file"
        if variable in self._table and path in self._table:
            raise self._refused(variable, f"{variable} and {path} are both given; one is enough")
        if variable in self._table:
            value = self._environment.get(self._text(variable), "")
            if not value:
                raise self._refused(variable, f"the variable {self._text(variable)} is not set or empty")
            return Secret(value)
        if path in self._table:
            value = self._decoded(path, self._file(path)).strip()
            if not value:
                raise self._refused(path, f"the file {self._text(path)} is empty")
            return Secret(value)
        return None

    def _file(self, key: str) -> bytes:
        path = Path(self._text(key))
        try:
            with path.open("rb") as file:
                data = file.read(_CREDENTIAL_BYTES_MAX + 1)
        except OSError as error:
            raise self._refused(key, f"{path} cannot be read: {error.strerror}") from error
        if len(data) > _CREDENTIAL_BYTES_MAX:
            raise self._refused(key, f"{path} is over {_CREDENTIAL_BYTES_MAX} bytes, which no credential is")
        return data

    def _decoded(self, key: str, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._refused(key, f"{self._text(key)} is not text") from error

    def _text(self, key: str, default: str | None = None) -> str:
        value = self._table.get(key, default)
        if value is None:
            raise self._refused(key, f"{key} is missing")
        if not isinstance(value, str) or (not value and default is None):
            raise self._refused(key, f"{key} must be a text")
        return value

    def _choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        value = self._text(key, default)
        if value not in choices:
            raise self._refused(key, f"{key} = {value!r} is not known; it is one of {', '.join(choices)}")
        return value

    def _flag(self, key: str, default: bool) -> bool:
        value = self._table.get(key, default)
        if not isinstance(value, bool):
            raise self._refused(key, f"{key} must be true or false")
        return value

    def _count(self, key: str, default: int) -> int:
        value = self._table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000_000:
            raise self._refused(key, f"{key} must be a number from 1 to 10000000")
        return value

    def _size(self, key: str, default: int) -> int:
        return round(self._quantity(key, default, _SIZE_UNITS, 'a size such as "16 MiB"', 1, 1 << 50))

    def _time(self, key: str, default: float) -> float:
        return self._quantity(key, default, _TIME_UNITS, 'a time such as "2 s"', 0.001, 366 * 86400)

    def _quantity(
        self, key: str, default: float, units: Mapping[str, float], form: str, least: float, most: float
    ) -> float:
        value = self._table.get(key, default)
        number: float | None = None
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
        elif isinstance(value, str) and (found := _QUANTITY.fullmatch(value)) and found[2] in units:
            number = float(found[1]) * units[found[2]]
        if number is None or not least <= number <= most:
            raise self._refused(key, f"{key} must be {form}, not {value!r}")
        return number
