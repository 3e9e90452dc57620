"""What waits, and which of it begins next where: queues, shares and workers brought together. Pure; it ends nothing.

A decision is the fairest turn among the demands that some worker has room for. A demand whose turn it is, and for which
there is room nowhere though it has waited long, keeps a worker free (`hold`): what is large is not passed by for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from buildnet.model.action import Outcome, Wanted
from buildnet.model.amounts import Amounts
from buildnet.model.node import WorkerOffer
from buildnet.ports import ResourceMatcher
from buildnet.scheduler.entry import Attempt, Entry
from buildnet.scheduler.limits import Limits, Mechanisms, Quotas
from buildnet.scheduler.matching import matches, why_not
from buildnet.scheduler.placement import Demand, Placement, Worker
from buildnet.scheduler.queue import Branch, FairQueue, fairest
from buildnet.scheduler.share import Path, Share, Shares, bounded, weighed

DEMANDS_MAX: Final = 1024
"""Different sets of requirements and amounts that are known at once."""

_NEAR_LOOKED_AT: Final = 5
_AHEAD_LOOKED_AT: Final = 32


class Dispatch:
    """Not thread-safe: the core owns it. Entries are found by their ids in what the core holds."""

    def __init__(
        self,
        limits: Limits,
        resources: ResourceMatcher,
        entries: dict[int, Entry],
        on: Mechanisms,
    ) -> None:
        self.limits = limits
        self._on = on
        self._hold_after_s = limits.hold_after_s
        self._entries = entries
        self._resources = resources
        self.shares = Shares(limits.quotas if on.quota else Quotas())
        self.room = Placement(resources, fits=on.fits)
        self._absent: dict[str, tuple[WorkerOffer, float]] = {}
        # Until then workers of an earlier controller may return, of which nothing is known.
        self._unknown_until_s: float | None = None
        self._demands: dict[object, Demand] = {}
        self._active: dict[Demand, None] = {}
        self.waiting = 0

    # What waits.

    def path_of(self, wanted: Wanted) -> Path:
        """The name of the share of who wants it."""
        return wanted.share if self._on.fair else ("", "", "")

    def share_of(self, wanted: Wanted) -> Share:
        """Whose share it is counted in."""
        return self.shares.leaf(self.path_of(wanted))

    def refusal(self, wanted: Wanted, share: Share) -> Outcome | None:
        """Why a quota refuses it at once, if one does."""
        full = self.shares.refused(share)
        if full is not None:
            return Outcome(
                "overloaded",
                None,
                f"{full.title} has {full.queued} actions waiting, which is its quota; "
                "try again when some have begun, or ask for a larger queued_max",
            )
        cpu_milli = self._cpu_milli(wanted)
        low = self.shares.too_much(share, cpu_milli)
        if low is None:
            return None
        return Outcome(
            "no_capable_worker",
            None,
            f"the action takes {Amounts(cpu_milli).text}, more than the quota of {low.title} lets it use at once; "
            "ask for less, or for a larger cpus_max",
        )

    def _cpu_milli(self, wanted: Wanted) -> int:
        return wanted.asked.cpu_milli or self.limits.default_cpu_milli

    def ticket_of(self, wanted: Wanted, now_s: float) -> float:
        """When the turn of one that comes now is."""
        priority = bounded(wanted.priority)
        return now_s + priority * self.limits.age_s if self._on.age else priority * 1e9 + now_s

    def enqueue(self, entry: Entry, now_s: float) -> Outcome | None:
        """It waits; or it is told why it cannot."""
        demand = self._demand(entry.wanted, entry.avoid if self._on.elsewhere else ())
        if demand is None:
            return Outcome(
                "overloaded",
                None,
                f"{DEMANDS_MAX} different requirements and amounts wait already; "
                "try again later, and ask for amounts that others ask for too",
            )
        if demand.dirty:
            self.room.refresh(demand)
        if self._is_hopeless(demand):
            return self._why_not(entry.wanted)
        if not demand.queue.waiting:
            demand.since_s = now_s
            self._active[demand] = None
        entry.demand = demand
        wanted = entry.wanted
        wanted.hold_equal(demand.wanted.requirements, demand.asked, entry.share.path if self._on.fair else wanted.share)
        entry.branch = demand.queue.push(entry.share, (entry.order, entry.id))
        self.waiting += 1
        return None

    def known(self, entry: Entry) -> None:
        """It is to be counted as one of its like, though it did not wait."""
        if entry.demand is None:
            entry.demand = self._demand(entry.wanted, ()) or self._demand_of(entry.wanted, ())
            entry.share = self.share_of(entry.wanted)

    def reordered(self, entry: Entry, order: float) -> None:
        """Its turn comes sooner."""
        entry.order = order
        if entry.branch is not None:
            for branch in (entry.branch, *(entry.also or ())):
                branch.add((order, entry.id))

    # Equal actions, wanted in several shares.

    def may_hold(self, wanted: Wanted, path: Path) -> bool:
        """Whether the quotas of a share can ever let it run there."""
        share = self.shares.leaf(path)
        holds = self.shares.too_much(share, self._cpu_milli(wanted)) is None
        self.shares.forget(share)
        return holds

    def wait_too(self, entry: Entry, path: Path) -> None:
        """What waits does so in this share too, and begins in that whose turn comes first."""
        demand, share = entry.demand, self.shares.leaf(path)
        assert demand is not None
        known = share.branches.get(demand.queue)
        if known is not None and entry.waits_in(known):
            return
        self.shares.wait(share)
        if entry.also is None:
            entry.also = {}
        entry.also[demand.queue.push(share, (entry.order, entry.id))] = None

    def abandoned(self, entry: Entry, path: Path, others: list[Path]) -> None:
        """Nobody of this share wants it any more, but those of others do: it waits, or is counted, there alone."""
        if entry.branch is not None:
            self._wait_less(entry, path)
        elif entry.share.path != path or entry.state == "publishing":
            return
        elif entry.attempt is not None:
            if entry.attempt.sending:
                # It is counted nowhere any more.
                return
            for other in others:
                if self._moved(entry, entry.attempt, other):
                    return
        else:
            was, entry.share = entry.share, self.share_of(entry.wanted)
            if entry.state == "looking":
                self.shares.wait(entry.share)
                self.shares.go(was)
            self.shares.forget(was)

    def _wait_less(self, entry: Entry, path: Path) -> None:
        demand, also = entry.demand, entry.also
        assert demand is not None
        assert also is not None, "it waits in another share"
        branch = self.shares.leaf(path).branches[demand.queue]
        if branch is entry.branch:
            self._count_in(entry, next(iter(also)))
        del also[branch]
        self._quit(branch, entry)

    def _count_in(self, entry: Entry, branch: Branch) -> None:
        """Of those in which it waits, this is the one in whose share it is to run."""
        also, was = entry.also, entry.branch
        assert also is not None
        assert was is not None
        del also[branch]
        also[was] = None
        entry.branch, entry.share = branch, branch.share

    def _quit(self, branch: Branch, entry: Entry) -> None:
        share = branch.share
        branch.queue.removed(branch, entry.id)
        self.shares.go(share)
        self.shares.forget(share)

    def _moved(self, entry: Entry, attempt: Attempt, path: Path) -> bool:
        """What runs is counted in this share from now on, if its quotas let; whether they do."""
        demand, was, share = entry.demand, entry.share, self.shares.leaf(path)
        assert demand is not None
        cost, cpu_milli = demand.cost, demand.cpu_milli
        moves = entry.second is None and all(above in was.counted or above.admits(cpu_milli) for above in share.counted)
        if moves:
            entry.share = share
            self.shares.take(share, cost, attempt.charge, cpu_milli)
            self.shares.give_back(was, cost, attempt.charge, cpu_milli)
        self.shares.forget(was if moves else share)
        return moves

    # What waits no more.

    def leave(self, entry: Entry) -> None:
        """It waits no more."""
        branch, entry.branch = entry.branch, None
        if branch is not None:
            self._left(branch, entry)

    def _left(self, branch: Branch, entry: Entry) -> None:
        self.waiting -= 1
        demand = entry.demand
        assert demand is not None
        queue = demand.queue
        queue.removed(branch, entry.id)
        self.shares.go(entry.share)
        if entry.also is not None:
            also, entry.also = entry.also, None
            for other in also:
                self._quit(other, entry)
        if not queue.root.waiting:
            self._active.pop(demand, None)
            self.room.let_go(demand)

    def _demand(self, wanted: Wanted, avoid: tuple[str, ...]) -> Demand | None:
        key = (wanted.requirements, wanted.asked, wanted.pinned, avoid)
        found = self._demands.get(key)
        if found is not None:
            return found
        if len(self._demands) >= DEMANDS_MAX:
            idle = next((known for known, demand in self._demands.items() if not demand.queue.waiting), None)
            if idle is not None:
                del self._demands[idle]
            elif not avoid:
                return None
        found = self._demands[key] = self._demand_of(wanted, avoid)
        if avoid:
            # Each loss makes one: who offers what it requires is known of those of its like.
            self.room.refresh(found, self._demands.get((wanted.requirements, wanted.asked, wanted.pinned, ())))
        return found

    def _demand_of(self, wanted: Wanted, avoid: tuple[str, ...]) -> Demand:
        cpu_milli = self._cpu_milli(wanted)
        queue = FairQueue(self.shares.root, cpu_milli, self._entries)
        return Demand((wanted.requirements, wanted.asked, wanted.pinned, avoid), wanted, cpu_milli, queue)

    # Who may run it.

    def joined(self, offer: WorkerOffer, *, cordoned: bool) -> Worker:
        """A worker is there."""
        self._absent.pop(offer.node, None)
        self.resources_changed()
        return self.room.join(offer, cordoned=cordoned, demands=self._demands.values())

    def left(self, worker: Worker, now_s: float, *, may_return: bool) -> None:
        """A worker is gone; what it offered counts as offered for a while, if it may return."""
        self.room.leave(worker, self._demands.values())
        if may_return:
            # At the end: they are in the order in which they are given up.
            self._absent.pop(worker.node, None)
            self._absent[worker.node] = (worker.offer, now_s + self.limits.absent_worker_s)

    def expect_workers(self, now_s: float) -> None:
        """Who could run what an earlier controller accepted may not be back yet: nothing is hopeless for a while."""
        self._unknown_until_s = now_s + self.limits.absent_worker_s

    def first_gone_s(self) -> float | None:
        """When the next absent worker is given up."""
        first_s = next((until_s for _, until_s in self._absent.values()), None)
        unknown_s = self._unknown_until_s
        if first_s is None or unknown_s is None:
            return unknown_s if first_s is None else first_s
        return min(first_s, unknown_s)

    def give_up(self, now_s: float) -> bool:
        """Forget absent workers that did not return in time; whether there were any."""
        gone = [node for node, (_, until_s) in self._absent.items() if until_s <= now_s]
        for node in gone:
            del self._absent[node]
        over = self._unknown_until_s is not None and self._unknown_until_s <= now_s
        if over:
            self._unknown_until_s = None
        return bool(gone) or over

    def closed_or_opened(self, worker: Worker) -> None:
        """A worker is given work, or none, from now on."""
        if not worker.is_open:
            for demand in self._active:
                if demand.held & worker.bit:
                    self.room.let_go(demand)
        self.room.changed(worker)

    def resources_changed(self) -> None:
        """Constraints may be met by others than before."""
        for demand in self._demands.values():
            demand.dirty |= bool(demand.wanted.constraints)

    def hopeless(self) -> Iterator[tuple[int, Outcome]]:
        """Entries that no worker that is here, or may return, can run; to be asked when that may have changed."""
        for demand in list(self._active):
            if demand.dirty:
                self.room.refresh(demand)
            if self._is_hopeless(demand):
                outcome = self._why_not(demand.wanted)
                for number in sorted({ticket[1] for ticket in demand.queue.tickets()}):
                    yield number, outcome

    def _is_hopeless(self, demand: Demand) -> bool:
        if demand.able or demand.unknown or not self.room.workers or self._unknown_until_s is not None:
            return False
        # What cannot be told yet may turn out to be met.
        absent = [offer for offer, _ in self._absent.values()]
        return all(matches(demand.wanted, offer, self._resources) is False for offer in absent)

    def _why_not(self, wanted: Wanted) -> Outcome:
        return why_not(wanted, [worker.offer for worker in self.room.workers.values()], self._resources)

    # Decisions.

    def next(self, now_s: float) -> tuple[Entry, Worker] | None:
        """The entry that begins next, and where; None when nothing can begin now."""
        room, overdue_s = self.room, now_s - self._hold_after_s
        passed: tuple[Demand, ...] = ()
        while is_open := room.open:
            roots = []
            for demand in self._active:
                if demand.dirty:
                    room.refresh(demand)
                # As in Placement.choose: this is asked of every demand for every decision.
                mask = demand.roomy & is_open
                if mask and room.held:
                    mask &= demand.held | ~room.held
                if mask and room.is_full_for(demand, mask):
                    mask = 0
                # One that fits nowhere and has waited long is to have a worker kept free.
                if not mask and (overdue_s < demand.since_s or not self._is_overdue(demand, now_s)):
                    continue
                if not passed or demand not in passed:
                    roots.append(demand.root)
            branch = fairest(roots)
            if branch is None:
                return None
            entry = self._entries[branch.ticket()[1]]
            chosen = entry.demand
            assert chosen is not None
            near = entry.wanted.near
            worker = room.choose(chosen, near)
            if worker is not None:
                if near:
                    entry = self._nearer(branch, entry, worker, now_s)
                if entry.branch is not branch:
                    self._count_in(entry, branch)
                return entry, worker
            if not self._is_overdue(chosen, now_s) or not room.hold(chosen):
                passed += (chosen,)
        return None

    def _is_overdue(self, demand: Demand, now_s: float) -> bool:
        waits = not demand.held and now_s - self._hold_after_s >= demand.since_s
        return waits and self._on.hold and bool(demand.able)

    def _nearer(self, branch: Branch, head: Entry, worker: Worker, now_s: float) -> Entry:
        """The head, or one just behind it of the same priority whose inputs the worker has, while the head can wait."""
        near = head.wanted.near
        if branch.waiting == 1 or self.room.is_near(worker, near):
            return head
        if now_s >= head.order - bounded(head.wanted.priority) * self.limits.age_s + self.limits.near_wait_s:
            return head
        own = self._entries.get(worker.ahead)
        if own is not None and own.branch is branch and own.wanted.priority == head.wanted.priority:
            return own
        for ticket in branch.next_tickets(_NEAR_LOOKED_AT):
            entry = self._entries.get(ticket[1])
            if (
                entry is not None
                and branch.queue.is_good(ticket, branch)
                and entry.wanted.priority == head.wanted.priority
                and self.room.is_near(worker, entry.wanted.near)
            ):
                return entry
        return head

    def ahead(self, worker: Worker) -> Entry | None:
        """What is likely to begin next on a worker without room for it, so that it may fetch the inputs meanwhile: told
        of each entry once, and to each worker while it has no other. It is no promise: whoever is free first has it.
        """
        if not self.waiting or not worker.is_open:
            return None
        told = self._entries.get(worker.ahead)
        if told is not None and told.branch is not None:
            return None
        has_room = worker.bit & self.room.open
        branch = fairest([d.root for d in self._active if d.able & worker.bit and not d.roomy & has_room])
        if branch is None:
            return None
        for ticket in (branch.ticket(), *branch.next_tickets(_AHEAD_LOOKED_AT)):
            entry = self._entries.get(ticket[1])
            if entry is None or entry.foretold or not branch.queue.is_good(ticket, branch):
                continue
            near = entry.wanted.near
            if near and not self.room.is_near(worker, near):
                entry.foretold, worker.ahead = True, entry.id
                self.room.remember(worker, near)
                return entry
        return None

    def begun(self, entry: Entry, worker: Worker, fence: int, reserved: Amounts, now_s: float) -> int:
        """It runs there under this fence, and waits no more; returns its charge, which `ended` is given back."""
        demand, wanted = entry.demand, entry.wanted
        assert demand is not None
        cost = demand.cost
        charge = weighed(cost, wanted.priority) if wanted.priority else cost
        demand.since_s = now_s
        if demand.held:
            self.room.let_go(demand)
        branch = entry.branch
        if branch is not None:
            entry.branch = None
            self._left(branch, entry)
        self.shares.take(entry.share, cost, charge, demand.cpu_milli)
        self.room.take(worker, fence, reserved, demand, wanted.near)
        return charge

    def ended(self, attempt: Attempt) -> None:
        """It runs no more; its worker may be gone."""
        entry, worker = attempt.entry, attempt.worker
        demand = entry.demand
        assert demand is not None
        if not attempt.sending:
            self.shares.give_back(entry.share, demand.cost, attempt.charge, demand.cpu_milli)
        if worker is None or worker.gone:
            return
        if attempt.sending:
            self.room.sent(worker, attempt.fence, attempt.lease.reserved)
        else:
            self.room.give_back(worker, attempt.fence, attempt.lease.reserved, demand)
        while worker.to_send and worker.sending < worker.slots:
            after = worker.to_send.popleft()
            if after.fence in worker.fences:
                self._send(after, worker)

    def command_ended(self, attempt: Attempt) -> None:
        """Its command runs no more: what that took is free, once fewer of its worker send than that has slots."""
        worker = attempt.worker
        if worker is None or worker.gone or attempt.ended:
            return
        attempt.ended = True
        if worker.sending < worker.slots:
            self._send(attempt, worker)
        else:
            worker.to_send.append(attempt)

    def _send(self, attempt: Attempt, worker: Worker) -> None:
        entry, attempt.sending = attempt.entry, True
        demand = entry.demand
        assert demand is not None
        self.shares.give_back(entry.share, demand.cost, attempt.charge, demand.cpu_milli)
        self.room.command_ended(worker, attempt.fence, attempt.lease.reserved, demand)
