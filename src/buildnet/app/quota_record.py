"""What the configuration allows whom is in the ledger: at a start whose quotas are others than the last on record.

A file beside the ledger names the entry that told them last; that entry is believed, not the file. It decides nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from buildnet.errors import NotFound
from buildnet.files import replace_file
from buildnet.model.entry import Entry, Value
from buildnet.scheduler.limits import Limits, Quota

KIND: Final = "quota.configured"
# An entry is at most 8 KiB (docs/design/ledger.md); this leaves room for its other fields.
_LINES_BYTES_MAX: Final = 7 << 10
_PLAIN: Final = re.compile(r"[!-~]{1,64}")


class ReadLedger(Protocol):
    """A ledger that is appended to and read."""

    async def append(self, entries: list[Entry]) -> int:
        """See ports.Ledger."""
        ...

    async def get(self, index: int) -> bytes:
        """The body of an entry; NotFound when there is none."""
        ...


def configured(limits: Limits) -> dict[str, Value]:
    """Facts of the limits: a line for each share, as many as fit, and a hash of all rules.

    A line is `organisation|user NAME weight=N [actions_max=N] [cpu_milli_max=N] [queued_max=N]`; a name that is long or
    holds blanks is told by its own hash.
    """
    lines = [_line("organisation", name, quota) for name, quota in sorted(limits.quotas.organisations.items())]
    lines += [_line("user", name, quota) for name, quota in sorted(limits.quotas.users.items())]
    shares: list[str] = []
    room = _LINES_BYTES_MAX
    for line in lines:
        # Quotes and a comma; a backslash or a quote in a name takes two bytes.
        room -= len(line) + line.count('"') + line.count("\\") + 3
        if room < 0:
            break
        shares.append(line)
    facts: dict[str, Value] = {"queued_max": limits.queue_length_max, "rules_sha256": rules_sha256(limits)}
    if shares:
        facts["shares"] = shares
    if len(shares) < len(lines):
        facts["left_out"] = len(lines) - len(shares)
    return facts


def rules_sha256(limits: Limits) -> str:
    """A hash of all that bounds and weighs what waits."""
    canonical = json.dumps(asdict(limits), sort_keys=True, separators=(",", ":"), default=_of_mapping)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _of_mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a rule of type {type(value).__name__} has no form")


def _line(kind: str, name: str, quota: Quota) -> str:
    told = name if _PLAIN.fullmatch(name) else f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    bounds = ((key, value) for key, value in asdict(quota).items() if value is not None)
    return " ".join((kind, told, *(f"{key}={value}" for key, value in bounds)))


async def tell(directory: Path, ledger: ReadLedger, limits: Limits, now_unix_ms: int) -> None:
    """Write the entry, unless the last one says the same; where nothing was ever set, nothing is written.

    Args:
        directory: where the file is kept that names the last entry.
        ledger: where the entries are.
        limits: what is in force from now on.
        now_unix_ms: the time of the entry.
    """
    path = directory / "quotas.json"
    last = await _last(path, ledger)
    if last is None and limits == Limits():
        return
    facts = configured(limits)
    if last is not None and last.get("rules_sha256") == facts["rules_sha256"]:
        return
    index = await ledger.append([Entry(KIND, now_unix_ms, facts)])
    await asyncio.to_thread(_keep, path, index)


def _keep(path: Path, index: int) -> None:
    path.parent.mkdir(exist_ok=True)
    replace_file(path, json.dumps({"entry": index}) + "\n")


async def _last(path: Path, ledger: ReadLedger) -> Mapping[str, Any] | None:
    """The entry that the file names, if it is one of these: a file of another ledger, or none, costs one entry more."""
    try:
        index = json.loads(await asyncio.to_thread(path.read_bytes))["entry"]
        fields: dict[str, Any] = json.loads(await ledger.get(index)) if isinstance(index, int) else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError, NotFound):
        return None
    return fields if fields.get("kind") == KIND else None
