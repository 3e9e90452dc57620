"""What a constraint means, and that no text breaks the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.catalog.constraint import TERMS_MAX, TEXT_BYTES_MAX, Term, compare_versions, parse, reasons
from buildnet.errors import InvalidRequest
from buildnet.model.resource import Resource, attributes_of

GCC = Resource("tool", "gcc", "12.2.0", (("path", "/usr/bin/gcc"),))
CPU = Resource("cpu", "cpu", attributes=attributes_of(arch="x86_64", cores=8, avx2=1))
GPU = Resource("gpu", "nvidia0", attributes=attributes_of(memory_bytes=8 << 30, driver="535.104.5"))
MEMORY = Resource("memory", "memory", attributes=attributes_of(size_bytes=64 << 30))
LISP = Resource("tool", "sbcl")
ALL = (GCC, CPU, GPU, MEMORY, LISP)


def met(text: str) -> bool:
    return all(any(term.holds(resource) for resource in ALL) for term in parse([text]))


@pytest.mark.parametrize(
    "text",
    [
        "gcc",
        "gcc>=12",
        "gcc >= 12.2",
        "gcc=12",
        "gcc==12.2.0",
        "gcc<13,gcc>11",
        "gcc!=11",
        "tool:gcc>=12",
        "arch=x86_64",
        "cpu.arch=x86_64",
        "cores>=8",
        "cpu.avx2",
        "gpu",
        "gpu.memory_bytes>=8GiB",
        "gpu.memory_bytes=8589934592",
        "gpu.driver>=535",
        "memory>=64GiB, memory<1.5TB",
        "cores>=7.5,cores<8.5",
        "cores>=-1",
        "cores!=8.5",
        "gpu.memory_bytes>=+1",
        "tool:sbcl",
    ],
)
def test_met(text: str) -> None:
    assert met(text)


@pytest.mark.parametrize(
    "text",
    [
        "gcc>12",
        "gcc>=12.2.1",
        "gcc<=11",
        "gcc!=12.2",
        "toolchain:gcc",
        "arch!=x86_64",
        "cpu.avx512f",
        "cores>8",
        "cores>=8.1",
        "cores<8.0",
        "cpu.cores!=eight",
        "gpu.memory_bytes>8GiB",
        "gpu.driver=535",
        "runtime",
        "sbcl>=1",
        "gcc>=12,clang",
        "cpu.arch>=7GiB",
        "GCC",
    ],
)
def test_not_met(text: str) -> None:
    assert not met(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a name"),
        ("gcc>=", "nothing follows"),
        (">=12", "is not a name"),
        ("gcc>=12,", "is not a name"),
        ("gcc>=>12", "holds an operator"),
        ("g cc", "is not a name"),
        ("gcc!12", "is not a name"),
        ("car:gcc", "no kind of resource"),
        ("tool:", "no name follows"),
        ("gpu>=2", "is a kind"),
        ("gpu.>=2", "is no attribute"),
        ("cores>=eight", "cores is a number"),
        ("memory>=8XB", "memory is a number"),
        ("gcc\n>=12", "cannot be printed"),
        ("gcc>=\x1b[31m", "cannot be printed"),
        ("a" * (TEXT_BYTES_MAX + 1), "over 1024 bytes"),
        (",".join(f"t{i}" for i in range(TERMS_MAX + 1)), "32 are the most"),
    ],
)
def test_what_is_not_a_constraint_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        parse([text])
    assert refused.value.fields["field"] == "require"


@pytest.mark.parametrize(
    ("version", "wanted", "order"),
    [
        ("12.2.0", "12", 0),
        ("12", "12.0.0", 0),
        ("12", "12.1", -1),
        ("9.4", "10", -1),
        ("1.10", "1.9", 1),
        ("v18.2", "18", 0),
        ("1.2-rc1", "1.2", 0),
        ("1.2-rc1", "1.2-rc2", -1),
        ("1.2", "1.2-rc2", -1),
        ("2.0", "1.2-rc2", 1),
        ("nightly", "1", -1),
        ("nightly", "nightly", 0),
        ("2026.11.27", "2026.11", 0),
    ],
)
def test_versions_are_compared_as_far_as_the_constraint_writes_them(version: str, wanted: str, order: int) -> None:
    assert compare_versions(version, wanted) == order


NUMBERS = st.lists(st.integers(0, 10**6), min_size=1, max_size=5)


@given(NUMBERS, NUMBERS)
def test_exactly_one_of_less_equal_and_more_holds(left: list[int], right: list[int]) -> None:
    resource = Resource("tool", "x", ".".join(map(str, left)))
    value = ".".join(map(str, right))
    assert sum(Term("", name="x", operator=operator, value=value).holds(resource) for operator in "<=>") == 1


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        terms = parse([text])
    except InvalidRequest:
        return
    assert terms
    # What was understood means the same when it is written anew.
    assert parse([term.text for term in terms]) == terms


@given(st.lists(st.sampled_from(["gcc>=12", "tool:clang", "gpu", "arch=x86_64", "cores<4"]), max_size=6))
def test_a_constraint_has_reasons_exactly_when_it_is_not_met(texts: list[str]) -> None:
    constraint = parse(texts)
    told = reasons(constraint, lambda term: (resource for resource in ALL if term.concerns(resource)))
    unmet = {term.text for term in constraint if not any(term.holds(resource) for resource in ALL)}
    assert {reason.split(": ")[0] for reason in told} <= unmet | {"tool"}
    assert len(told) == len(unmet)


def test_a_number_and_what_is_none_are_told_apart() -> None:
    assert reasons(parse(["gpu.memory_bytes>=8XB"]), lambda _: [GPU]) == (
        "gpu.memory_bytes>=8XB: gpu nvidia0 has memory_bytes 8589934592, a number, and '8XB' is none",
    )


def test_reasons_say_what_is_there_instead() -> None:
    constraint = parse(["gcc>=13", "tool:clang", "sbcl>2", "gpu.memory_bytes>=80GiB", "memory>=1TiB", "runtime"])
    told = reasons(constraint, lambda term: (resource for resource in ALL if term.concerns(resource)))
    assert told == (
        "gcc>=13: tool gcc is of version 12.2.0, not >=13",
        "tool:clang: no tool clang",
        "sbcl>2: the version of tool sbcl is not known",
        "gpu.memory_bytes>=80GiB: gpu nvidia0 has memory_bytes 8589934592, not >=80GiB",
        "memory>=1TiB: memory has size_bytes 68719476736, not >=1TiB",
        "runtime: no runtime at all",
    )
