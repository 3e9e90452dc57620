"""Decisions of the scheduler's core: how many a second of processor time, and what a waiting action costs in memory.

Back of the envelope: a decision is some 1,950 of Python's instructions, 12 ns each: 520 in finding whose turn it is,
240 in what an end gives back to three levels of shares, 110 in what a beginning takes of them, 190 at the worker, the
rest in seven values and 35 calls: 24 us. Compiled (buildnet/compiled.py), the instructions are some 4 us, and what
stays is the objects: seven values made by Python's own classes (3 us), 30 looks into maps (2 us), 30 fields of such
values (1 us), garbage (2 us), and of this script the Done and the three effects that it looks at (3 us): 15 us. The bar
is 50,000 a second with 1,000 workers and 100,000 waiting. An action that waits is its own values (key, digest, two
texts, what is wanted: 420 bytes), its entry (230), its followers and ticket (150) and its place in three maps (160):
960 bytes; the bar is 1 KiB.

A decision is one Done of a worker that has one slot: its attempt is released, and what begins there next is decided.
Time is processor time of this process, which looks for garbage as often as the controller does. Two peers run between
the slices of what is measured: a bare heapq of as many tuples, a push and a pop for each decision; and dominant
resource fairness alone, 200 organisations in one heap, which ends nothing and tells nobody. The bar is of a machine
where that one decides 266,000 times a second: 0.188 of it is the bar on any other.
"""

from __future__ import annotations

import gc
import heapq
import sys
import time
import tracemalloc
from collections import deque
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet.cli.main import GARBAGE_AFTER
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import Digest
from buildnet.model.node import WorkerOffer
from buildnet.scheduler import core
from buildnet.scheduler import events as ev

WORKERS = 1000
DECISIONS = 40_000
SIZES = (1_000, 10_000, 100_000)
SLICE = 500
BAR_PER_S = 50_000
BAR_OF_DRF = 50_000 / 266_000
BAR_BYTES = 1024

_OK = Outcome("ok", b"")
_LINUX = frozenset({("OSFamily", "linux")})
_BOOKWORM = frozenset({("OSFamily", "linux"), ("image", "bookworm")})
_LARGE = Amounts(1000, 4 << 30)
# What is asked, by turns: most ask nothing; some a certain image, some a cpu and memory.
_KINDS = ((_LINUX, NOTHING), (_LINUX, NOTHING), (_BOOKWORM, NOTHING), (_LINUX, _LARGE))


def offer(number: int) -> WorkerOffer:
    """A worker; each second one has the image."""
    properties = _BOOKWORM if number % 2 else _LINUX
    return WorkerOffer(f"{number:032x}", "boot", 1, properties, capacity=Amounts(1000, 16 << 30, 1 << 40))


def want(number: int) -> ev.Want:
    """One of four organisations with five users each, each with two invocations."""
    requirements, asked = _KINDS[number % len(_KINDS)]
    share = (f"org{number % 4}", f"user{number % 20}", f"invocation{number % 40}")
    key = ActionKey("", Digest(f"{number:064x}", 142))
    return ev.Want(f"{number:032x}", Wanted(key, requirements, 60.0, skip_cache_lookup=True, asked=asked, share=share))


def loaded(queued: int) -> tuple[core.SchedulerCore, deque[tuple[str, int]]]:
    """A core whose workers are all busy while so many wait, and what runs."""
    scheduler = core.SchedulerCore(core.Limits(queue_length_max=1 << 30))
    running: deque[tuple[str, int]] = deque()
    for number in range(WORKERS):
        scheduler.step(ev.WorkerUp(offer(number)))
    for number in range(WORKERS + queued):
        for effect in scheduler.step(want(number)):
            if isinstance(effect, ev.Assign):
                running.append((effect.lease.worker, effect.lease.fence))
    assert scheduler.queue_length == queued, "every worker runs one"
    return scheduler, running


@dataclass
class Costs:
    """Processor time in us: of a decision, of the rest of an action's life, and of the peers' decisions."""

    decided: float = 0.0
    lived: float = 0.0
    heap: float = 0.0
    drf: float = 0.0


def measured(queued: int) -> Costs:
    """What a decision costs while so many wait: for each action that ends another comes."""
    scheduler, running = loaded(queued)
    gc.collect()
    gc.freeze()
    costs, number = Costs(), WORKERS + queued
    heap = [(float(entry), entry) for entry in range(queued)]
    for _ in range(DECISIONS // SLICE):
        began_s = time.process_time()
        publishing = []
        for _ in range(SLICE):
            worker, fence = running.popleft()
            for effect in scheduler.step(ev.Done(worker, fence, _OK)):
                if type(effect) is ev.Assign:
                    running.append((effect.lease.worker, effect.lease.fence))
                elif type(effect) is ev.Publish:
                    publishing.append(effect.entry)
        decided_at_s = time.process_time()
        for entry in publishing:
            scheduler.step(ev.Published(entry, _OK))
        for new in range(number, number + SLICE):
            scheduler.step(want(new))
        costs.lived += time.process_time() - decided_at_s
        costs.decided += decided_at_s - began_s
        costs.heap += bare_s(heap, number)
        costs.drf += drf_s()
        number += SLICE
        assert len(running) == WORKERS, "each end was followed by a beginning"
    gc.unfreeze()
    each_us = 1e6 / DECISIONS
    return Costs(*(spent_s * each_us for spent_s in (costs.decided, costs.lived, costs.heap, costs.drf)))


def bare_s(heap: list[tuple[float, int]], first: int) -> float:
    """A push and a pop of a heap for each decision of a slice, in seconds of processor time."""
    began_s = time.process_time()
    for number in range(first, first + SLICE):
        heapq.heappush(heap, (float(number), number))
        heapq.heappop(heap)
    return time.process_time() - began_s


def drf_s() -> float:
    """Dominant resource fairness alone, as many decisions as a slice has: who has least begins one more."""
    whole = {"cpu": 10_000, "memory": 40_000, "gpu": 64}
    asks = [{"cpu": 1 + n % 8, "memory": 2 << n % 5, "gpu": n % 4 == 3} for n in range(200)]
    used = [dict.fromkeys(whole, 0) for _ in asks]
    free = dict(whole)
    heap = [(0.0, name) for name in range(len(asks))]
    decisions = 0
    began_s = time.process_time()
    while decisions < SLICE:
        _, name = heapq.heappop(heap)
        asked, has = asks[name], used[name]
        if any(free[kind] < asked[kind] for kind in whole):
            continue
        for kind in whole:
            free[kind] -= asked[kind]
            has[kind] += asked[kind]
        decisions += 1
        heapq.heappush(heap, (max(has[kind] / whole[kind] for kind in whole) / (1 + name % 3), name))
    return time.process_time() - began_s


def bytes_per_action(queued: int) -> float:
    """What a waiting action holds, its own values included."""
    scheduler = core.SchedulerCore(core.Limits(queue_length_max=1 << 30))
    gc.collect()
    tracemalloc.start()
    for number in range(queued):
        scheduler.step(want(number))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert scheduler.queue_length == queued
    return held / queued


def main() -> None:
    """Print each figure."""
    header("scheduler")
    print(f"  the core is {'interpreted: make core' if core.__file__.endswith('.py') else 'compiled'}")
    gc.set_threshold(GARBAGE_AFTER)
    decided = {}
    for size in SIZES:
        costs = measured(size)
        decided[size] = costs.decided
        per_s = 1e6 / costs.decided
        line(f"decisions, {size} wait", per_s, "/cpu s", "bar", BAR_PER_S)
        line(f"decisions, {size} wait", per_s, "/cpu s", "bar by bare DRF here", BAR_OF_DRF * 1e6 / costs.drf)
        line(f"decisions, {size} wait", costs.decided, "us", "bare heap of as many", costs.heap)
        line(f"whole lives, {size} wait", 1e6 / (costs.decided + costs.lived), "/cpu s", "bar of decisions", BAR_PER_S)
    line(f"cost at {SIZES[-1]}", decided[SIZES[-1]], "us", f"cost at {SIZES[0]}", decided[SIZES[0]])
    line("a waiting action", bytes_per_action(SIZES[-1]), "bytes", "bar", BAR_BYTES)


if __name__ == "__main__":
    main()
