"""What every node offers, each distinct resource held once, and what has changed since a revision. Pure.

Most nodes offer the same tools: a node is an array of numbers, and a resource knows its nodes as the bits of one
integer, so that a constraint is met by a few unions and intersections. The journal of changes is bounded: who asks for
what it has forgotten starts anew from a snapshot.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from buildnet.catalog.constraint import Constraint, Term, parse, reasons
from buildnet.model.resource import Key, Resource

JOURNAL_KEYS_MAX: Final = 200_000
_ANSWERS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Applied:
    """What one announcement changed, in counts."""

    announced: int
    withdrawn: int


@dataclass(frozen=True, slots=True)
class NodeChange:
    """What a reader must apply: `whole` means that `present` is all that the node offers now."""

    node: str
    whole: bool
    present: tuple[Resource, ...]
    gone: tuple[Key, ...] = ()


@dataclass(slots=True)
class _Node:
    """A node's bit, what it offers by number, and how much it left out."""

    bit: int
    held: array[int] = field(default_factory=lambda: array("I"))
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class _Step:
    """What one revision touched; None is the whole node."""

    node: str
    keys: frozenset[Key] | None


class Catalog:
    """Resources of many nodes. Not thread-safe: one loop owns it."""

    def __init__(self, *, journal_keys_max: int = JOURNAL_KEYS_MAX) -> None:
        self.revision = 0
        self._journal: deque[_Step] = deque()
        self._journal_keys = 0
        self._journal_keys_max = journal_keys_max
        self._nodes: dict[str, _Node] = {}
        self._of_bit: dict[int, str] = {}
        self._free_bits: list[int] = []
        self._numbers: dict[Resource, int] = {}
        self._resources: list[Resource | None] = []
        self._masks: list[int] = []
        self._free: list[int] = []
        self._by_name: dict[str, dict[int, None]] = {}
        self._by_kind: dict[str, dict[int, None]] = {}
        self._answers: OrderedDict[tuple[str, ...], int] = OrderedDict()

    # Changing.

    def replace(self, node: str, present: Iterable[Resource], *, left_out: int = 0) -> Applied:
        """The node offers this and nothing else. Of several with one key the last counts."""
        held = self._of(node)
        before = self._held(held)
        after = {resource.key: resource for resource in present}
        gone = [key for key in before if key not in after]
        new = [resource for key, resource in after.items() if before.get(key) != resource]
        held.left_out = left_out
        return self._change(node, before, new, gone, whole=not before)

    def update(self, node: str, present: Iterable[Resource], gone: Iterable[Key], *, left_out: int = 0) -> Applied:
        """The node offers more, or other, or less, than before."""
        held = self._of(node)
        before = self._held(held)
        new = [resource for resource in present if before.get(resource.key) != resource]
        held.left_out = left_out
        return self._change(node, before, new, [key for key in gone if key in before], whole=False)

    def withdraw(self, node: str) -> int:
        """The node offers nothing any more, and is not known. Returns how many resources went."""
        held = self._nodes.pop(node, None)
        if held is None:
            return 0
        for number in held.held:
            self._release(number, held.bit)
        del self._of_bit[held.bit]
        self._free_bits.append(held.bit)
        self._note(node, None)
        return len(held.held)

    def _of(self, node: str) -> _Node:
        held = self._nodes.get(node)
        if held is None:
            bit = self._free_bits.pop() if self._free_bits else len(self._nodes)
            held = self._nodes[node] = _Node(bit)
            self._of_bit[bit] = node
        return held

    def _held(self, node: _Node) -> dict[Key, Resource]:
        return {resource.key: resource for resource in self._of_numbers(node.held)}

    def _of_numbers(self, numbers: Iterable[int]) -> Iterator[Resource]:
        for number in numbers:
            resource = self._resources[number]
            assert resource is not None
            yield resource

    def _change(
        self, node: str, before: dict[Key, Resource], new: list[Resource], gone: list[Key], *, whole: bool
    ) -> Applied:
        held = self._nodes[node]
        left = {before[key] for key in gone} | {before[r.key] for r in new if r.key in before}
        leaving = {self._numbers[resource] for resource in left}
        kept = array("I", (number for number in held.held if number not in leaving)) if leaving else held.held
        for number in leaving:
            self._release(number, held.bit)
        kept.extend(self._take(resource, held.bit) for resource in new)
        held.held = kept
        if new or gone or whole:
            self._note(node, None if whole else frozenset((*gone, *(resource.key for resource in new))))
        return Applied(len(new), len(gone))

    def _take(self, resource: Resource, bit: int) -> int:
        number = self._numbers.get(resource)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._resources[number], self._masks[number] = resource, 0
            else:
                number = len(self._resources)
                self._resources.append(resource)
                self._masks.append(0)
            self._numbers[resource] = number
            self._by_name.setdefault(resource.name, {})[number] = None
            self._by_kind.setdefault(resource.kind, {})[number] = None
        self._masks[number] |= 1 << bit
        return number

    def _release(self, number: int, bit: int) -> None:
        self._masks[number] &= ~(1 << bit)
        if self._masks[number]:
            return
        resource = self._resources[number]
        assert resource is not None
        del self._numbers[resource]
        for index, name in ((self._by_name, resource.name), (self._by_kind, resource.kind)):
            del index[name][number]
            if not index[name]:
                del index[name]
        self._resources[number] = None
        self._free.append(number)

    def _note(self, node: str, keys: frozenset[Key] | None) -> None:
        self.revision += 1
        self._answers.clear()
        self._journal.append(_Step(node, keys))
        self._journal_keys += 1 + len(keys or ())
        while self._journal_keys > self._journal_keys_max and len(self._journal) > 1:
            self._journal_keys -= 1 + len(self._journal.popleft().keys or ())

    # Reading.

    def nodes(self) -> list[str]:
        """Nodes that announced, in order."""
        return sorted(self._nodes)

    def knows(self, node: str) -> bool:
        """Whether the node has announced."""
        return node in self._nodes

    def count(self, node: str) -> int:
        """How many resources a node offers."""
        held = self._nodes.get(node)
        return len(held.held) if held is not None else 0

    def left_out(self, node: str) -> int:
        """How many of its resources a node did not announce."""
        held = self._nodes.get(node)
        return held.left_out if held is not None else 0

    def resources(self, node: str, kind: str = "") -> list[Resource]:
        """What a node offers, by kind and name; of one kind when it is given. Empty for a node that is not known."""
        held = self._nodes.get(node)
        found = self._of_numbers(held.held) if held is not None else ()
        return sorted((r for r in found if not kind or r.kind == kind), key=lambda r: r.key)

    def snapshot(self) -> Iterator[NodeChange]:
        """Every node as it is when it is reached; apply what changed after the revision of the start as well."""
        for node in self.nodes():
            if node in self._nodes:
                yield NodeChange(node, True, tuple(self.resources(node)))

    def reaches_back_to(self, revision: int) -> bool:
        """Whether every change after `revision` is still known."""
        return self.revision - len(self._journal) <= revision <= self.revision

    def changes(self, after: int) -> Iterator[NodeChange]:
        """What became of everything that changed after a revision that the journal reaches back to: one change a node.

        Nodes are told as they are when they are reached.
        """
        touched: dict[str, set[Key] | None] = {}
        for step in islice(reversed(self._journal), self.revision - after):
            known = touched.setdefault(step.node, set())
            if step.keys is None:
                touched[step.node] = None
            elif known is not None:
                known |= step.keys
        for node, keys in touched.items():
            held = self._nodes.get(node)
            if keys is None or held is None:
                yield NodeChange(node, True, tuple(self.resources(node)))
                continue
            now = self._held(held)
            present = tuple(now[key] for key in sorted(keys) if key in now)
            yield NodeChange(node, False, present, tuple(key for key in sorted(keys) if key not in now))

    # Matching.

    def meets(self, node: str, texts: tuple[str, ...]) -> bool:
        """Whether a node meets every constraint of `texts`.

        Raises:
            InvalidRequest: one is not a constraint.
        """
        held = self._nodes.get(node)
        return held is not None and bool(self._answer(texts) >> held.bit & 1)

    def meeting(self, texts: tuple[str, ...]) -> list[str]:
        """The nodes that meet every constraint, in order.

        Raises:
            InvalidRequest: one is not a constraint.
        """
        mask = self._answer(texts)
        found = []
        while mask:
            lowest = mask & -mask
            found.append(self._of_bit[lowest.bit_length() - 1])
            mask ^= lowest
        return sorted(found)

    def explain(self, node: str, constraint: Constraint) -> tuple[str, ...]:
        """Why a node that announced does not meet a constraint; none when it does."""
        bit = self._nodes[node].bit

        def concerned(term: Term) -> Iterator[Resource]:
            return (r for number, r in self._concerned(term) if self._masks[number] >> bit & 1)

        return reasons(constraint, concerned)

    def _answer(self, texts: tuple[str, ...]) -> int:
        mask = self._answers.get(texts)
        if mask is not None:
            self._answers.move_to_end(texts)
            return mask
        mask = 0
        for bit in self._of_bit:
            mask |= 1 << bit
        for term in parse(texts):
            mask &= self._term(term)
        self._answers[texts] = mask
        if len(self._answers) > _ANSWERS_MAX:
            self._answers.popitem(last=False)
        return mask

    def _term(self, term: Term) -> int:
        mask = 0
        for number, resource in self._concerned(term):
            if self._masks[number] & ~mask and not term.flaw(resource):
                mask |= self._masks[number]
        return mask

    def _concerned(self, term: Term) -> Iterator[tuple[int, Resource]]:
        index, name = (self._by_name, term.name) if term.name else (self._by_kind, term.kind)
        for number in index.get(name, ()):
            resource = self._resources[number]
            assert resource is not None
            if term.concerns(resource):
                yield number, resource
