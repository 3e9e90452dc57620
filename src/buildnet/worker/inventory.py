"""What this node offers, kept up to date: a look at all, then at what inotify says has changed. Announces nothing.

A way of finding out that fails, hangs or tells nonsense costs only what it would have found.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from inotify_simple import INotify, flags

from buildnet.catalog.announcement import RESOURCES_MAX
from buildnet.errors import BuildNetError, DeadlinePassed
from buildnet.model.resource import Key, Resource, check_resource
from buildnet.ports import Discoverer, Found

_log = logging.getLogger(__name__)

_LOOK_TIMEOUT_S: Final = 30.0
_FULL_INTERVAL_S: Final = 600.0
_RETRY_S: Final = 30.0
# Files come many at once: a look begins a moment after the first, and a busy installer costs a quarter of a core.
_SETTLE_S: Final = 0.05
_PAUSE_MAX_S: Final = 0.5
_PAUSE_FACTOR: Final = 3
_WATCHES_MAX: Final = 256
_CHANGES: Final = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.ATTRIB
    | flags.CLOSE_WRITE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that is offered at one moment, and how much was left out."""

    resources: Mapping[Key, Resource] = field(default_factory=dict)
    left_out: int = 0


class Stocktaker:
    """Looks, and looks again; `current` is the newest inventory, None before the first."""

    def __init__(self, discoverers: Sequence[Discoverer], fixed: Iterable[Resource] = ()) -> None:
        self.current: Inventory | None = None
        self.changed = asyncio.Event()
        self._discoverers = {discoverer.name: discoverer for discoverer in discoverers}
        self._fixed = tuple(fixed)
        self._found: dict[str, Found] = {}
        self._noted: dict[str, tuple[str, ...]] = {}
        self._busy: set[str] = set()
        self._dirty: set[str] = set()
        self._news = asyncio.Event()
        self._watched: dict[int, set[str]] = {}

    async def wait_changed(self) -> None:
        """Return at the next change of `current`."""
        await self.changed.wait()

    async def run(self) -> None:
        """Until cancelled: keep `current` true."""
        loop = asyncio.get_running_loop()
        try:
            watcher = INotify(nonblocking=True)
        except OSError as error:
            _log.warning("no inotify (%s): changes are seen every %.0f s", error.strerror, _FULL_INTERVAL_S)
            await self._run(None)
            return
        loop.add_reader(watcher.fd, self._on_events, watcher)
        try:
            await self._run(watcher)
        finally:
            loop.remove_reader(watcher.fd)
            watcher.close()

    async def _run(self, watcher: INotify | None) -> None:
        names = set(self._discoverers)
        clock = asyncio.get_running_loop().time
        while True:
            began_s = clock()
            await self._look(names)
            if watcher is not None:
                # A change between look and watch would go unseen: whatever was not watched before is looked at again.
                self._dirty |= self._watch(watcher)
            ended_s = clock()
            quiet_until_s = ended_s + min(_PAUSE_FACTOR * (ended_s - began_s), _PAUSE_MAX_S)
            try:
                async with asyncio.timeout(_FULL_INTERVAL_S):
                    await self._news.wait()
            except TimeoutError:
                names = set(self._discoverers)
                continue
            await asyncio.sleep(max(_SETTLE_S, quiet_until_s - clock()))
            self._news.clear()
            names, self._dirty = self._dirty, set()

    def _on_events(self, watcher: INotify) -> None:
        for event in watcher.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                self._dirty |= set(self._discoverers)
            self._dirty |= self._watched.get(event.wd, set())
            if event.mask & flags.IGNORED:
                self._watched.pop(event.wd, None)
        if self._dirty:
            self._news.set()

    def _watch(self, watcher: INotify) -> set[str]:
        """Watch what the discoverers want watched; return those for whom something is newly so."""
        wanted: dict[str, set[str]] = {}
        for name, discoverer in self._discoverers.items():
            for directory in discoverer.watched():
                wanted.setdefault(directory, set()).add(name)
        watched: dict[int, set[str]] = {}
        fresh: set[str] = set()
        for directory, names in list(wanted.items())[:_WATCHES_MAX]:
            try:
                number = watcher.add_watch(directory, _CHANGES)
            except OSError:
                # Not there; it is looked for again with the next full look.
                continue
            fresh |= names - self._watched.get(number, set())
            watched.setdefault(number, set()).update(names)
        for number in self._watched.keys() - watched.keys():
            # The kernel takes the watch of a directory that was deleted away by itself, and says so later.
            with suppress(OSError):
                watcher.rm_watch(number)
        self._watched = watched
        if fresh:
            self._news.set()
        return fresh

    # Looking.

    async def _look(self, names: Iterable[str]) -> None:
        await asyncio.gather(*(self._ask(self._discoverers[name]) for name in sorted(names)))
        self._publish()

    def _publish(self) -> None:
        inventory = self._merged()
        if inventory != self.current:
            self.current = inventory
            self.changed.set()
            self.changed = asyncio.Event()

    async def _ask(self, discoverer: Discoverer) -> None:
        name = discoverer.name
        if name in self._busy:
            return
        try:
            found = await self._in_thread(discoverer)
        except Exception as error:  # noqa: BLE001 - a stranger's code; what it found before stays true until it says otherwise
            said = error.message if isinstance(error, BuildNetError) else repr(error)
            self._note(name, (f"it failed: {said}",))
            asyncio.get_running_loop().call_later(_RETRY_S, self._mark, name)
            return
        self._found[name] = found
        self._note(name, tuple(found.notes))

    def _mark(self, name: str) -> None:
        self._dirty.add(name)
        self._news.set()

    async def _in_thread(self, discoverer: Discoverer) -> Found:
        # A thread of its own, which nobody waits for at the end: one that hangs must not keep the worker from leaving.
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Found] = loop.create_future()

        def settle(found: Found | None, error: Exception | None) -> None:
            self._busy.discard(discoverer.name)
            if future.done():
                # Too late to be waited for, yet as true as if it had been quick.
                if found is not None:
                    self._found[discoverer.name] = found
                    self._publish()
            elif error is not None:
                future.set_exception(error)
            elif found is not None:
                future.set_result(found)

        def work() -> None:
            found, failure = None, None
            try:
                found = discoverer.discover()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, found, failure)

        self._busy.add(discoverer.name)
        threading.Thread(target=work, name=f"discover-{discoverer.name}", daemon=True).start()
        try:
            return await asyncio.wait_for(future, _LOOK_TIMEOUT_S)
        except TimeoutError as error:
            raise DeadlinePassed(f"no answer within {_LOOK_TIMEOUT_S:g} s", timeout_s=_LOOK_TIMEOUT_S) from error

    def _note(self, name: str, notes: tuple[str, ...]) -> None:
        if notes != self._noted.get(name, ()):
            self._noted[name] = notes
            for note in notes:
                _log.warning("discoverer %s: %s", name, note)

    def _merged(self) -> Inventory:
        resources: dict[Key, Resource] = {resource.key: resource for resource in self._fixed}
        # Most are as they were, and were found sound then.
        before = self.current.resources if self.current is not None else {}
        left_out = 0
        for name in self._discoverers:
            found = self._found.get(name, Found())
            left_out += found.left_out
            for resource in found.resources:
                key = resource.key
                if len(resources) >= RESOURCES_MAX or not (before.get(key) == resource or _sound(resource)):
                    left_out += 1
                else:
                    resources.setdefault(key, resource)
        return Inventory(resources, left_out)


def _sound(resource: Resource) -> bool:
    try:
        check_resource(resource)
    except BuildNetError:
        return False
    return True
