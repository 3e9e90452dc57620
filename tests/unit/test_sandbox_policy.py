"""Declared effects to plans: enforced or refused, never weakened."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest, SandboxFailed
from buildnet.model.amounts import Amounts
from buildnet.sandbox.policy import (
    Isolation,
    Limits,
    Means,
    Plan,
    means_of,
    offered_effects,
    plan_of,
    search_path,
)

MEANS = {
    "namespaces": Means("namespaces", private_network=True, toolchain=("/usr",)),
    "process": Means("process", private_network=False, toolchain=("/usr",)),
}


def plan(*properties: tuple[str, str], isolation: str = "namespaces") -> Plan:
    return plan_of(["true"], [("A", "1")], frozenset(properties), MEANS[isolation], Limits(), 5.0)


def test_a_command_is_told_its_gpus_and_no_others() -> None:
    env = [("A", "1"), ("CUDA_VISIBLE_DEVICES", "7")]

    def told(gpus: tuple[int, ...] | None) -> tuple[dict[str, str], tuple[int, ...]]:
        made = plan_of(["true"], env, frozenset(), MEANS["process"], Limits(), 5.0, gpus=gpus)
        assert len(dict(made.env)) == len(made.env)
        return dict(made.env), made.gpus

    # A worker without gpus has nothing to say.
    assert told(None) == (dict(env), ())
    rest = {"A": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert told(()) == (rest | {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": ""}, ())
    assert told((0, 3)) == (rest | {"CUDA_VISIBLE_DEVICES": "0,3", "NVIDIA_VISIBLE_DEVICES": "0,3"}, (0, 3))


def test_in_a_dev_of_its_own_a_command_has_the_files_of_its_gpus_alone() -> None:
    there = frozenset(("null", "nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "dri"))
    means = replace(MEANS["namespaces"], devices=there, device_directory="/there")

    def told(means: Means, *gpus: int) -> tuple[list[str], list[str], str]:
        made = plan_of(["true"], [], frozenset(), means, Limits(), 5.0, gpus=gpus)
        sources, targets = zip(*made.devices, strict=True) if made.devices else ((), ())
        return list(sources), list(targets), dict(made.env)["CUDA_VISIBLE_DEVICES"]

    names = ["nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm"]
    assert told(means, 0, 2) == ([f"/there/{name}" for name in names], [f"/dev/{name}" for name in names], "0,1")
    assert told(means) == ([], [], "")
    # It sees the machine's.
    assert told(replace(means, isolation="process"), 0, 2) == ([], [], "0,2")


def test_no_network_unless_declared() -> None:
    assert not plan().network
    assert plan().assurance == "enforced"
    assert plan(("effect:network", "ambient")).network


def test_without_namespaces_the_default_is_only_advisory() -> None:
    assert plan(isolation="process").assurance == "advisory"
    assert plan(isolation="process").unenforced == {"network", "read"}
    whole = plan(("effect:network", "ambient"), ("effect:read", "ambient"), isolation="process")
    assert whole.assurance == "enforced"


def test_a_declared_effect_is_enforced_or_refused() -> None:
    assert plan(("effect:network", "none")).assurance == "enforced"
    with pytest.raises(SandboxFailed, match="effect:network=none cannot be enforced"):
        plan(("effect:network", "none"), isolation="process")
    with pytest.raises(SandboxFailed, match="effect:read=declared cannot be enforced"):
        plan(("effect:read", "declared"), isolation="process")
    with pytest.raises(SandboxFailed, match="another level of ambient"):
        plan(("effect:clock", "virtual"))


def test_it_reads_its_toolchain_unless_the_machine_is_declared() -> None:
    assert plan().shown == ("/usr",)
    assert plan(("effect:read", "ambient")).shown == ("/",)
    assert "/etc/resolv.conf" in plan(("effect:network", "ambient")).shown


def test_to_declare_writes_makes_them_strict() -> None:
    assert not plan().writes_are_strict
    assert not plan(("effect:write", "ambient")).writes_are_strict
    assert plan(("effect:write", "declared")).writes_are_strict
    assert plan(("effect:write", "declared"), isolation="process").assurance == "advisory"


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(1, 1 << 40))
def test_a_lease_lowers_limits_and_never_raises_them(memory: int, disk: int, own: int) -> None:
    limits = Limits(memory_bytes=own, disk_bytes=None).reserving(memory_bytes=memory, disk_bytes=disk)
    assert limits.memory_bytes == (min(memory, own) if memory else own)
    assert limits.disk_bytes == (disk or None)
    assert Limits(disk_bytes=own).reserving(disk_bytes=disk).disk_bytes == (min(disk, own) if disk else own)
    assert Limits().reserving(cpu_milli=250).cpu_milli == 250


@pytest.mark.parametrize(
    "properties",
    [
        [("effect:network", "off")],
        [("effect:teleport", "none")],
        [("effect:network", "none"), ("effect:network", "ambient")],
    ],
)
def test_what_is_no_effect_is_named(properties: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest, match="effect"):
        plan(*properties)


@pytest.mark.parametrize("isolation", ["namespaces", "process"])
def test_what_a_worker_offers_it_also_plans(isolation: str) -> None:
    for offer in offered_effects(MEANS[isolation]):
        assert plan(offer, isolation=isolation).effects[offer[0].removeprefix("effect:")] == offer[1]
    assert (("effect:network", "none") in offered_effects(MEANS[isolation])) == (isolation == "namespaces")


def test_namespaces_without_a_private_network_are_only_advisory() -> None:
    means = means_of({"namespaces": True, "network_namespace": False})
    assert plan_of(["a"], [], frozenset(), means, Limits(), 1.0).assurance == "advisory"
    assert ("effect:network", "none") not in offered_effects(means)


def test_no_command_gets_more_than_there_is() -> None:
    whole = Amounts(memory_bytes=100, disk_bytes=1000)
    assert (Limits().within(whole).memory_bytes, Limits().within(whole).disk_bytes) == (100, 1000)
    assert Limits(memory_bytes=50, disk_bytes=500).within(whole) == Limits(memory_bytes=50, disk_bytes=500)
    assert Limits(memory_bytes=500, disk_bytes=5000).within(whole) == Limits().within(whole)


@pytest.mark.parametrize("name", ["memory_bytes", "pids_max", "disk_bytes", "log_size_bytes_max"])
def test_limits_within_which_nothing_can_run_are_refused(name: str) -> None:
    for value in (0, -1, 1 << 60):
        with pytest.raises(InvalidRequest, match=name):
            Limits(**{name: value})


def test_the_environment_is_exactly_the_commands() -> None:
    assert plan().env == (("A", "1"),)


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        ([], []),
        ([""], []),
        (["a", "b\0c"], []),
        (["a"], [("", "x")]),
        (["a"], [("A=B", "x")]),
        (["a"], [("A", "x\0")]),
    ],
)
def test_what_no_process_can_be_given_is_refused(argv: list[str], env: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest):
        plan_of(argv, env, frozenset(), MEANS["namespaces"], Limits(), 1.0)


@pytest.mark.parametrize(
    ("namespaces", "wanted", "got"),
    [
        (True, None, "namespaces"),
        (False, None, "process"),
        (True, "process", "process"),
        (True, "namespaces", "namespaces"),
    ],
)
def test_the_strongest_isolation_is_taken(namespaces: bool, wanted: str | None, got: Isolation) -> None:
    probe = {"namespaces": namespaces, "network_namespace": True}
    assert means_of(probe, wanted, ("/usr",)) == MEANS[got]


def test_an_isolation_that_is_not_to_be_had_is_refused() -> None:
    with pytest.raises(SandboxFailed, match="namespaces"):
        means_of({"namespaces": False}, "namespaces")


def test_a_bare_name_is_looked_up_in_the_commands_own_path() -> None:
    assert search_path([("PATH", "/a::/b")]) == ("/a", ".", "/b")
    assert "/usr/bin" in search_path([("HOME", "/x")])


@given(
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3),
    st.frozensets(
        st.tuples(
            st.sampled_from(["effect:network", "effect:clock", "effect:x", "os"]),
            st.sampled_from(["none", "ambient", "virtual", ""]),
        ),
        max_size=3,
    ),
    st.sampled_from(["namespaces", "process"]),
)
def test_any_input_is_planned_or_refused_in_words(
    argv: list[str],
    env: list[tuple[str, str]],
    properties: frozenset[tuple[str, str]],
    isolation: str,
) -> None:
    with suppress(InvalidRequest, SandboxFailed):
        made = plan_of(argv, env, properties, MEANS[isolation], Limits(), 1.0)
        assert made.network == (("effect:network", "ambient") in properties)


STRICT = means_of({"namespaces": True, "network_namespace": True}, strict=True)


def test_a_strict_worker_takes_writes_for_declared() -> None:
    assert plan_of(["a"], [], frozenset(), STRICT, Limits(), 1.0).writes_are_strict
    assert not plan().writes_are_strict
    assert plan_of(["a"], [], frozenset(), STRICT, Limits(), 1.0).assurance == "enforced"


def test_a_strict_worker_refuses_and_does_not_offer_writes_anywhere() -> None:
    assert ("effect:write", "ambient") not in offered_effects(STRICT)
    assert ("effect:write", "declared") in offered_effects(STRICT)
    with pytest.raises(SandboxFailed, match="effect:write=ambient cannot be enforced"):
        plan_of(["a"], [], frozenset({("effect:write", "ambient")}), STRICT, Limits(), 1.0)


@pytest.mark.parametrize(
    ("probe", "wanted", "why"),
    [
        ({"namespaces": False}, None, "this kernel refuses"),
        ({"namespaces": True, "network_namespace": False}, None, "this kernel refuses"),
        ({"namespaces": True, "network_namespace": True}, "process", "told not to use"),
    ],
)
def test_a_strict_worker_does_not_start_where_it_would_have_to_trust(
    probe: dict[str, bool], wanted: str | None, why: str
) -> None:
    with pytest.raises(SandboxFailed, match=f"{why}.*without --strict"):
        means_of(probe, wanted, strict=True)
