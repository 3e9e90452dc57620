"""`[scheduler]` of the configuration file: who gets how much, and how waiting is weighed. Checks; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from buildnet.errors import InvalidRequest
from buildnet.scheduler.limits import Limits, Quota, Quotas

WEIGHT_MAX: Final = 1000
SHARES_MAX: Final = 10_000
_COUNT_MAX: Final = 1_000_000
_CPUS_MAX: Final = 1_000_000
_SHARE_KEYS: Final = ("organisation", "user", "weight", "actions_max", "cpus_max", "queued_max")


def quotas_of(tables: Any, where: str) -> Quotas:
    """What `[[scheduler.share]]` says.

    Raises:
        InvalidRequest: a table names nobody, or somebody twice, or holds what is not known or cannot be.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidRequest(f"{where} must be tables, written [[scheduler.share]]", field=where)
    if len(tables) > SHARES_MAX:
        raise InvalidRequest(f"{where}: at most {SHARES_MAX} shares can be named", field=where)
    organisations: dict[str, Quota] = {}
    users: dict[str, Quota] = {}
    for table in tables:
        unknown = sorted(set(table) - set(_SHARE_KEYS))
        if unknown:
            raise InvalidRequest(f"{where} has no key {unknown[0]!r}; there are {', '.join(_SHARE_KEYS)}", field=where)
        named = [kind for kind in ("organisation", "user") if kind in table]
        if len(named) != 1 or not isinstance(table[named[0]], str):
            raise InvalidRequest(f"{where} needs either organisation or user, a name or '*' for everybody", field=where)
        known, name = (organisations if named[0] == "organisation" else users), table[named[0]]
        if name in known:
            raise InvalidRequest(f"{where} names the {named[0]} {name!r} twice", field=where)
        known[name] = _quota(table, f"{where} of {name!r}")
    return Quotas(organisations, users)


def _quota(table: Mapping[str, Any], where: str) -> Quota:
    cpus = table.get("cpus_max")
    return Quota(
        weight=_whole(table.get("weight", 1), f"{where}: weight", 1, WEIGHT_MAX),
        actions_max=_optional(table, "actions_max", where),
        cpu_milli_max=None if cpus is None else cpu_milli_of(cpus, f"{where}: cpus_max"),
        queued_max=_optional(table, "queued_max", where),
    )


def _optional(table: Mapping[str, Any], key: str, where: str) -> int | None:
    return None if key not in table else _whole(table[key], f"{where}: {key}", 0, _COUNT_MAX)


def _whole(value: Any, where: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(f"{where} must be a whole number from {least} to {most}, not {value!r}", field=where)
    return value


def cpu_milli_of(value: Any, where: str) -> int:
    """Thousandths of a processor, of a number of processors.

    Raises:
        InvalidRequest: it is no number, or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= _CPUS_MAX:
        raise InvalidRequest(f"{where} must be a number from 0.001 to {_CPUS_MAX}, not {value!r}", field=where)
    return round(value * 1000)


def limits_of(settings: Mapping[str, Any]) -> Limits:
    """The scheduler's limits, of settings by their keys in `[scheduler]`."""
    return Limits(**settings)
