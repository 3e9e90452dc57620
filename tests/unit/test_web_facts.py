"""What a node offers is told as counts of all of it and as the part that was asked for."""

from __future__ import annotations

from buildnet.edge.web.facts import Wanted, node_fact, resources_fact
from buildnet.model.resource import Resource
from buildnet.wire._gen.buildnet.v1 import fleet_pb2

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


def test_a_node_tells_how_much_it_offers_and_whether_it_takes_work() -> None:
    node = fleet_pb2.Node(node_id="n", state=fleet_pb2.NODE_STATE_DRAINING, tier="untrusted")
    node.capacity.cpu_milli = 1500
    fact = node_fact(node, 12)
    assert (fact["resources"], fact["state"], fact["tier"]) == (12, "draining", "untrusted")
    assert (fact["cpu_milli"], fact["gpus"]) == (1500, 0)
