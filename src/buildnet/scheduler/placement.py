"""Which workers may run what, and which of them shall. Pure: no queue, no fairness, no clock but the one it is told.

Entries that require and ask the same are one Demand, matched with each worker once. A worker is a bit: who may run a
demand, who has a free slot, how busy each is are integers, and a choice is a few intersections, however many wait.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from buildnet.model.action import Properties, Wanted
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.node import WorkerOffer
from buildnet.ports import ResourceMatcher
from buildnet.scheduler.matching import matches
from buildnet.scheduler.queue import FairQueue

if TYPE_CHECKING:
    from buildnet.scheduler.entry import Attempt

LEVELS: Final = 16
"""How finely workers are told apart by how busy they are."""

NEAR_MAX: Final = 65_536
"""Inputs and targets whose last worker is remembered."""

_MEMORY_OF_CPU_BYTES: Final = 4 << 30
_CPUS_OF_GPU: Final = 8

DemandKey = tuple[Properties, Amounts, str, tuple[str, ...]]
"""What is required, what is asked, the only node that may, and the nodes that had better not."""


class Demand:
    """Entries that any of the same workers may run, and the queue in which they wait.

    `matching` are the workers that offer what is required, `able` those of them that are not avoided (all, if there is
    nobody else), `unknown` those of which nobody can tell yet. `roomy` are those of `able` that were not found to lack
    room since they last ended something; `held` is the worker that is kept free until there is room for one of these.
    """

    __slots__ = (
        "able",
        "asked",
        "asked_cpu_milli",
        "avoid",
        "cost",
        "cpu_milli",
        "dirty",
        "disk_bytes",
        "gpus",
        "held",
        "key",
        "matching",
        "memory_bytes",
        "queue",
        "roomy",
        "root",
        "runs",
        "since_s",
        "typical_s",
        "unknown",
        "wanted",
    )

    def __init__(self, key: DemandKey, wanted: Wanted, cpu_milli: int, queue: FairQueue) -> None:
        self.key = key
        self.wanted = wanted
        self.asked = wanted.asked
        self.avoid = key[3]
        # Counted for the fair share; `asked.cpu_milli` is 0 where a slot's worth of the worker is reserved.
        self.cpu_milli = cpu_milli
        # Read for each decision: a field of its own costs a compiled core nothing, one of a value 40 ns.
        asked = wanted.asked
        self.asked_cpu_milli = asked.cpu_milli
        self.memory_bytes = asked.memory_bytes
        self.disk_bytes = asked.disk_bytes
        self.gpus = asked.gpus
        self.cost = max(1, cpu_milli, self.memory_bytes * 1000 // _MEMORY_OF_CPU_BYTES, 1000 * _CPUS_OF_GPU * self.gpus)
        self.queue = queue
        self.root = queue.root
        self.matching = self.able = self.unknown = self.roomy = self.held = 0
        self.dirty = True
        self.since_s = 0.0
        self.typical_s = 0.0
        self.runs = 0

    def took(self, run_s: float) -> None:
        """One of these has run so long."""
        self.runs += 1
        self.typical_s += (run_s - self.typical_s) / (self.runs if self.runs < 16 else 16)


class Worker:
    """A worker whose session is open, and what its attempts use.

    `level` is how busy it is, -1 while it is given no work or is full. `plain` of what runs asked for no cpus: `slots`
    bounds these, its amounts the others, and `attempts_max` all. `ahead` is the entry whose inputs it
    was told to fetch, -1 for none. `silent` from when a lease of its own ran out until it is heard again. `gone` once
    its session ended: what it ran counts nowhere. Of `sending` of its attempts the commands have ended, and only their
    disk is counted; as many as slots may, and `to_send` wait.
    """

    __slots__ = (
        "ahead",
        "attempts_max",
        "bit",
        "cordoned",
        "cpu_milli",
        "cpu_milli_max",
        "disk_bytes",
        "disk_bytes_max",
        "draining",
        "fences",
        "gone",
        "gpus",
        "gpus_max",
        "is_bounded",
        "level",
        "memory_bytes",
        "memory_bytes_max",
        "node",
        "offer",
        "plain",
        "refused",
        "sending",
        "silent",
        "slot",
        "slot_cpu_milli",
        "slots",
        "to_send",
    )

    def __init__(self, offer: WorkerOffer, bit: int, *, cordoned: bool) -> None:
        self.offer = offer
        self.node = offer.node
        self.slots = offer.slots
        self.attempts_max: int = offer.attempts_max
        self.plain = 0
        self.bit = bit
        self.cordoned = cordoned
        self.draining = self.silent = self.gone = False
        self.fences: set[int] = set()
        self.sending = 0
        self.to_send: deque[Attempt] = deque()
        self.cpu_milli = self.memory_bytes = self.disk_bytes = self.gpus = 0
        self.level = -1
        self.ahead = -1
        self.refused: list[Demand] = []
        # Of one that did not tell what it has, its slots alone bound it.
        self.is_bounded = offer.capacity is not None
        whole = offer.capacity or NOTHING
        self.cpu_milli_max = whole.cpu_milli
        self.memory_bytes_max = whole.memory_bytes
        self.disk_bytes_max = whole.disk_bytes
        self.gpus_max = whole.gpus
        # What is counted for an action that asks for no cpus: a slot's worth of them, and never more than one.
        self.slot_cpu_milli = min(1000, self.cpu_milli_max // offer.slots)
        self.slot = Amounts(self.slot_cpu_milli) if self.cpu_milli_max else NOTHING

    @property
    def is_open(self) -> bool:
        """Whether it is given work at all."""
        return not (self.draining or self.cordoned or self.silent)

    @property
    def used(self) -> Amounts:
        """What is reserved of it."""
        return Amounts(self.cpu_milli, self.memory_bytes, self.disk_bytes, self.gpus)

    def reserved(self, asked: Amounts) -> Amounts:
        """What is counted here for an action that asks so."""
        if asked.cpu_milli:
            return asked
        if asked.memory_bytes or asked.disk_bytes or asked.gpus:
            return Amounts(self.slot_cpu_milli, asked.memory_bytes, asked.disk_bytes, asked.gpus)
        return self.slot

    def has_room(self, demand: Demand) -> bool:
        """Whether one more fits beside what runs. What is not asked does, cpus apart: each takes a slot's worth."""
        if not self.is_bounded:
            return True
        asked_cpu_milli = demand.asked_cpu_milli
        if not asked_cpu_milli and self.plain >= self.slots:
            return False
        cpu_milli = self.cpu_milli + (asked_cpu_milli or self.slot_cpu_milli)
        memory_bytes, disk_bytes, gpus = demand.memory_bytes, demand.disk_bytes, demand.gpus
        return (
            (cpu_milli <= self.cpu_milli_max or not self.cpu_milli_max)
            and not (memory_bytes and 0 < self.memory_bytes_max < self.memory_bytes + memory_bytes)
            and not (disk_bytes and 0 < self.disk_bytes_max < self.disk_bytes + disk_bytes)
            and not (gpus and self.gpus_max < self.gpus + gpus)
        )


class Placement:
    """Workers by bit, and what may run where."""

    def __init__(self, resources: ResourceMatcher, *, fits: bool = True) -> None:
        self._resources = resources
        self._fits = fits
        self.workers: dict[str, Worker] = {}
        # By the length of its bit: to hash an integer of a thousand bits would take longer than all else here.
        self._of_length: dict[int, Worker] = {}
        self._free_bits: list[int] = []
        self._bit_next = 0
        # By how busy: those that are given work and have a free slot.
        self._levels = [0] * LEVELS
        self.open = 0
        self._with_gpus = 0
        # Workers that are kept free for one demand each.
        self.held = 0
        self._near: OrderedDict[int, str] = OrderedDict()

    # Workers.

    def join(self, offer: WorkerOffer, *, cordoned: bool, demands: Iterable[Demand]) -> Worker:
        """A worker is there."""
        if self._free_bits:
            number = self._free_bits.pop()
        else:
            number, self._bit_next = self._bit_next, self._bit_next + 1
        worker = Worker(offer, 1 << number, cordoned=cordoned)
        self.workers[offer.node] = self._of_length[number + 1] = worker
        if offer.capacity is not None and offer.capacity.gpus:
            self._with_gpus |= worker.bit
        for demand in demands:
            if not demand.dirty:
                self._match(demand, worker)
                self._avoid(demand)
        self.changed(worker)
        return worker

    def leave(self, worker: Worker, demands: Iterable[Demand]) -> None:
        """A worker is gone."""
        bit = worker.bit
        del self.workers[worker.node], self._of_length[bit.bit_length()]
        self._free_bits.append(bit.bit_length() - 1)
        worker.draining = worker.gone = True
        self.changed(worker)
        self._with_gpus &= ~bit
        self.held &= ~bit
        for demand in demands:
            for name in ("matching", "unknown", "roomy", "held"):
                setattr(demand, name, getattr(demand, name) & ~bit)
            self._avoid(demand)

    def changed(self, worker: Worker) -> None:
        """How busy it is, or whether it is given work, is other than before."""
        count, was, cpu_milli_max = len(worker.fences) - worker.sending, worker.level, worker.cpu_milli_max
        # Nothing takes no cpus: where all are taken nothing has room, whatever it asks.
        is_full = count >= worker.attempts_max or 0 < cpu_milli_max <= worker.cpu_milli
        if is_full or worker.draining or worker.cordoned or worker.silent:
            level = -1
        elif not count:
            level = 0
        else:
            level = LEVELS * (worker.plain if cpu_milli_max else count) // worker.slots
            if cpu_milli_max:
                by_cpu = LEVELS * worker.cpu_milli // cpu_milli_max
                level = by_cpu if by_cpu > level else level
            if level >= LEVELS:
                level = LEVELS - 1
        if level == was:
            return
        worker.level = level
        # Each bit is on one level at most, so that it goes by an exclusive or.
        if was >= 0:
            self._levels[was] ^= worker.bit
        else:
            self.open |= worker.bit
        if level >= 0:
            self._levels[level] |= worker.bit
        else:
            self.open ^= worker.bit

    def take(self, worker: Worker, fence: int, reserved: Amounts, demand: Demand, near: tuple[int, ...]) -> None:
        """An attempt at one of these begins there."""
        worker.fences.add(fence)
        if not demand.asked_cpu_milli:
            worker.plain += 1
        if reserved is worker.slot:
            worker.cpu_milli += worker.slot_cpu_milli
        else:
            worker.cpu_milli += reserved.cpu_milli
            worker.memory_bytes += reserved.memory_bytes
            worker.disk_bytes += reserved.disk_bytes
            worker.gpus += reserved.gpus
        self.changed(worker)
        if near:
            self.remember(worker, near)

    def remember(self, worker: Worker, near: tuple[int, ...]) -> None:
        """It has, or will have, what these numbers stand for."""
        for number in near:
            self._near[number] = worker.node
            self._near.move_to_end(number)
            if len(self._near) > NEAR_MAX:
                self._near.popitem(last=False)

    def give_back(self, worker: Worker, fence: int, reserved: Amounts, demand: Demand) -> None:
        """An attempt at one of these ended there."""
        worker.fences.discard(fence)
        if not demand.asked_cpu_milli:
            worker.plain -= 1
        if reserved is worker.slot:
            worker.cpu_milli -= worker.slot_cpu_milli
        else:
            worker.cpu_milli -= reserved.cpu_milli
            worker.memory_bytes -= reserved.memory_bytes
            worker.disk_bytes -= reserved.disk_bytes
            worker.gpus -= reserved.gpus
        if worker.refused:
            self._ask_again(worker)
        self.changed(worker)

    def command_ended(self, worker: Worker, fence: int, reserved: Amounts, demand: Demand) -> None:
        """The command of an attempt at one of these ended there: its outputs keep the disk that they are on."""
        self.give_back(worker, fence, reserved, demand)
        worker.fences.add(fence)
        worker.sending += 1
        worker.disk_bytes += reserved.disk_bytes

    def sent(self, worker: Worker, fence: int, reserved: Amounts) -> None:
        """An attempt whose command ended before has ended there."""
        worker.fences.discard(fence)
        worker.sending -= 1
        worker.disk_bytes -= reserved.disk_bytes
        self._ask_again(worker)

    def _ask_again(self, worker: Worker) -> None:
        for refused in worker.refused:
            refused.roomy |= refused.able & worker.bit
        worker.refused.clear()

    # Demands.

    def refresh(self, demand: Demand, like: Demand | None = None) -> None:
        """Match it with every worker, or take that from one that differs in whom it avoids alone."""
        demand.dirty = False
        demand.matching = demand.unknown = 0
        if like is not None and not like.dirty:
            demand.matching, demand.unknown = like.matching, like.unknown
        else:
            for worker in self.workers.values():
                self._match(demand, worker)
        self._avoid(demand)

    def _match(self, demand: Demand, worker: Worker) -> None:
        told = matches(demand.wanted, worker.offer, self._resources)
        if told:
            demand.matching |= worker.bit
        elif told is None:
            demand.unknown |= worker.bit

    def _avoid(self, demand: Demand) -> None:
        """Those that failed at it are asked again only if there is nobody else."""
        able = demand.matching
        if demand.avoid:
            avoided = 0
            for node in demand.avoid:
                if (worker := self.workers.get(node)) is not None:
                    avoided |= worker.bit
            able = able & ~avoided or able
        if able != demand.able:
            # Whether it lacks room is found out anew of one that is able again.
            demand.roomy = (demand.roomy | ~demand.able) & able
            demand.able = able

    def choose(self, demand: Demand, near: tuple[int, ...] = (), *, unlike: str = "") -> Worker | None:
        """The worker for one of these: one that ran something near it, else the least busy, those with gpus last; never
        the node `unlike`.
        """
        mask = demand.roomy & self.open
        if self.held:
            mask &= demand.held | ~self.held
        if unlike and unlike in self.workers:
            mask &= ~self.workers[unlike].bit
        alone = self._of_length.get(mask.bit_length())
        if alone is None:
            return None
        if alone.bit == mask:
            # The usual case where all are busy: one has just ended something.
            return alone if self._has_room(alone, demand) else None
        for number in near:
            node = self._near.get(number)
            worker = self.workers.get(node) if node is not None else None
            if worker is not None and worker.bit & mask and self._has_room(worker, demand):
                return worker
        plain = mask & ~self._with_gpus
        for among in (plain, mask & ~plain) if plain and not demand.gpus else (mask,):
            for level in self._levels:
                found = level & among
                while found:
                    worker = self._of_length[(found & -found).bit_length()]
                    if self._has_room(worker, demand):
                        return worker
                    found ^= worker.bit
        return None

    def is_full_for(self, demand: Demand, mask: int) -> bool:
        """Whether this is one worker, as where it has just ended something, and it has no room for one of these."""
        alone = self._of_length[mask.bit_length()]
        return alone.bit == mask and not self._has_room(alone, demand)

    def _has_room(self, worker: Worker, demand: Demand) -> bool:
        if worker.has_room(demand) or not self._fits:
            return True
        if demand.roomy & worker.bit:
            demand.roomy ^= worker.bit
            worker.refused.append(demand)
        return False

    def is_near(self, worker: Worker, near: tuple[int, ...]) -> bool:
        """Whether the worker is the one that ran something near it last."""
        return any(self._near.get(number) == worker.node for number in near)

    def hold(self, demand: Demand) -> bool:
        """Keep the worker that has most left free for one of these alone, until there is room; whether there is one."""
        found = demand.able & self.open & ~self.held
        best: Worker | None = None
        while found:
            worker = self._of_length[(found & -found).bit_length()]
            found ^= worker.bit
            if best is None or (worker.level, worker.memory_bytes) < (best.level, best.memory_bytes):
                best = worker
        if best is None:
            return False
        demand.held = best.bit
        self.held |= best.bit
        return True

    def let_go(self, demand: Demand) -> None:
        """Keep no worker for it any more."""
        self.held &= ~demand.held
        demand.held = 0
