"""Lists of operations as a person asks for them: sizes that are none, lists longer than a page, what never ran."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from click.testing import CliRunner, Result

from buildnet.cli.main import cli
from buildnet.client import SyncClient, connect
from buildnet.errors import InvalidRequest
from buildnet.model.action_spec import OutputInput, spec_of
from buildnet.wire._gen.google.longrunning import operations_pb2
from tests.conftest import House, Role


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
        assert "is not in the range 1<=x" in ended.stderr


def test_a_list_may_be_longer_than_a_page(net: SyncClient) -> None:
    ids = [info.id for info in net.actions(limit=1100)]
    assert len(ids) == len(set(ids)) == 1100
    assert len(net.actions(limit=5000)) == 1201
    assert len(net.actions(limit=3)) == 3


def test_what_was_never_asked_of_a_worker_says_so(net: SyncClient) -> None:
    for words in (("why", "newest"), ("diff", "newest", "newest")):
        ended = asked(net, *words)
        assert "waits for others of its graph" in str(ended.exception)


def listed(url: str, name: str = "", page_size: int = 0, page_token: str = "") -> operations_pb2.ListOperationsResponse:
    """One page, to a client that takes messages of no more than gRPC's own 4 MiB."""
    with grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
        call = channel.unary_unary(
            "/google.longrunning.Operations/ListOperations",
            operations_pb2.ListOperationsRequest.SerializeToString,
            operations_pb2.ListOperationsResponse.FromString,
        )
        request = operations_pb2.ListOperationsRequest(name=name, page_size=page_size, page_token=page_token)
        answer = call(request, timeout=30)
    assert isinstance(answer, operations_pb2.ListOperationsResponse)
    return answer


def test_operations_are_those_below_the_name(running: Role) -> None:
    for instance in ("team/a", "team"):
        with connect(running.url, instance=instance) as client:
            client.run(["/bin/echo", instance])
    for name in ("team/a", "team/a/operations"):
        assert [operation.name.rpartition("/")[0] for operation in listed(running.url, name=name).operations] == [
            "team/a/operations"
        ]
    assert not listed(running.url, name="te").operations
    assert len(listed(running.url).operations) == len(listed(running.url, name="operations").operations) >= 2


def test_pages_of_operations_neither_repeat_nor_hide_while_others_begin(running: Role) -> None:
    with connect(running.url, instance="pages") as client:
        for number in range(3):
            client.run(["/bin/echo", str(number)])
        known = [operation.name for operation in listed(running.url, name="pages").operations]
        seen, token = [], ""
        for number in range(3):
            page = listed(running.url, name="pages", page_size=1, page_token=token)
            seen += [operation.name for operation in page.operations]
            token = page.next_page_token
            client.run(["/bin/echo", f"begun meanwhile: {number}"])
    assert seen == known
    assert not token


def test_a_page_of_large_results_fits_into_a_message(running: Role) -> None:
    script = f"for i in $(seq 300); do echo > {'x' * 200}$i; done"
    outputs = [f"{'x' * 200}{number}" for number in range(1, 301)]
    spec = spec_of(["/bin/sh", "-c", script], variables={"PATH": "/usr/bin:/bin"}, outputs=outputs)
    with connect(running.url, instance="large") as client:
        ids = [client.submit(spec).id for _ in range(40)]
        # All are one execution, or come from the cache after it.
        client.result(ids[-1])
    seen, token, pages = list[str](), "", 0
    while not pages or token:
        page = listed(running.url, name="large", page_token=token)
        seen += [operation.name.rpartition("/")[2] for operation in page.operations]
        token, pages = page.next_page_token, pages + 1
    assert (seen, pages > 1) == (ids[::-1], True)


def test_a_command_of_long_arguments_is_shown_cut(running: Role) -> None:
    with connect(running.url, instance="long") as client:
        client.run(["/bin/echo", "-n", "x" * 100_000, "never shown"])
        info = client.actions(limit=1)[0]
    assert info.arguments == ("/bin/echo", "-n", "x" * 1012 + "…")
