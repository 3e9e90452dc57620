"""What a command could do and what it wrote beside its outputs, for a person and for scripts. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from buildnet.cli import printable

if TYPE_CHECKING:
    from buildnet.client import EffectsTold


def facts(told: EffectsTold | None) -> dict[str, object] | None:
    """For scripts; None when the worker told nothing."""
    return None if told is None else {"assurance": told.assurance, **asdict(told)}


def lines(told: EffectsTold) -> Iterator[tuple[str, str]]:
    """Each thing that is to be said of them, with its name."""
    yield "isolation", f"{told.isolation}, {told.assurance}"
    yield "effects", ", ".join(f"{name}={level}" for name, level in told.effects.items())
    if told.trusted:
        yield "left to trust", ", ".join(told.trusted)
    if told.gpus:
        yield "gpus", ", ".join(map(str, told.gpus))
    if told.limit_hit:
        yield "limit hit", told.limit_hit
    if told.limits:
        yield "limits kept by", ", ".join(f"{name} {by}" for name, by in told.limits.items())
    if told.undeclared_write_count:
        yield "undeclared writes", written(told, shown_max=100)
    if told.undeclared_writes_partial:
        yield "undeclared writes", "not everything was looked at"


def written(told: EffectsTold, shown_max: int = 10) -> str:
    """What a command wrote beside its outputs, for a person."""
    paths = told.undeclared_writes[:shown_max]
    more = told.undeclared_write_count - len(paths)
    return printable.shown(", ".join(paths)) + (f" and {more} more" if more else "")
