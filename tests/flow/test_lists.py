"""Lists of operations as a person asks for them: sizes that are none, lists longer than a page, what never ran."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from buildnet.cli.main import cli
from buildnet.client import SyncClient, connect
from buildnet.errors import InvalidRequest
from buildnet.model.action_spec import OutputInput, spec_of
from tests.conftest import House


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncClient]:
    """A controller at which 1,200 actions of a graph wait for one that no worker takes."""
    house = House(tmp_path_factory.mktemp("lists"))
    try:
        with connect(house.up("--no-worker").url) as client:
            specs = {"first": spec_of(["cc"], outputs=["o"])}
            for number in range(1200):
                specs[f"a{number}"] = spec_of(["cat", f"{number}"], inputs=[OutputInput("in", "first", "o")])
            client.start_graph(specs)
            yield client
    finally:
        house.close()


def asked(net: SyncClient, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["actions", *arguments[:1], "--url", net.url, *arguments[1:]])


def test_a_page_of_less_than_nothing_is_refused(net: SyncClient) -> None:
    with pytest.raises(InvalidRequest, match="a page of -1 is none"):
        list(net.action_pages(page_size=-1))
    with pytest.raises(InvalidRequest, match="a page of -5 is none"):
        net.past("//some:target", limit=-5)
    with pytest.raises(InvalidRequest, match="ask for 1 or more"):
        net.actions(limit=0)
    for limit in ("0", "-1"):
        ended = asked(net, "ls", "--limit", limit)
        assert ended.exit_code == 2
        assert "is not in the range x>=1" in ended.stderr


def test_a_list_may_be_longer_than_a_page(net: SyncClient) -> None:
    ids = [info.id for info in net.actions(limit=1100)]
    assert len(ids) == len(set(ids)) == 1100
    assert len(net.actions(limit=5000)) == 1201
    assert len(net.actions(limit=3)) == 3


def test_what_was_never_asked_of_a_worker_says_so(net: SyncClient) -> None:
    for words in (("why", "newest"), ("diff", "newest", "newest")):
        ended = asked(net, *words)
        assert "waits for others of its graph" in str(ended.exception)
