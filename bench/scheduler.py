"""Decisions of the scheduler's core: how many a second of processor time, and what a waiting action costs in memory.

Back of the envelope: a decision walks three levels of shares twice (an end, a beginning: about 1 us each level), puts
three heaps of shares right (0.5 us each), makes seven values and four tuples (0.2 us each), and calls some 35 functions
(0.1 us each with their arguments): 15 us; what bounds it is Python's objects, not n. The bar is
50,000 a second with 1,000 workers and 100,000 waiting. An action that waits is its own values (key, digest, two texts,
what is wanted: 420 bytes), its entry (180), its followers and ticket (150) and its place in three maps (160):
910 bytes; the bar is 1 KiB.

A decision is one Done of a worker that has one slot: its attempt is released, and what begins there next is decided.
Time is processor time of this process. The peer is a bare heapq of as many tuples: a push and a pop for each decision.
"""

from __future__ import annotations

import gc
import heapq
import sys
import time
import tracemalloc
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import Digest
from buildnet.model.node import WorkerOffer
from buildnet.scheduler import core
from buildnet.scheduler import events as ev

WORKERS = 1000
DECISIONS = 40_000
SIZES = (1_000, 10_000, 100_000)
BAR_PER_S = 50_000
BAR_BYTES = 1024

_OK = Outcome("ok", b"")
_LINUX = frozenset({("OSFamily", "linux")})
_BOOKWORM = frozenset({("OSFamily", "linux"), ("image", "bookworm")})
_LARGE = Amounts(2000, 4 << 30)
# What is asked, by turns: most ask nothing; some a certain image, some two cpus.
_KINDS = ((_LINUX, NOTHING), (_LINUX, NOTHING), (_BOOKWORM, NOTHING), (_LINUX, _LARGE))


def offer(number: int) -> WorkerOffer:
    """A worker; each second one has the image."""
    properties = _BOOKWORM if number % 2 else _LINUX
    return WorkerOffer(f"{number:032x}", "boot", 1, properties, capacity=Amounts(4000, 16 << 30, 1 << 40))


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


def measured(queued: int) -> tuple[float, float, float]:
    """Processor time in us: of a decision, of the rest of an action's life, and of the same by a bare heap.

    The queue is as long at the end as at the beginning: for each action that ends, another comes.
    """
    scheduler, running = loaded(queued)
    gc.collect()
    gc.freeze()
    decided = lived = 0.0
    number, made = WORKERS + queued, 0
    while made < DECISIONS:
        began_s = time.process_time()
        publishing = []
        for _ in range(500):
            worker, fence = running.popleft()
            for effect in scheduler.step(ev.Done(worker, fence, _OK)):
                if type(effect) is ev.Assign:
                    running.append((effect.lease.worker, effect.lease.fence))
                elif type(effect) is ev.Publish:
                    publishing.append(effect.entry)
        decided_at_s = time.process_time()
        for entry in publishing:
            scheduler.step(ev.Published(entry, _OK))
        for _ in range(500):
            scheduler.step(want(number))
            number += 1
        lived += time.process_time() - decided_at_s
        decided += decided_at_s - began_s
        made += 500
        assert len(running) == WORKERS, "each end was followed by a beginning"
    gc.unfreeze()
    return decided / made * 1e6, lived / made * 1e6, bare_us(queued)


def bare_us(size: int) -> float:
    """A push and a pop of a heap of so many tuples, in us of processor time."""
    heap = [(float(number), number) for number in range(size)]
    began_s = time.process_time()
    for number in range(size, size + DECISIONS):
        heapq.heappush(heap, (float(number), number))
        heapq.heappop(heap)
    return (time.process_time() - began_s) / DECISIONS * 1e6


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
    costs = {}
    for size in SIZES:
        decision_us, rest_us, heap_us = measured(size)
        costs[size] = decision_us
        line(f"decisions, {size} wait", 1e6 / decision_us, "/cpu s", "bar", BAR_PER_S)
        line(f"decisions, {size} wait", decision_us, "us", "bare heap of as many", heap_us)
        line(f"whole lives, {size} wait", 1e6 / (decision_us + rest_us), "/cpu s", "bar of decisions", BAR_PER_S)
    line(f"cost at {SIZES[-1]}", costs[SIZES[-1]], "us", f"cost at {SIZES[0]}", costs[SIZES[0]])
    line("a waiting action", bytes_per_action(SIZES[-1]), "bytes", "bar", BAR_BYTES)


if __name__ == "__main__":
    main()
