"""What a node offers is told as counts of all of it and as the part that was asked for."""

from __future__ import annotations

from buildnet.edge.web.facts import Wanted, node_fact, operation_fact, resources_fact, run_fact
from buildnet.ledger.action_view import Run
from buildnet.ledger.node_view import SeenNode
from buildnet.model.resource import Resource
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2

FOUND = [
    Resource("memory", "memory", attributes=(("bytes", (1 << 63) - 1),)),
    Resource("tool", "gcc", "12.2.0"),
    Resource("tool", "sh"),
    Resource("toolchain", "GCC", "12.2.0"),
]


def names(wanted: Wanted) -> list[tuple[str, str]]:
    fact = resources_fact("n", FOUND, 7, wanted)
    assert fact["kinds"] == [("memory", 1), ("tool", 2), ("toolchain", 1)]
    assert (fact["node"], fact["left_out"]) == ("n", 7)
    return [(resource["kind"], resource["name"]) for resource in fact["resources"]]


def test_all_by_kind_and_by_letters_of_name_or_version() -> None:
    assert len(names(Wanted("", "", 100))) == 4
    assert names(Wanted("tool", "", 100)) == [("tool", "gcc"), ("tool", "sh")]
    assert names(Wanted("", "gcC", 100)) == [("tool", "gcc"), ("toolchain", "GCC")]
    assert names(Wanted("tool", "12.2", 100)) == [("tool", "gcc")]
    assert names(Wanted("gpu", "", 100)) == []


def test_what_is_beyond_the_count_is_counted() -> None:
    fact = resources_fact("n", FOUND, 0, Wanted("", "", 1))
    assert (len(fact["resources"]), fact["matching"]) == (1, 4)
    # A script would read it as another number.
    assert fact["resources"][0]["attributes"] == [["bytes", "9223372036854775807"]]


def test_a_node_is_what_the_ledger_says_and_offers_what_it_says_itself() -> None:
    live = fleet_pb2.Node(node_id="n", hostname="h", state=fleet_pb2.NODE_STATE_ACTIVE, tier="trusted", slots=9)
    live.capacity.cpu_milli = 1500
    seen = SeenNode("n", 7, is_joined=True, slots=2, tier="untrusted", draining=True)
    fact = node_fact(seen, 3, live, 12)
    assert (fact["state"], fact["tier"], fact["slots"], fact["sessions"]) == ("draining", "untrusted", 2, 3)
    assert (fact["hostname"], fact["resources"], fact["cpu_milli"], fact["gpus"]) == ("h", 12, 1500, 0)


def test_an_action_and_an_operation_have_one_shape() -> None:
    run = Run(4, f"{'a' * 64}/7", "i\x01apart", 10, "op", assigned_at_unix_ms=11)
    fact = run_fact(run, ["x" * 1000])
    assert (fact["instance"], fact["assigned_at_unix_ms"], len(fact["arguments"][0])) == ("i", None, 200)
    assert fact.keys() == operation_fact(action_pb2.ActionSummary()).keys()
    assert run_fact(Run(4, "", "", 10), [])["id"] == "entry-4"
