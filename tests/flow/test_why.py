"""Why something ran again is told by name, over real roles: the header, the flag, the variable that was changed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from buildnet.client import Client, Digest, RunResult, connect
from buildnet.errors import Cancelled, InvalidRequest, NoCapableWorker, NotFound
from buildnet.model.action_spec import spec_of
from buildnet.model.history import Change
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from buildnet.wire.request_metadata import REQUEST_METADATA
from tests.conftest import COMMAND, House, Role

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

UPDATE = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult"
HEADER = "#define ANSWER 42\n"
SOURCE = '#include "answer.h"\nint answer(void) { return ANSWER; }\n'
VARIABLES = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def command(role: Role, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    place = 1 if words[0] == "run" else 2
    argv = [*COMMAND, *words[:place], "--url", role.url, *words[place:]]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=cwd)


def id_of(result: RunResult) -> str:
    return result.operation.rpartition("/")[2]


def why(role: Role, name: str) -> dict[str, Any]:
    ended = command(role, "actions", "why", "--json", name)
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


Compile = Callable[..., Any]


@pytest.fixture
def compile_with() -> Compile:
    """Compile one file of a small project, with something changed."""

    async def compile_with(client: Client, **changes: Any) -> Any:
        inputs = {"src/answer.h": changes.get("header", HEADER).encode(), "src/answer.c": SOURCE.encode()}
        argv = ["cc", *changes.get("flags", ("-O1",)), "-c", "src/answer.c", "-o", "answer.o"]
        return await client.run(argv, inputs=inputs, outputs=["answer.o"], env=VARIABLES | changes.get("env", {}))

    return compile_with


async def test_each_change_of_a_build_is_named(running: Role, compile_with: Compile) -> None:
    other = HEADER.replace("42", "43")
    async with Client(running.url) as client:
        first = await compile_with(client)
        assert (await client.history.why(first.operation)).reason == "never_seen"

        header = await compile_with(client, header=other)
        flag = await compile_with(client, header=other, flags=("-O1", "-DNEW=1"))
        variable = await compile_with(client, header=other, flags=("-O1", "-DNEW=1"), env={"GCC_COLORS": "x"})

    told = why(running, id_of(header)[:12])
    assert told["reason"] == "changed"
    assert told["relative"]["id"] == id_of(first)
    old, new = Digest.of(HEADER.encode()).text, Digest.of(other.encode()).text
    assert told["changes"] == [
        {"part": "input", "name": "src/answer.h", "before": old, "after": new, "note": ""},
    ]
    told = why(running, flag.action.text)
    assert [(c["part"], c["name"], c["before"], c["after"]) for c in told["changes"]] == [
        ("argument", "2", None, "-DNEW=1")
    ]
    told = why(running, variable.operation)
    assert [(c["part"], c["name"], c["before"], c["after"]) for c in told["changes"]] == [
        ("variable", "GCC_COLORS", None, "x")
    ]
    shown = command(running, "actions", "why", id_of(header)[:12])
    assert shown.returncode == 0
    assert "src/answer.h" in shown.stdout
    assert "changed: 1 thing has changed since" in shown.stdout
    ended = command(running, "actions", "diff", "--json", id_of(first)[:12], variable.action.text)
    assert ended.returncode == 1
    changed = [(c["part"], c["name"]) for c in json.loads(ended.stdout)["changes"]]
    assert changed == [("argument", "2"), ("variable", "GCC_COLORS"), ("input", "src/answer.h")]
    assert command(running, "actions", "diff", id_of(first)[:12], first.action.text).returncode == 0


async def test_every_reason_is_told_for_what_it_is(running: Role) -> None:
    async with Client(running.url) as client:

        async def reason(operation: str) -> str:
            return (await client.history.why(operation)).reason

        failed = await client.run(["sh", "-c", "exit 3 # reasons"])
        again = await client.run(["sh", "-c", "exit 3 # reasons"])
        told = await client.history.why(again.operation)
        assert (told.reason, told.relative and told.relative.id) == ("failed_before", id_of(failed))
        assert "exited with 3" in told.message

        argv = ["sh", "-c", "echo reasons"]
        once = await client.run(argv)
        assert await reason((await client.run(argv, skip_cache=True)).operation) == "lookup_skipped"
        assert await reason((await client.rerun(once.action)).operation) == "lookup_skipped"
        never = [await client.run([*argv, "never"], do_not_cache=True) for _ in range(2)]
        assert [await reason(one.operation) for one in never] == ["not_cacheable"] * 2

        both = await asyncio.gather(*(client.run(["sh", "-c", "sleep 0.5; echo joined"]) for _ in range(2)))
        reasons = {await reason(one.operation) for one in both}
        # Both are of one execution, or the second came when the first had ended and was a hit of the door's.
        assert "joined" in reasons or any(one.cached for one in both)

        asked = await client.history.why(once.action.text)
        assert asked.action.action == once.action
        with pytest.raises(NotFound, match="actions ls"):
            await client.history.why("feedfacefeed")
        with pytest.raises(NotFound, match="nor the Action in the cache"):
            await client.history.why(Digest.of(b"nobody's").text)


def written(role: Role, action: Digest, *, exit_code: int = 0, target: str = "//:lib") -> None:
    """Write a result as a build tool does that ran the action by itself."""
    asked = re.RequestMetadata(target_id=target, action_mnemonic="CppCompile", tool_invocation_id="i1")
    request = re.UpdateActionResultRequest(
        action_digest=digest_message(action), action_result=re.ActionResult(exit_code=exit_code)
    )
    with grpc.insecure_channel(role.ready["listen"]) as channel:
        update = channel.unary_unary(UPDATE, lambda message: message.SerializeToString(), re.ActionResult.FromString)
        update(request, timeout=10, metadata=[(REQUEST_METADATA, asked.SerializeToString())])


async def test_what_a_client_ran_by_itself_is_a_relative_of_what_comes_next(running: Role) -> None:
    async def prepared(client: Client, header: str, *flags: str) -> Digest:
        spec = spec_of(["cc", *flags, "-c", "a.c"], outputs=["by-itself.o"], variables=VARIABLES)
        return await client.prepare(spec, inputs={"src/answer.h": header.encode(), "a.c": b""})

    async with Client(running.url) as client:
        first = await prepared(client, HEADER)
        written(running, first)
        told = await client.history.why(first.text)
        assert (told.reason, told.action.target, told.action.invocation) == ("never_seen", "//:lib", "i1")
        assert (told.action.worker, told.action.queued_s, told.action.state) == ("", None, "completed")
        assert told.action.entry_index is not None
        assert first.text in json.loads(await client.ledger_entry(told.action.entry_index))["results"][0]

        # The client sent its tree with it, so that the header is named.
        other = HEADER.replace("42", "44")
        second = await prepared(client, other)
        written(running, second)
        told = await client.history.why(second.text)
        assert told.relative is not None
        assert (told.relative.action, told.relation) == (first, "the same target, mnemonic and outputs")
        old, new = Digest.of(HEADER.encode()).text, Digest.of(other.encode()).text
        assert told.changes == (Change("input", "src/answer.h", old, new),)

        written(running, second)
        assert (await client.history.why(second.text)).reason == "written_again"
        third = await prepared(client, other, "-g")
        written(running, third, exit_code=1)
        failed, *_ = await client.history.past(third.text)
        assert failed.exit_code == 1

        # Who sends a result without its Action leaves nothing that could be told.
        unsent = Digest.of(b"an Action that its client keeps")
        written(running, unsent)
        assert await client.history.past(unsent.text) == []


async def test_what_still_runs_is_explained_too(running: Role) -> None:
    async with Client(running.url) as client:
        before = await client.run(["sh", "-c", "echo still # running"], outputs=["still"])
        runs = asyncio.ensure_future(client.run(["sh", "-c", "sleep 1000 # running"], outputs=["still"]))
        while (newest := (await client.actions(limit=1))[0]).state != "executing":
            await asyncio.sleep(0.05)
        told = await client.history.why(newest.id[:8])
        assert (told.action.id, told.action.state, told.reason) == (newest.id, "executing", "changed")
        assert told.relative is not None
        assert told.relative.id == id_of(before)
        await client.cancel(newest.id)
        with pytest.raises(Cancelled):
            await runs
        [run] = await client.history.past(newest.id)
        assert (run.state, run.error_code, run.outputs) == ("cancelled", "cancelled", ())


async def test_an_action_that_only_ran_apart_was_not_kept(running: Role) -> None:
    async with Client(running.url) as client:
        action = await client.prepare(spec_of(["sh", "-c", "echo apart"], variables=VARIABLES))
        told = await client.history.why(action.text)
        assert (told.reason, told.action.id, told.action.state) == ("never_seen", "", "not asked for")
        await client.rerun(action)
        result = await client.run(["sh", "-c", "echo apart"], env=VARIABLES)
        assert result.action == action
        assert not result.cached, "a run apart leaves nothing in the cache"
        assert (await client.history.why(result.operation)).reason == "not_kept"


def test_what_was_evicted_is_said_to_be(house: House) -> None:
    server = house.up("--slots", "1", "--cache-keep", "0s")
    script = ["run", "--url", server.url, "--output", "o", "--", "sh", "-c", "echo evicted > o"]
    first = subprocess.run([*COMMAND, *script], cwd=house.directory, capture_output=True, text=True, timeout=110)
    assert first.returncode == 0, first.stderr
    collected = command(server, "cas", "gc", "--to", "0", cwd=house.directory)
    assert collected.returncode == 0, collected.stderr
    subprocess.run([*COMMAND, *script], cwd=house.directory, check=True, capture_output=True, timeout=110)
    with connect(server.url) as client:
        newest = client.actions(limit=1)[0]
        told = client.why(newest.id)
    assert (told.reason, told.relative is not None) == ("evicted", True)


async def test_the_history_outlives_the_controller(house: House, compile_with: Compile) -> None:
    server = house.up("--slots", "1")
    async with Client(server.url) as client:
        first = await compile_with(client)
    server.stop()
    server = house.up("--slots", "1")
    async with Client(server.url) as client:
        second = await compile_with(client, header="#define ANSWER 1\n")
        told = await client.history.why(second.operation)
        assert told.relative is not None
        assert told.relative.id == id_of(first)
        assert [change.name for change in told.changes] == ["src/answer.h"]
        [run] = await client.history.past(id_of(first)[:10])
        assert run.arguments[:2] == ("cc", "-O1")
        assert [fact.path for fact in run.outputs] == ["answer.o"]
        assert run.worker == first.worker
        assert run.ran_s is not None
    shown = command(server, "actions", "history", first.action.text)
    assert "answer.o" in shown.stdout
    assert first.worker[:12] in shown.stdout


async def test_an_action_runs_again_on_the_worker_that_is_named(house: House) -> None:
    server = house.up("--no-worker")
    workers = [house.join(server.url, "--slots", "1", name=name) for name in ("one", "two")]
    assert len(workers) == 2
    async with Client(server.url) as client:
        result = await client.run(["sh", "-c", "echo pinned > o"], outputs=["o"])
        nodes = [node.node for node in await client.fleet.nodes()]
        for node in nodes:
            assert (await client.rerun(result.action, worker=node)).worker == node
            ended = command(server, "actions", "rerun", id_of(result)[:12], "--on", node, "--json")
            assert (ended.returncode, json.loads(ended.stdout)["worker"]) == (0, node)
        with pytest.raises(NoCapableWorker, match="has not joined"):
            await client.rerun(result.action, worker="nobody")
        with pytest.raises(InvalidRequest, match="buildnet-worker"):
            await client.rerun(result.action, worker="no node's id")
        runs = await client.history.past(result.action.text)
        assert len(runs) == 6, "one, four of nodes, and one that no worker could take"
    ended = command(server, "run", "--json", "--times", "2", "--on-distinct", "--", "sh", "-c", "echo same")
    assert ended.returncode == 0, ended.stderr
    assert sorted(run["worker"] for run in json.loads(ended.stdout)["runs"]) == sorted(nodes)
    ended = command(server, "run", "--json", "--times", "3", "--on-distinct", "--", "true")
    assert (ended.returncode, json.loads(ended.stderr)["error"]["code"]) == (125, "no_capable_worker")


def test_outputs_that_differ_are_named_with_a_code_of_its_own(running: Role, tmp_path: Path) -> None:
    script = "mkdir -p d/e; date +%N%s > d/e/differs; echo same | tee d/same > alone; cat /proc/sys/kernel/random/uuid"
    words = ["--output", "d", "--output", "alone", "--", "sh", "-c", script]
    ended = command(running, "run", "--twice", *words, cwd=tmp_path)
    assert ended.returncode == 123
    named = [line for line in ended.stdout.splitlines() if not line.startswith(" ")]
    assert named == ["(stdout)", "d/e/differs"]
    assert not (tmp_path / "alone").exists(), "outputs that nobody can rely on are not brought back"
    ended = command(
        running, "run", "--times", "3", "--output", "o", "--", "sh", "-c", "echo s > o; exit 7", cwd=tmp_path
    )
    assert (ended.returncode, (tmp_path / "o").read_text()) == (7, "s\n")
    assert "3 runs, all the same" in ended.stderr
    for wrong in (("--times", "1"), ("--on-distinct",)):
        assert command(running, "run", *wrong, "--", "true").returncode == 125


def test_an_action_is_reproduced_by_hand(running: Role, tmp_path: Path) -> None:
    with connect(running.url) as client:
        result = client.run(
            ["sh", "-c", 'cat "in put/it\'s.txt" > "o u t"; ln -s x link; echo "$WHO"; pwd | sed "s#.*/##"; exit 4'],
            inputs={"w/in put/it's.txt": b"hello\n"},
            outputs=["o u t", "sub/dir/none", "link"],
            env={"PATH": "/usr/bin:/bin", "WHO": 'a "quoted" $name'},
            working_directory="w",
        )
    assert result.exit_code == 4
    place = tmp_path / "repro"
    wrote = command(running, "actions", "repro", id_of(result)[:12], str(place))
    assert wrote.returncode == 0, wrote.stderr
    ended = subprocess.run([str(place / "run.sh")], capture_output=True, text=True, timeout=30, env={"PATH": "/bin"})
    assert ended.returncode == 4, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[:2] == ['a "quoted" $name', "w"]
    assert "link -> x" in lines[2]
    assert lines[3].startswith(Digest.of(b"hello\n").hash)
    assert lines[3].endswith("o u t")
    assert "sub/dir/none was not left" in ended.stderr
    assert subprocess.run([str(place / "run.sh")], capture_output=True, timeout=30).returncode == 125
    assert (place / "run.sh").stat().st_mode & 0o777 == 0o700
    refused = command(running, "actions", "repro", id_of(result)[:12], str(place))
    assert refused.returncode == 125
    assert "is not empty" in refused.stderr
