"""A graph of actions: each is asked for once, when all whose outputs it takes have ended well, and ends exactly once.

Events are methods and return effects. No I/O, no clock, no randomness; what is repeated or late changes nothing.

What it holds is bounded by the graph: two numbers and a state for each action. At most `in_flight_max` are asked for at
once, so that a graph of any width fits into the scheduler's queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from buildnet.errors import InvalidRequest, TooLarge
from buildnet.model.action_spec import ActionSpec, OutputInput

ACTIONS_MAX: Final = 20_000
REFERENCES_MAX: Final = 1_000_000
NAME_BYTES_MAX: Final = 128
IN_FLIGHT_MAX: Final = 1000

State = Literal["waiting", "ready", "asked", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for this action's result now: all that it depends on is done."""

    name: str


@dataclass(frozen=True, slots=True)
class Fail:
    """This action will not be asked for, because of what became of another."""

    name: str
    because: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """This action ends unasked: the graph was cancelled."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel what was asked for; its end is still to come."""

    name: str


@dataclass(frozen=True, slots=True)
class Release:
    """All that take this action's outputs have ended, or none does: nobody needs them any more."""

    name: str


Effect = Ask | Fail | Withdraw | Stop | Release


@dataclass(slots=True)
class _Node:
    needs: tuple[str, ...]
    state: State = "waiting"
    unmet: int = 0
    # How many that take its outputs have not ended.
    takers: int = 0


class GraphCore:
    """One graph, from acceptance until all its actions have ended."""

    def __init__(self, needs: Mapping[str, Sequence[str]], in_flight_max: int = IN_FLIGHT_MAX) -> None:
        """Take a graph: for each action those whose outputs it takes.

        Raises:
            InvalidRequest: an action is unknown or needs itself, by however many steps; the message names them.
            TooLarge: there are too many.
        """
        self._above = check(needs)
        self._in_flight_max = in_flight_max
        self._nodes: dict[str, _Node] = {}
        for name, below in needs.items():
            distinct = tuple(dict.fromkeys(below))
            self._nodes[name] = _Node(distinct, "waiting", len(distinct), len(self._above.get(name, ())))
        self._ready = deque(name for name, node in self._nodes.items() if not node.unmet)
        for name in self._ready:
            self._nodes[name].state = "ready"
        self.in_flight = 0
        self.left = len(self._nodes)

    def state(self, name: str) -> State:
        """Where an action stands."""
        return self._nodes[name].state

    def start(self) -> list[Effect]:
        """What to do first; later calls change nothing."""
        effects: list[Effect] = []
        self._fill(effects)
        return effects

    def restore(self, asked: Iterable[str], ended: Mapping[str, bool]) -> list[Effect]:
        """Go on from what an earlier controller left, before `start`: what was asked for and bound, and what ended how.

        What takes an output of one that did not end well fails, as it would have: its end may not have been kept.
        """
        for name in asked:
            node = self._nodes[name]
            node.state = "asked"
            self.in_flight += 1
        for name, well in ended.items():
            # Nothing is held yet that could be released.
            self._end(self._nodes[name], [], well=well)
            for above in self._above.get(name, ()) if well else ():
                self._nodes[above].unmet -= 1
        effects: list[Effect] = []
        for name, well in ended.items():
            if not well:
                self._fail_above(name, effects)
        self._ready.clear()
        for name, node in self._nodes.items():
            if node.state in ("waiting", "ready") and not node.unmet:
                node.state = "ready"
                self._ready.append(name)
        return effects

    def is_taken(self, name: str) -> bool:
        """Whether somebody who takes this action's outputs has not ended."""
        return self._nodes[name].takers > 0

    def ended(self, name: str, *, well: bool) -> list[Effect]:
        """An action that was asked for has ended, well if its outputs may be taken."""
        effects: list[Effect] = []
        node = self._nodes[name]
        if node.state != "asked":
            return effects
        self.in_flight -= 1
        self._end(node, effects, well=well)
        if well:
            for above in self._above.get(name, ()):
                taker = self._nodes[above]
                taker.unmet -= 1
                if not taker.unmet and taker.state == "waiting":
                    taker.state = "ready"
                    self._ready.append(above)
            if not node.takers:
                effects.append(Release(name))
        else:
            self._fail_above(name, effects)
        self._fill(effects)
        return effects

    def withdraw(self, name: str) -> list[Effect]:
        """End one action that was not asked for yet; what takes its outputs fails."""
        effects: list[Effect] = []
        node = self._nodes[name]
        if node.state in ("waiting", "ready"):
            if node.state == "ready":
                self._ready.remove(name)
            effects.append(Withdraw(name))
            self._end(node, effects, well=False)
            self._fail_above(name, effects)
        return effects

    def cancel(self) -> list[Effect]:
        """End all that has not ended: what was asked for is stopped, the rest is not asked for."""
        effects: list[Effect] = []
        for name, node in self._nodes.items():
            if node.state == "asked":
                effects.append(Stop(name))
            elif node.state in ("waiting", "ready"):
                effects.append(Withdraw(name))
                self._end(node, effects, well=False)
        self._ready.clear()
        return effects

    def _fill(self, effects: list[Effect]) -> None:
        while self._ready and self.in_flight < self._in_flight_max:
            name = self._ready.popleft()
            node = self._nodes[name]
            node.state = "asked"
            self.in_flight += 1
            effects.append(Ask(name))

    def _fail_above(self, name: str, effects: list[Effect]) -> None:
        """Everything that takes its outputs, by however many steps, fails because of it, the nearest first."""
        waiting = deque([name])
        while waiting:
            for above in self._above.get(waiting.popleft(), ()):
                node = self._nodes[above]
                if node.state == "waiting":
                    effects.append(Fail(above, name))
                    self._end(node, effects, well=False)
                    waiting.append(above)

    def _end(self, node: _Node, effects: list[Effect], *, well: bool) -> None:
        node.state = "done" if well else "failed"
        self.left -= 1
        for below in node.needs:
            other = self._nodes[below]
            other.takers -= 1
            if not other.takers and other.state == "done":
                effects.append(Release(below))


def check(needs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Refuse what is no graph; returns who takes outputs of each.

    Raises:
        InvalidRequest: an action is unknown or needs itself.
        TooLarge: there are too many actions or references.
    """
    if not needs:
        raise InvalidRequest("the graph has no actions", field="actions")
    if len(needs) > ACTIONS_MAX:
        raise TooLarge(
            f"a graph has at most {ACTIONS_MAX} actions; submit it in parts", field="actions", limit=ACTIONS_MAX
        )
    if sum(map(len, needs.values())) > REFERENCES_MAX:
        raise TooLarge(f"a graph has at most {REFERENCES_MAX} references", field="actions.inputs", limit=REFERENCES_MAX)
    above: dict[str, list[str]] = {}
    unmet: dict[str, int] = {}
    for name, below in needs.items():
        distinct = dict.fromkeys(below)
        unmet[name] = len(distinct)
        for other in distinct:
            if other not in needs:
                raise InvalidRequest(
                    f"action {name!r} takes an output of {other[:64]!r}, which is not in the graph",
                    field=f"actions[{name}].inputs",
                )
            above.setdefault(other, []).append(name)
    ready = deque(name for name, count in unmet.items() if not count)
    met = 0
    while ready:
        met += 1
        for name in above.get(ready.popleft(), ()):
            unmet[name] -= 1
            if not unmet[name]:
                ready.append(name)
    if met < len(needs):
        circle = _circle(needs, {name for name, count in unmet.items() if count})
        shown = " -> ".join(map(repr, circle[:8])) + (" -> …" if len(circle) > 8 else "")
        raise InvalidRequest(f"actions take each other's outputs in a circle: {shown}", field="actions.inputs")
    return above


def check_taken(specs: Mapping[str, ActionSpec]) -> None:
    """Refuse a graph in which an action takes what another will not leave, before any of it runs. `check` has passed.

    Raises:
        InvalidRequest: an input is neither a declared output of the other action nor below one.
    """
    declared: dict[str, frozenset[str]] = {}
    for name, spec in specs.items():
        for one in spec.inputs:
            if not isinstance(one, OutputInput):
                continue
            if one.action not in declared:
                declared[one.action] = frozenset(specs[one.action].outputs)
            path = one.output
            while path and path not in declared[one.action]:
                path = path.rpartition("/")[0]
            if not path:
                raise InvalidRequest(
                    f"action {name!r} takes {one.output[:64]!r} of {one.action!r}, which declares no such output; "
                    "add it to that one's outputs",
                    field=f"actions[{name}].inputs",
                )


def _circle(needs: Mapping[str, Sequence[str]], tangled: set[str]) -> list[str]:
    """One circle among actions that are in a circle or above one."""
    seen: dict[str, int] = {}
    path: list[str] = []
    name = min(tangled)
    while name not in seen:
        seen[name] = len(path)
        path.append(name)
        # Every action that is left needs one that is left: else it would have been met.
        name = min(other for other in needs[name] if other in tangled)
    return [*path[seen[name] :], name]
