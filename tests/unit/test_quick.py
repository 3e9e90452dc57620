"""A quick value is what its dataclass was: equal, hashed, replaced, pickled, with slots and defaults."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from buildnet.model.action import ActionKey, Lease
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import EMPTY, Digest
from buildnet.model.quick import quick


@quick
@dataclass(frozen=True, slots=True, order=True)
class Quick:
    """What every kind of field is in."""

    name: str
    count: int = 3
    parts: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Guarded:
    """The same without."""

    name: str


def test_it_is_made_with_its_defaults_and_shares_no_mutable_one() -> None:
    one, other = Quick("a"), Quick("a")
    assert one == other
    assert (one.name, one.count, one.parts) == ("a", 3, [])
    assert one.parts is not other.parts
    assert Quick("a", count=4) > one
    assert repr(one) == "Quick(name='a', count=3, parts=[])"
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        Quick()  # type: ignore[call-arg]


def test_it_has_slots_and_is_replaced_and_pickled_as_before() -> None:
    one = Quick("a", 1, [2])
    assert replace(one, name="b") == Quick("b", 1, [2])
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.other = 1  # type: ignore[attr-defined]


def test_nothing_but_the_guard_at_run_time_is_gone() -> None:
    with pytest.raises(FrozenInstanceError):
        Guarded("a").name = "b"  # type: ignore[misc]
    assert Quick.__setattr__ is object.__setattr__


def test_keys_differ_where_their_hashes_may_not() -> None:
    one, other = Digest(EMPTY.hash, 0), Digest(EMPTY.hash, 1)
    assert one != other
    assert len({one: 1, other: 2, Digest(EMPTY.hash, 1): 3}) == 2
    assert len({ActionKey("", one), ActionKey("other", one), ActionKey("", Digest(EMPTY.hash, 0))}) == 2
    lease = Lease(1, ActionKey("", one), "w", 1, 1.0)
    assert lease == replace(lease, reserved=Amounts(0))
    assert lease.reserved is NOTHING
