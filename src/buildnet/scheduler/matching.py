"""Whether a worker offers what an action requires, and why no worker does, in words. Pure; it knows no queue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from buildnet.model.action import CONSTRAINT, TIER, Outcome, Wanted
from buildnet.model.amounts import NOTHING
from buildnet.model.node import WorkerOffer
from buildnet.model.tier import may_take, requires
from buildnet.ports import ResourceMatcher

_TOLD_MAX: Final = 5
_LESS: Final = "ask for less, or join a larger worker"
_NO_GPUS: Final = "gpus are given by workers without namespaces alone, so join one that has some, or ask for none"


class NoResources:
    """Workers that offer nothing beyond their properties."""

    def meets(self, node: str, constraints: tuple[str, ...]) -> bool | None:
        """See ports.ResourceMatcher."""
        return False

    def why_not(self, constraints: tuple[str, ...]) -> str:
        """See ports.ResourceMatcher."""
        return "no worker announces resources"


NO_RESOURCES: Final = NoResources()


def matches(wanted: Wanted, offer: WorkerOffer, resources: ResourceMatcher = NO_RESOURCES) -> bool | None:
    """Whether the worker offers every required name and value (REAPI Platform: all must hold); None while unknown.

    `tier` is the least trust that the controller must have in the worker, whatever the worker says of itself, `trusted`
    unless it is named; `require`, which may come several times, is a constraint on its resources. What is asked must
    fit a worker that runs nothing.
    """
    if wanted.pinned and wanted.pinned != offer.node:
        return False
    if not offer.gives(wanted.asked):
        return False
    if not may_take(offer.tier, requires(wanted.requirements)):
        return False
    constrained = False
    for name, value in wanted.requirements:
        if name == CONSTRAINT:
            constrained = True
        elif name != TIER and (name, value) not in offer.properties:
            return False
    return resources.meets(offer.node, wanted.constraints) if constrained else True


def why_not(wanted: Wanted, offers: list[WorkerOffer], resources: ResourceMatcher) -> Outcome:
    """For people: why none of the workers that joined may run it."""
    return Outcome("no_capable_worker", None, _words_of(wanted, offers, resources))


def _words_of(wanted: Wanted, offers: list[WorkerOffer], resources: ResourceMatcher) -> str:
    none = f"none of the {len(offers)} workers that joined"
    if wanted.pinned:
        is_here = any(offer.node == wanted.pinned for offer in offers)
        why = "does not offer what it requires" if is_here else "has not joined"
        return f"the worker {wanted.pinned}, on which the action is to run, {why}; see `buildnet fleet ls`"
    plain = Wanted(wanted.key, wanted.requirements, wanted.timeout_s)
    if wanted.asked != NOTHING and any(matches(plain, offer, resources) is not False for offer in offers):
        less = _NO_GPUS if wanted.asked.gpus and not any(o.capacity and o.capacity.gpus for o in offers) else _LESS
        if any(offer.action_max != NOTHING for offer in offers):
            less += ", or raise its --memory-max or --disk-max"
        return f"{none} has {wanted.asked.text}: {'; '.join(_capacities(offers))}; {less}"
    tier = requires(wanted.requirements)
    trusted = [offer for offer in offers if may_take(offer.tier, tier)]
    if offers and not trusted:
        tiers = ", ".join(sorted({offer.tier for offer in offers}))
        remedy = (
            "join one, see `buildnet fleet tier`, or ask as a caller in a namespace, for whom untrusted nodes work too"
            if tier == "trusted"
            else "ask for `trusted`, or start the controller with a worker of its own"
        )
        return f"{none} is of the tier {tier} or above ({tiers}); {remedy}"
    offered = frozenset[tuple[str, str]]().union(*[offer.properties for offer in trusted])
    required = frozenset((name, value) for name, value in wanted.requirements if name not in (CONSTRAINT, TIER))
    unmet = sorted(required - offered)
    if not unmet and wanted.constraints:
        return (
            f"{none} meets {', '.join(wanted.constraints)} ({resources.why_not(wanted.constraints)}); "
            "ask `buildnet resources explain`, or join a worker that does"
        )
    words = ", ".join(f"{name}={value}" for name, value in unmet or sorted(required))
    return f"{none} offers {words}; change the action's platform properties, or join a worker that does"


def _capacities(offers: list[WorkerOffer]) -> Iterator[str]:
    for offer in sorted(offers, key=lambda offer: offer.node)[:_TOLD_MAX]:
        capacity = offer.capacity
        each = f" and gives one action {offer.action_max.text}" if offer.action_max != NOTHING else ""
        yield f"{offer.node[:12]} has {capacity.text if capacity is not None else 'not told'}{each}"
    if len(offers) > _TOLD_MAX:
        yield f"and {len(offers) - _TOLD_MAX} more"
