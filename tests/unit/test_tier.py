"""Trust in order: who is trusted more may do what asks for less; what is everybody's is never an untrusted node's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest
from buildnet.model.action import ActionKey, Wanted
from buildnet.model.caller import Caller, is_apart
from buildnet.model.digest import EMPTY
from buildnet.model.node import WorkerOffer
from buildnet.model.tier import GIVEN, TIERS, requires, tier_of, tiered
from buildnet.scheduler.matching import matches

LINUX = frozenset({("os", "linux")})
EVERYBODYS = Caller().written("main")
APART = Caller(namespace="pr").written("main")


def takers(asked: tuple[str, ...], instance: str) -> str:
    requirements = tiered(LINUX | {("tier", tier) for tier in asked}, apart=is_apart(instance))
    wanted = Wanted(ActionKey(instance, EMPTY), requirements, 10.0)
    return "".join(tier[0] for tier in TIERS if matches(wanted, WorkerOffer(tier, "b", 1, LINUX, tier)))


@pytest.mark.parametrize(
    ("asked", "everybodys", "apart"),
    [
        ((), "tl", "utl"),
        (("untrusted",), "tl", "utl"),
        (("trusted",), "tl", "tl"),
        (("local",), "l", "l"),
        (("trusted", "local"), "l", "l"),
    ],
)
def test_who_may_take_what(asked: tuple[str, ...], everybodys: str, apart: str) -> None:
    assert (takers(asked, EVERYBODYS), takers(asked, APART)) == (everybodys, apart)


@given(st.sets(st.sampled_from(TIERS)), st.text(max_size=3), st.sampled_from(["", "pr"]))
def test_only_what_is_apart_may_do_with_an_untrusted_node(asked: set[str], instance: str, namespace: str) -> None:
    written = Caller(namespace=namespace).written(instance.replace("\x01", ""))
    requirements = tiered(frozenset(("tier", tier) for tier in asked), apart=is_apart(written))
    assert is_apart(written) == bool(namespace)
    assert requires(requirements) != "untrusted" or namespace
    assert tiered(requirements, apart=is_apart(written)) == requirements


def test_a_worker_cannot_offer_its_own_trust() -> None:
    boasting = WorkerOffer("v", "b", 1, LINUX | {("tier", "trusted"), ("tier", "local")}, "untrusted")
    assert matches(Wanted(ActionKey("", EMPTY), LINUX, 10.0), boasting) is False


@pytest.mark.parametrize("wrong", ["", "Trusted", "secret", "tr\nusted"])
def test_what_is_no_tier_is_refused_with_those_that_are(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="untrusted, trusted, local") as refused:
        tiered(frozenset({("tier", wrong)}), apart=True)
    assert refused.value.fields["field"] == "tier"
    with pytest.raises(InvalidRequest, match=r"there are untrusted, trusted$"):
        tier_of("local", "tier", GIVEN)
