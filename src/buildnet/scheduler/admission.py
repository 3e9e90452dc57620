"""Who waits for which action: operations by name, equal actions as one entry. Pure; it decides nothing about workers.

An action that may be shared has one entry at a time, and whoever wants the same meanwhile follows it.
"""

from __future__ import annotations

from dataclasses import replace

from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.scheduler.dispatch import Dispatch
from buildnet.scheduler.entry import Entry
from buildnet.scheduler.events import Effect, Restore, Tell, Want
from buildnet.scheduler.limits import Mechanisms
from buildnet.scheduler.share import Path, Share


class Admission:
    """Entries and their followers. Not thread-safe: the core owns it."""

    def __init__(self, entries: dict[int, Entry], dispatch: Dispatch, on: Mechanisms) -> None:
        self._entries = entries
        self._dispatch = dispatch
        self._on = on
        self._entry_next = 1
        self._by_key: dict[ActionKey, Entry] = {}
        self._by_operation: dict[str, Entry] = {}
        # Of operations whose share is another than that of the first who wanted the same.
        self._paths: dict[str, Path] = {}
        self.looking = 0

    @property
    def following(self) -> int:
        """How many operations there are that have not ended."""
        return len(self._by_operation)

    def joined(self, event: Want | Restore, effects: list[Effect]) -> bool:
        """Whether nothing more is to be done: the operation is known, or it follows an entry that is there."""
        if event.operation in self._by_operation:
            return True
        entry = self._by_key.get(event.wanted.key) if self._may_join(event.wanted) else None
        if entry is None:
            return False
        self._join(entry, event, effects)
        return True

    def _may_join(self, wanted: Wanted) -> bool:
        return not wanted.do_not_cache and self._on.join

    def _join(self, entry: Entry, event: Want | Restore, effects: list[Effect]) -> None:
        operation, wanted = event.operation, event.wanted
        entry.followers.append(operation)
        self._by_operation[operation] = entry
        # REAPI skip_cache_lookup: the result must be of an execution, which this one may share.
        entry.demanded |= wanted.skip_cache_lookup
        if wanted.priority < entry.wanted.priority:
            was = self._dispatch.ticket_of(entry.wanted, 0.0)
            # It keeps the time that it has waited.
            entry.wanted = replace(entry.wanted, priority=wanted.priority)
            self._dispatch.reordered(entry, entry.order + self._dispatch.ticket_of(entry.wanted, 0.0) - was)
        path = self._dispatch.path_of(wanted)
        if path != self._dispatch.path_of(entry.wanted) and self._on.inherit:
            self._follow(entry, operation, path)
        lease = entry.lease
        if entry.state in ("leased", "publishing") and lease is not None:
            effects.append(Tell(operation, "executing", worker=lease.worker, fence=lease.fence))
        else:
            effects.append(Tell(operation, "queued"))

    def _follow(self, entry: Entry, operation: str, path: Path) -> None:
        # One whose quota can never hold it has no turn to give: he waits in the share of the first.
        if self._dispatch.may_hold(entry.wanted, path):
            self._paths[operation] = path
            if entry.branch is not None:
                self._dispatch.wait_too(entry, path)

    def wait_for_all(self, entry: Entry) -> None:
        """It waits in the shares of all who follow it."""
        for operation in entry.followers:
            path = self._paths.get(operation)
            if path is not None:
                self._dispatch.wait_too(entry, path)

    def enter(self, operation: str, wanted: Wanted, share: Share, now_s: float) -> Entry:
        """A new entry, which is being looked up."""
        entry = Entry(self._entry_next, wanted, share, self._dispatch.ticket_of(wanted, now_s), operation)
        self._entry_next += 1
        self.looking += 1
        self._dispatch.shares.wait(share)
        self._entries[entry.id] = entry
        self._by_operation[operation] = entry
        if self._may_join(wanted):
            self._by_key[wanted.key] = entry
        return entry

    def left(self, operation: str) -> Entry | None:
        """An operation follows no more; returns what it followed."""
        entry = self._by_operation.pop(operation, None)
        if entry is not None:
            entry.followers.remove(operation)
            path = self._paths.pop(operation, None)
            if entry.followers and all(self._paths.get(other) != path for other in entry.followers):
                self._was_last_of(entry, path)
        return entry

    def _was_last_of(self, entry: Entry, path: Path | None) -> None:
        """Nobody of a share wants it any more, None for that of the first; of others some do."""
        paths = [self._paths.get(other) for other in entry.followers]
        gone = self._dispatch.path_of(entry.wanted) if path is None else path
        if path is None:
            heir = paths[0]
            assert heir is not None, "nobody else is of the share of the first"
            organisation, user, invocation = heir
            entry.wanted = replace(entry.wanted, share=(organisation, user, invocation))
            for operation, other in zip(entry.followers, paths, strict=True):
                if other == heir:
                    del self._paths[operation]
        others = [self._dispatch.path_of(entry.wanted) if other is None else other for other in paths]
        self._dispatch.abandoned(entry, gone, others)

    def tell_end(self, entry: Entry, outcome: Outcome, effects: list[Effect]) -> None:
        """All who follow are told how it ended, and follow no more."""
        for operation in entry.followers:
            self._by_operation.pop(operation, None)
            self._paths.pop(operation, None)
            effects.append(Tell(operation, "completed", outcome, worker=outcome.worker))
        entry.followers = []

    def forget(self, entry: Entry) -> None:
        """Nobody follows it, and it is there no more."""
        del self._entries[entry.id]
        if self._by_key.get(entry.wanted.key) is entry:
            del self._by_key[entry.wanted.key]
