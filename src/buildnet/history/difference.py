"""In what two actions differ, named part by part. Pure; empty if and only if they are one action.

What no part tells (an order, a field that this version does not know) is named as the encoding: two digests are never
said to be of equal actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import chain, repeat, zip_longest
from typing import Final

from buildnet.history.secrets import TEXT_CHARACTERS_MAX, shown_argument, shown_value
from buildnet.history.trees import Load, bounded, tree_changes
from buildnet.model.action import CONSTRAINT
from buildnet.model.history import Change, Difference, Part, Parts

CHANGES_MAX: Final = 1000
# Beyond this product of lengths an alignment takes too long, and places are compared one by one.
_ALIGNED_MAX: Final = 250_000
_EFFECT: Final = "effect:"


def difference(before: Parts, after: Parts, load: Load, *, same_action: bool) -> Difference:
    """Everything in which one action differs from an earlier one.

    Args:
        before: the earlier action.
        after: the later one.
        load: reads a directory of either input tree, None when it is not kept.
        same_action: whether both have one digest; then there is no difference.
    """
    if same_action:
        return Difference()
    found = chain(part_changes(before, after), _input_changes(before, after, load))
    changes, left_out = bounded(found, CHANGES_MAX)
    if not changes:
        note = "the same parts in another order" if before != after else "a field that is not compared"
        changes = [Change("encoding", note=note)]
    return Difference(tuple(map(_cut, changes)), left_out)


def part_changes(before: Parts, after: Parts) -> Iterator[Change]:
    """What differs in the Command and the Action, without the input tree."""
    yield from _argument_changes(before.arguments, after.arguments)
    yield from _pair_changes(before.variables, after.variables, lambda _: "variable")
    yield from _pair_changes(before.properties, after.properties, _part_of_property)
    yield from _pair_changes(_outputs(before), _outputs(after), lambda _: "output")
    yield from _changed("working_directory", before.working_directory or ".", after.working_directory or ".")
    yield from _changed("timeout", _seconds(before.timeout_ns), _seconds(after.timeout_ns))
    yield from _changed("do_not_cache", str(before.do_not_cache).lower(), str(after.do_not_cache).lower())
    yield from _changed("salt", before.salt.hex() or None, after.salt.hex() or None)
    yield from _changed("output_format", before.output_format or None, after.output_format or None)
    yield from _list_changes("output_format", before.output_properties, after.output_properties)


def similarity(one: Parts, other: Parts) -> float:
    """How much of two commands is the same, from 0 to 1: equal arguments, variables, properties and outputs of all."""
    mine, theirs = _items(one), _items(other)
    total = (mine | theirs).total()
    return (mine & theirs).total() / total if total else 1.0


def _items(parts: Parts) -> Counter[tuple[str, ...]]:
    return Counter(
        [
            *(("argument", value) for value in parts.arguments),
            *(("variable", *pair) for pair in parts.variables),
            *(("property", *pair) for pair in parts.properties),
            *(("output", path) for path in parts.outputs),
        ]
    )


def _input_changes(before: Parts, after: Parts, load: Load) -> Iterator[Change]:
    if before.root is not None and after.root is not None:
        yield from tree_changes(before.root, after.root, load)
    elif before.root != after.root:
        one, other = (root.text if root is not None else None for root in (before.root, after.root))
        yield Change("input", ".", one, other)


def _outputs(parts: Parts) -> list[tuple[str, str]]:
    return list(zip(parts.outputs, parts.output_kinds or repeat("any kind"), strict=False))


def _changed(part: Part, before: str | None, after: str | None) -> Iterator[Change]:
    if before != after:
        yield Change(part, "", before, after)


def _seconds(timeout_ns: int | None) -> str | None:
    return None if timeout_ns is None else f"{timeout_ns / 1e9:.9f}".rstrip("0").rstrip(".") + " s"


def _part_of_property(name: str) -> Part:
    if name == CONSTRAINT:
        return "constraint"
    return "effect" if name.startswith(_EFFECT) else "property"


Pairs = Sequence[tuple[str, str]]


def _pair_changes(before: Pairs, after: Pairs, part_of: Callable[[str], Part]) -> Iterator[Change]:
    mine, theirs = _by_name(before), _by_name(after)
    for name in sorted(mine.keys() | theirs.keys()):
        # A name may have several values, whose order says nothing.
        gone = (mine.get(name, Counter()) - theirs.get(name, Counter())).elements()
        come = (theirs.get(name, Counter()) - mine.get(name, Counter())).elements()
        for old, new in zip_longest(sorted(gone), sorted(come)):
            yield Change(part_of(name), name, _value(name, old), _value(name, new))


def _value(name: str, value: str | None) -> str | None:
    return None if value is None else shown_value(name, value)


def _by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for name, value in pairs:
        found.setdefault(name, Counter())[value] += 1
    return found


def _list_changes(part: Part, before: Sequence[str], after: Sequence[str]) -> Iterator[Change]:
    mine, theirs = Counter(before), Counter(after)
    for value in sorted((mine | theirs).keys()):
        if mine[value] != theirs[value]:
            note = "another number of times" if mine[value] and theirs[value] else ""
            yield Change(part, value, value if mine[value] else None, value if theirs[value] else None, note)


def _argument_changes(before: Sequence[str], after: Sequence[str]) -> Iterator[Change]:
    if before == after:
        return
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    mine, theirs = before[start : len(before) - end], after[start : len(after) - end]
    for one, other in _aligned(mine, theirs):
        old = None if one is None else shown_argument(before, start + one)
        new = None if other is None else shown_argument(after, start + other)
        place = other if other is not None else one
        assert place is not None
        yield Change("argument", str(start + place), old, new)


def _aligned(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[int | None, int | None]]:
    """Places that differ; the first of a pair is None for what was added, the second for what was removed."""
    if len(before) * len(after) > _ALIGNED_MAX:
        for place in range(max(len(before), len(after))):
            one = place if place < len(before) else None
            other = place if place < len(after) else None
            if one is None or other is None or before[one] != after[other]:
                yield one, other
        return
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind != "equal":
            yield from zip_longest(range(i1, i2), range(j1, j2))


def _cut(change: Change) -> Change:
    # A path may be long too; values have been cut where they were hidden.
    return replace(change, name=_short(change.name))


def _short(text: str) -> str:
    if len(text) <= TEXT_CHARACTERS_MAX:
        return text
    return f"{text[:TEXT_CHARACTERS_MAX]}… ({len(text) - TEXT_CHARACTERS_MAX} more characters)"
