"""What bounds the scheduler, how it weighs who waits, and what it does by which mechanism: values, no behaviour.

They stay Python where the core is compiled (`compiled.py`): the core reads them, and makes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ROOT: Final = 0
ORGANISATION: Final = 1
USER: Final = 2
INVOCATION: Final = 3


@dataclass(frozen=True, slots=True)
class Quota:
    """What one organisation or user gets: its weight among its like, and what it may not pass; None is no bound.

    `queued_max` counts actions that wait, `actions_max` and `cpu_milli_max` what runs at once.
    """

    weight: int = 1
    actions_max: int | None = None
    cpu_milli_max: int | None = None
    queued_max: int | None = None


NO_QUOTA: Final = Quota()

EVERYBODY: Final = "*"
"""The name under which the quota of all who have none of their own stands."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Quotas by the name of the organisation, and by the name of the user."""

    organisations: Mapping[str, Quota] = field(default_factory=dict)
    users: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, depth: int, name: str) -> Quota:
        """The quota of one, or of everybody, or none."""
        named = self.organisations if depth == ORGANISATION else self.users if depth == USER else {}
        return named.get(name) or named.get(EVERYBODY) or NO_QUOTA


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the scheduler. `attempts_max` counts assignments of one entry, whoever ended them; `losses_max` those
    whose worker was lost, `faults_max` those that the worker could not carry out.

    A lease of an earlier controller waits `return_s` for its worker. With `speculate`, what runs `straggler_factor`
    times as long as its like, and `straggler_min_s` at least, is tried on a second worker too.

    An action that asks for no cpus counts `default_cpu_milli` in its share. One of priority p waits like one of
    priority 0 that came p times `age_s` later. What waits for `hold_after_s` with room nowhere has a worker kept free.
    Who has waited for `near_wait_s` is not passed by for the sake of another's inputs. What a lost worker offered
    counts as offered for `absent_worker_s` more: it may return.
    """

    queue_length_max: int = 100_000
    attempts_max: int = 8
    losses_max: int = 5
    faults_max: int = 3
    lease_s: float = 4.0
    publications_max: int = 2
    return_s: float = 15.0
    speculate: bool = False
    straggler_factor: float = 3.0
    straggler_min_s: float = 30.0
    default_cpu_milli: int = 1000
    age_s: float = 10.0
    hold_after_s: float = 10.0
    near_wait_s: float = 2.0
    absent_worker_s: float = 60.0
    quotas: Quotas = field(default_factory=Quotas)


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """Switched off one at a time by the explorer; production never passes another than the default."""

    join: bool = True
    look_again: bool = True
    fence: bool = True
    requeue: bool = True
    settle: bool = True
    adopt: bool = True
    stop_loser: bool = True
    fair: bool = True
    fits: bool = True
    hold: bool = True
    age: bool = True
    quota: bool = True
    elsewhere: bool = True
    inherit: bool = True
