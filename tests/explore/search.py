"""Every world that can be reached, nearest first: how the explorers look for one in which something is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol, TypeVar


class World(Protocol):
    """Equal keys, equal futures. `path` are the steps that led here."""

    path: tuple[object, ...]

    def key(self) -> Hashable:
        """What tells it from others."""
        ...


W = TypeVar("W", bound=World)


def search(
    first: W,
    broken: Callable[[W], str],
    successors: Callable[[W], Iterable[tuple[Any, W]]],
    states_max: int,
) -> tuple[str, int]:
    """Search breadth first; return what went wrong (empty when nothing can) and how many worlds were seen."""
    seen = {first.key()}
    todo = deque([first])
    while todo:
        world = todo.popleft()
        if why := broken(world):
            return f"{why} after {list(world.path)}", len(seen)
        for step, after in successors(world):
            key = after.key()
            if key not in seen:
                assert len(seen) < states_max, "the world is too large to walk"
                seen.add(key)
                after.path = (*world.path, step)
                todo.append(after)
    return "", len(seen)
