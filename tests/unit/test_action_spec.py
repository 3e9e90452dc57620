"""A spec has one canonical form; what changes its meaning changes its digest, and nothing else does."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest, TooLarge
from buildnet.model import action_spec
from buildnet.model.action_spec import ActionSpec, FileInput, OutputInput, TreeInput, is_ours, spec_of
from buildnet.model.amounts import Amounts, decimal_of_milli
from buildnet.model.digest import Digest
from buildnet.model.effect import EFFECTS, Effect
from buildnet.model.tier import TIERS
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.action_spec import lower, message_of_spec, spec_of_message
from buildnet.wire.input_tree import compose

GOLDEN = Path(__file__).parent.parent / "golden" / "action_spec.json"
ROOT = Digest.of(b"")
TEXT = st.sampled_from(["", "a", "b", "a b", "-c", "é", "\n", "=", "ab"])
NAME = st.sampled_from(["a", "b", "c", "ab", "bc"])
PATH = st.sampled_from(["a", "b", "a/b", "ab/c", "b/a/c"])
DIGESTS = st.sampled_from([Digest.of(b""), Digest.of(b"a")])
FEW = settings(max_examples=25)


@st.composite
def specs(draw: st.DrawFn) -> ActionSpec:
    variables = draw(st.dictionaries(NAME, TEXT, max_size=3))
    secrets = draw(st.dictionaries(NAME.filter(lambda name: name not in variables), NAME, max_size=2))
    effects = draw(st.dictionaries(st.sampled_from(sorted(EFFECTS)), st.just("ambient"), max_size=3))
    if draw(st.booleans()):
        effects["network"] = f"budgeted:{draw(st.integers(1, 10**15))}"
    amounts = st.integers(0, 1024)
    inputs = st.one_of(
        st.builds(TreeInput, PATH, DIGESTS),
        st.builds(FileInput, PATH, DIGESTS, st.booleans()),
        st.builds(OutputInput, PATH, NAME, PATH),
    )
    return spec_of(
        draw(st.lists(TEXT.filter(bool), min_size=1, max_size=3)),
        inputs=draw(st.lists(inputs, max_size=3)),
        variables=variables,
        tier=draw(st.sampled_from(["", *TIERS])),
        working_directory=draw(st.one_of(st.just(""), PATH)),
        outputs=draw(st.lists(PATH, max_size=3)),
        effects=effects,
        resources=draw(st.builds(Amounts, amounts, amounts, amounts, amounts)),
        constraints=draw(st.lists(NAME, max_size=2)),
        platform=draw(st.lists(st.tuples(st.sampled_from(["OSFamily", "ISA"]), NAME), max_size=2)),
        secrets=secrets,
        timeout_s=draw(st.one_of(st.none(), st.integers(1, 7 * 86_400).map(float))),
        do_not_cache=draw(st.booleans()),
        salt=draw(st.binary(max_size=4)),
        priority=draw(st.integers(-5, 5)),
    )


@FEW
@given(specs())
def test_a_message_gives_its_spec_back(spec: ActionSpec) -> None:
    message = message_of_spec(spec)
    back = spec_of_message(action_pb2.ActionSpec.FromString(message.SerializeToString()))
    assert back == spec
    assert back.priority == spec.priority


@FEW
@given(specs(), st.randoms(use_true_random=False))
def test_order_and_repetition_mean_nothing(spec: ActionSpec, random: Any) -> None:
    def mixed(items: Any) -> list[Any]:
        found = [*items, *items]
        random.shuffle(found)
        return found

    again = spec_of(
        spec.arguments,
        inputs=mixed(spec.inputs),
        variables=dict(mixed(spec.variables)),
        working_directory=spec.working_directory,
        outputs=mixed(spec.outputs),
        effects=dict(mixed((effect.name, effect.text) for effect in list(spec.effects))) if spec.effects else {},
        resources=spec.resources,
        constraints=mixed(spec.constraints),
        platform=mixed(spec.platform),
        secrets=dict(mixed(spec.secrets)),
        tier=spec.tier,
        timeout_s=spec.timeout_s,
        do_not_cache=spec.do_not_cache,
        salt=spec.salt,
    )
    assert lower(again, ROOT) == lower(spec, ROOT)


def meaning(spec: ActionSpec) -> ActionSpec:
    """What is lowered without the inputs, which are in the root."""
    return replace(spec, inputs=())


@FEW
@given(specs(), specs())
def test_equal_digests_are_of_equal_specs(one: ActionSpec, other: ActionSpec) -> None:
    assert (lower(one, ROOT) == lower(other, ROOT)) == (meaning(one) == meaning(other))


BASE = spec_of(
    ["gcc", "-c", "a.c"],
    variables={"PATH": "/usr/bin", "LANG": "C"},
    outputs=["a.o"],
    effects={"network": "none"},
    resources=Amounts(cpu_milli=1500),
    constraints=["gcc>=12"],
    platform=[("OSFamily", "linux")],
    secrets={"TOKEN": "ci/token"},
    timeout_s=60,
)
CHANGES: dict[str, dict[str, Any]] = {
    "argument": {"arguments": ("gcc", "-c", "b.c")},
    "split argument": {"arguments": ("gcc", "-c a.c")},
    "order of arguments": {"arguments": ("gcc", "a.c", "-c")},
    "variable": {"variables": (("LANG", "C.UTF-8"), ("PATH", "/usr/bin"))},
    "no variable": {"variables": ()},
    "directory": {"working_directory": "sub"},
    "output": {"outputs": ("b.o",)},
    "effect": {"effects": (Effect("network", "ambient"),)},
    "budget": {"effects": (Effect("network", "budgeted", 10),)},
    "no effect": {"effects": ()},
    "cpus": {"resources": Amounts(cpu_milli=2000)},
    "memory": {"resources": Amounts(1500, memory_bytes=1 << 30)},
    "disk": {"resources": Amounts(1500, disk_bytes=1 << 30)},
    "gpus": {"resources": Amounts(1500, gpus=1)},
    "constraint": {"constraints": ("gcc>=13",)},
    "platform": {"platform": (("OSFamily", "windows"),)},
    "secret's variable": {"secrets": (("KEY", "ci/token"),)},
    "secret's reference": {"secrets": (("TOKEN", "ci/other"),)},
    "timeout": {"timeout_s": 61.0},
    "timeout of less than a second": {"timeout_s": 60.000001},
    "no timeout": {"timeout_s": None},
    "caching": {"do_not_cache": True},
    "salt": {"salt": b"1"},
    "tier": {"tier": "local"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_meaning_changes_the_digest(change: str) -> None:
    digests = {lower(replace(BASE, **changed), ROOT).digest for changed in CHANGES.values()}
    assert lower(replace(BASE, **CHANGES[change]), ROOT).digest != lower(BASE, ROOT).digest
    assert len(digests) == len(CHANGES), "and every change changes it otherwise"


def test_an_input_changes_the_digest_and_a_priority_does_not() -> None:
    assert lower(BASE, Digest.of(b"x")).digest != lower(BASE, ROOT).digest
    assert lower(replace(BASE, priority=7), ROOT) == lower(BASE, ROOT)


def test_a_pin_is_the_constraint_that_it_stands_for() -> None:
    pinned = spec_of(["cc"], pins={"gcc": "12.2"})
    assert pinned == spec_of(["cc"], constraints=["tool:gcc=12.2"])
    assert ("require", "tool:gcc=12.2") in pinned.properties()


def test_amounts_are_written_in_one_way() -> None:
    assert [decimal_of_milli(milli) for milli in (1, 10, 100, 1000, 1500, 1050, 12000)] == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "1.5",
        "1.05",
        "12",
    ]
    asked = Amounts(1500, 1 << 30, 5, 2).properties()
    assert asked == tuple(sorted(asked)), "as REAPI sorts them"
    assert dict(asked) == {
        "resource:cpus": "1.5",
        "resource:memory_bytes": "1073741824",
        "resource:disk_bytes": "5",
        "resource:gpus": "2",
    }


def test_a_written_secret_is_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as told:
        spec_of(["sh"], secrets={"TOKEN": "hunter2 is secret!"})
    assert "hunter2" not in told.value.message
    assert told.value.fields["field"] == "secrets"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to run": ({"arguments": []}, "arguments"),
    "an empty program": ({"arguments": [""]}, "arguments"),
    "NUL": ({"arguments": ["a\0b"]}, "arguments"),
    "a name that the system gave undecoded": ({"arguments": ["a\udcff"]}, "arguments"),
    "a variable with =": ({"variables": {"A=B": "1"}}, "variables"),
    "an absolute output": ({"outputs": ["/etc/passwd"]}, "outputs"),
    "an output above": ({"outputs": ["../x"]}, "outputs"),
    "a crooked output": ({"outputs": ["a//b"]}, "outputs"),
    "a long path": ({"outputs": ["a/" * 3000 + "a"]}, "outputs"),
    "a long name": ({"outputs": ["a" * 256]}, "outputs"),
    "a file as root": ({"inputs": [FileInput("", ROOT)]}, "inputs"),
    "an input above": ({"inputs": [TreeInput("..", ROOT)]}, "inputs"),
    "an output of nobody": ({"inputs": [OutputInput("a", "", "b")]}, "inputs"),
    "a directory above": ({"working_directory": "a/.."}, "working_directory"),
    "an unknown effect": ({"effects": {"gravity": "none"}}, "effects"),
    "an unknown level": ({"effects": {"network": "some"}}, "effects"),
    "a level of another effect": ({"effects": {"network": "virtual"}}, "effects"),
    "a budget of nothing": ({"effects": {"network": "budgeted:0"}}, "effects"),
    "a budget without an amount": ({"effects": {"network": "budgeted"}}, "effects"),
    "no timeout": ({"timeout_s": 0.0}, "timeout"),
    "too long for any controller": ({"timeout_s": 7 * 86_400 + 1.0}, "timeout"),
    "a negative amount": ({"resources": Amounts(-1)}, "resources"),
    "cpus that the scheduler would refuse": ({"resources": Amounts(10**9)}, "resources"),
    "memory that the scheduler would refuse": ({"resources": Amounts(0, (1 << 50) + 1)}, "resources"),
    "gpus that the scheduler would refuse": ({"resources": Amounts(gpus=1025)}, "resources"),
    "a pin that is a constraint": ({"pins": {"gcc": ">=12"}}, "pins"),
    "an effect as a property": ({"platform": [("effect:network", "ambient")]}, "platform"),
    "a resource as a property": ({"platform": [("resource:cpus", "1")]}, "platform"),
    "a constraint as a property": ({"platform": [("require", "gcc")]}, "platform"),
    "a secret with a value": ({"secrets": {"A": "b"}, "variables": {"A": "c"}}, "secrets"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant_is_refused_with_its_field(wrong: str) -> None:
    given_, field = WRONG[wrong]
    with pytest.raises(InvalidRequest) as told:
        spec_of(**{"arguments": ["true"], **given_})
    assert told.value.fields["field"] == field


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_spec, "ITEMS_MAX", 100)
    with pytest.raises(TooLarge):
        spec_of(["true"], salt=bytes(257))
    with pytest.raises(TooLarge):
        spec_of(["true"], outputs=map(str, range(101)))


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_refused(data: bytes) -> None:
    with suppress(DecodeError):
        message = action_pb2.ActionSpec.FromString(data)
        with suppress(InvalidRequest, TooLarge):
            spec = spec_of_message(message)
            assert spec_of_message(message_of_spec(spec)) == spec


def test_which_properties_are_ours() -> None:
    ours = [name for name, _ in BASE.properties() if is_ours(name)]
    # An action that names a secret must not run without it.
    assert ours == ["effect:network", "require", "resource:cpus", "secret:TOKEN"]
    assert is_ours("tier")


def test_a_budget_is_more_than_what_is_declared_and_less_than_all() -> None:
    none, little, much, everything = (
        Effect.parse("effect:network", level) for level in ("none", "budgeted:10", "budgeted:20", "ambient")
    )
    order = [none, little, much, everything]
    for lower_, higher in ((a, b) for i, a in enumerate(order) for b in order[i + 1 :]):
        assert higher.allows(lower_)
        assert not lower_.allows(higher)
    assert not Effect("clock", "ambient").allows(none)
    assert not Effect("x", "virtual").allows(Effect("x", "declared"))


# The vectors: docs/design/action.md. They change only when the lowering does, which forgets every cached result.


def vectors() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["vectors"]
    return found


def lowered_vector(spec_json: dict[str, Any]) -> dict[str, str]:
    from google.protobuf import json_format

    spec = spec_of_message(json_format.ParseDict(spec_json, action_pb2.ActionSpec(), descriptor_pool=None))
    root = compose(spec.inputs, lambda text: b"", {}).root
    lowered = lower(spec, root)
    action = re.Action.FromString(lowered.action)
    return {
        "action": lowered.digest.text,
        "command": f"{action.command_digest.hash}/{action.command_digest.size_bytes}",
        "root": root.text,
    }


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector["name"])
def test_golden_vectors(vector: dict[str, Any]) -> None:
    assert lowered_vector(vector["spec"]) == vector["digests"]
