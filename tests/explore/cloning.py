"""What a core becomes by an event, without changing it: worlds that differ elsewhere share what it becomes."""

from __future__ import annotations

import io
import pickle
from typing import Any

from buildnet.model.action import ActionKey, Lease, Wanted
from buildnet.model.amounts import Amounts
from buildnet.model.node import WorkerOffer
from buildnet.scheduler.core import Limits, Mechanisms, SchedulerCore
from buildnet.scheduler.events import Effect, Event
from buildnet.scheduler.share import Quota, Quotas

_FROZEN = frozenset({ActionKey, Lease, Wanted, Amounts, WorkerOffer, Limits, Mechanisms, Quota, Quotas})


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, shared: list[object]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.shared = shared

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) not in _FROZEN:
            return None
        self.shared.append(obj)
        return len(self.shared) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: list[object]) -> None:
        super().__init__(file)
        self.shared = shared

    def persistent_load(self, pid: Any) -> object:
        return self.shared[pid]


class SharedCore:
    """A core that nobody changes: `after` makes another, once for each event."""

    def __init__(self, scheduler: SchedulerCore) -> None:
        self.core = scheduler
        self._after: dict[Event, tuple[SharedCore, list[Effect]]] = {}

    def after(self, event: Event) -> tuple[SharedCore, list[Effect]]:
        """The core once it has had the event, and what it wants done."""
        known = self._after.get(event)
        if known is None:
            twin = clone(self.core)
            effects = twin.step(event)
            known = self._after[event] = (SharedCore(twin), effects)
        return known


def clone(scheduler: SchedulerCore) -> SchedulerCore:
    """A core that may go another way."""
    shared: list[object] = []
    file = io.BytesIO()
    _Pickler(file, shared).dump(scheduler)
    file.seek(0)
    twin: SchedulerCore = _Unpickler(file, shared).load()
    return twin
