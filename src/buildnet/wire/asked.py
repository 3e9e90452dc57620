"""What an action asks to use, from its platform properties `resource:*`. What is not known there is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from buildnet.errors import InvalidRequest
from buildnet.model.amounts import AMOUNT_MAX, CPUS, DISK, GPUS, GPUS_MAX, MEMORY, NOTHING, RESOURCE_PREFIX, Amounts

_WHOLE: Final = {MEMORY: "memory_bytes", DISK: "disk_bytes", GPUS: "gpus"}
_CPUS_TEXT: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")
_WHOLE_TEXT: Final = re.compile(r"[0-9]{1,16}")


def asked_of(properties: Iterable[tuple[str, str]]) -> Amounts:
    """The amounts among the properties; what is not named is not asked.

    Raises:
        InvalidRequest: a name is not known or comes twice, or an amount is malformed or too large.
    """
    amounts: dict[str, int] = {}
    for name, value in properties:
        if not name.startswith(RESOURCE_PREFIX):
            continue
        field = "cpu_milli" if name == CPUS else _WHOLE.get(name)
        if field is None:
            known = ", ".join((CPUS, *_WHOLE))
            raise InvalidRequest(f"{name[:64]!a} is no amount; ask by {known}", field=name[:64])
        if field in amounts:
            raise InvalidRequest(f"{name} is asked twice, with different amounts; ask once", field=name)
        amounts[field] = _cpu_milli(value) if name == CPUS else _whole(name, value)
    return Amounts(**amounts) if amounts else NOTHING


def _cpu_milli(value: str) -> int:
    if _CPUS_TEXT.fullmatch(value) is None or not (milli := round(float(value) * 1000)):
        raise InvalidRequest(
            f"{CPUS} must be a number of processors above 0, at most three digits after the dot, as 2 or 0.5; "
            f"not {value[:32]!a}",
            field=CPUS,
        )
    return milli


def _whole(name: str, value: str) -> int:
    most = GPUS_MAX if name == GPUS else AMOUNT_MAX
    if _WHOLE_TEXT.fullmatch(value) is None or int(value) > most:
        raise InvalidRequest(f"{name} must be a whole number from 0 to {most}, not {value[:32]!a}", field=name)
    return int(value)
