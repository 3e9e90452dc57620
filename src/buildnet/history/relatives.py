"""Which earlier operation is the nearest relative of another, and why that one was no hit. Pure.

Nearest is, in this order: the same target, mnemonic and outputs; the same outputs; the same target and mnemonic, or the
same command; the same program, run with mostly the same words. Of several, the one with the most alike command, then
the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from buildnet.history.difference import similarity
from buildnet.model.history import Parts, PastOperation, Reason

# Of the arguments after the program. Below it two runs of one program have nothing to do with one another: every
# `sh -c` would be related to every other.
SIMILAR_MIN: Final = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """An earlier operation and its parts, None when its messages are not kept."""

    past: PastOperation
    parts: Parts | None


@dataclass(frozen=True, slots=True)
class Relative:
    """The nearest earlier operation, and in what it is related."""

    past: PastOperation
    parts: Parts
    relation: str


def nearest(subject: PastOperation, parts: Parts, candidates: Iterable[Candidate]) -> Relative | None:
    """The nearest of `candidates`, which are of other actions; None when none is near enough."""
    found: list[tuple[tuple[float, ...], Relative]] = []
    for candidate in candidates:
        if candidate.parts is None or candidate.past.key == subject.key:
            continue
        alike = similarity(parts, candidate.parts)
        rank, relation = _rank(subject, parts, candidate.past, candidate.parts)
        if rank or _same_words(parts, candidate.parts) >= SIMILAR_MIN:
            order = (rank, alike, candidate.past.number)
            found.append((order, Relative(candidate.past, candidate.parts, relation)))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _same_words(one: Parts, other: Parts) -> float:
    return similarity(Parts(one.arguments[1:]), Parts(other.arguments[1:]))


def _rank(subject: PastOperation, parts: Parts, past: PastOperation, other: Parts) -> tuple[int, str]:
    mine, theirs = subject.requested, past.requested
    target = bool(mine.target) and (mine.target, mine.mnemonic) == (theirs.target, theirs.mnemonic)
    outputs = bool(parts.outputs) and sorted(parts.outputs) == sorted(other.outputs)
    if target and outputs:
        return 3, "the same target, mnemonic and outputs"
    if outputs:
        return 2, "the same outputs"
    if target:
        return 1, "the same target and mnemonic"
    if subject.command is not None and subject.command == past.command:
        return 1, "the same command"
    return 0, "the same program, with mostly the same words"


def reason_of(
    subject: PastOperation,
    parts: Parts | None,
    again: PastOperation | None,
    shared: bool,
    related: Callable[[], bool],
) -> Reason:
    """Why the subject was not answered from the cache.

    Args:
        subject: the operation.
        parts: its action's parts, None when they are not to be had.
        again: the newest earlier operation of the same action, one whose result might be kept before all others.
        shared: whether an earlier operation was told the very result that the subject was told.
        related: whether there is an earlier relative of another action; asked when nothing else explains it.
    """
    if subject.cached:
        return "cached"
    if parts is not None and parts.do_not_cache:
        return "not_cacheable"
    # What clients write shares an entry with whatever else came in that moment.
    if shared and not subject.by_client:
        return "joined"
    if subject.lookup_skipped:
        return "lookup_skipped"
    if again is None:
        return "changed" if related() else "never_seen"
    if not again.succeeded:
        return "failed_before"
    if not again.kept:
        return "not_kept"
    return "written_again" if subject.by_client else "evicted"
