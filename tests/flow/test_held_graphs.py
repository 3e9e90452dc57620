"""What an accepted graph will need is in the cache when its turn comes, however little room there is, and no longer."""

from __future__ import annotations

import os
import time

import pytest

from buildnet.client import SubmittedGraph, SyncClient, connect
from buildnet.errors import NotFound
from buildnet.model.action_spec import FileInput, OutputInput, TreeInput, spec_of
from buildnet.model.digest import Digest
from tests.conftest import House

PATH = {"PATH": "/usr/bin:/bin"}
SMALL = ("--slots", "2", "--cache-keep", "0s")


def emptied(net: SyncClient) -> None:
    """Evict all that may be. A segment is emptied where that gives back more than it moves."""
    loose = net.upload(os.urandom(1 << 20))
    for _ in net.cache_collect(0):
        pass
    assert not is_here(net, loose), "there is no room for what nobody holds"


def is_here(net: SyncClient, digest: Digest) -> bool:
    try:
        net.cache_stat(digest.text)
    except NotFound:
        return False
    return True


def holders(net: SyncClient, digest: Digest) -> tuple[str, ...]:
    return net.cache_stat(digest.text).held_by


def submitted(net: SyncClient) -> tuple[SubmittedGraph, list[Digest]]:
    """A graph whose last action waits for one that has ended and for one that will not; and what only it takes."""
    late, below = net.upload(b"late" * 1000), net.upload(b"in a tree" * 1000)
    tree = net.upload_tree({"sub/file": b"in a tree" * 1000})
    graph = net.start_graph(
        {
            "made": spec_of(["sh", "-c", "echo made > o"], variables=PATH, outputs=["o"]),
            "endless": spec_of(["sleep", "600"], variables=PATH, outputs=["never"]),
            "waits": spec_of(
                ["true"],
                variables=PATH,
                inputs=[
                    FileInput("late", late),
                    TreeInput("tree", tree),
                    OutputInput("o", "made", "o"),
                    OutputInput("never", "endless", "never"),
                ],
            ),
        }
    )
    output = net.result(graph.ids["made"]).outputs["o"].digest
    assert output is not None
    return graph, [late, below, tree, output]


@pytest.mark.timeout(120)
def test_what_waits_keeps_its_inputs_until_the_graph_has_ended(house: House) -> None:
    server = house.up(*SMALL)
    with connect(server.url) as net:
        graph, needed = submitted(net)
        emptied(net)
        assert [is_here(net, digest) for digest in needed] == [True] * 4
        assert holders(net, needed[0]) == (f"graph {graph.id}",)
        assert holders(net, needed[3]) == (f"graph {graph.id} made",)
        net.cancel_graph(graph.id)
        net.follow_graph(graph)
        emptied(net)
        assert [is_here(net, digest) for digest in needed] == [False] * 4


@pytest.mark.timeout(120)
def test_the_next_controller_holds_what_still_waits(house: House) -> None:
    first = house.up(*SMALL)
    with connect(first.url) as net:
        graph, needed = submitted(net)
    first.kill()
    second = house.up("--no-worker", "--cache-keep", "0s", listen=first.ready["listen"])
    with connect(second.url) as net:
        # It serves before all is held again.
        until_s = time.monotonic() + 60
        while not all(holders(net, digest) for digest in needed):
            assert time.monotonic() < until_s, "it is not held again"
        emptied(net)
        assert [is_here(net, digest) for digest in needed] == [True] * 4
        net.cancel_graph(graph.id)
        net.follow_graph(graph)
        emptied(net)
        assert [is_here(net, digest) for digest in needed] == [False] * 4
