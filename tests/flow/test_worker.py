"""Attempts end to end against a real door: fetched, staged, run, collected, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from buildnet._native import Crew, Door, InputTree, Link, Store, probe_isolation
from buildnet.model.action import ActionKey, Outcome
from buildnet.model.digest import EMPTY, Digest
from buildnet.sandbox import Place, Running, Sandbox, launcher
from buildnet.sandbox.namespaces import NamespaceSandbox
from buildnet.sandbox.policy import Limits, Plan, means_of
from buildnet.sandbox.process import ProcessSandbox
from buildnet.sandbox.toolchain import toolchain_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_message, digest_of
from buildnet.worker.attempt import AttemptLog, Handle
from buildnet.worker.executor import Executor
from buildnet.worker.lease_book import Assignment


class Clock:
    """A clock that moves one millisecond a look."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def now_unix_ms(self) -> int:
        self.now += 1
        return self.now

    def monotonic_s(self) -> float:
        return self.now / 1000


@dataclass
class Bench:
    """An executor and the controller's CAS that it works for."""

    link: Link
    executor: Executor
    scratch: Path
    cas: Store
    door: Door
    own: Store
    logs: list[tuple[int, int, bytes]] = field(default_factory=list)
    fence: int = 0
    command_ended: bool = False
    """Of the last attempt: whether it was told before its outputs were sent."""
    on_ended: Callable[[Handle], object] = lambda handle: None

    def push(self, command: re.Command, files: dict[str, bytes], **action: object) -> Digest:
        tree = InputTree(list(files.items()))
        self.link.push_tree(tree)
        command_bytes = command.SerializeToString(deterministic=True)
        message = re.Action(
            command_digest=digest_message(Digest.parse(self.link.put_bytes(command_bytes))),
            input_root_digest=digest_message(Digest.parse(tree.root)),
            **action,  # type: ignore[arg-type]
        )
        data = message.SerializeToString(deterministic=True)
        return Digest.parse(self.link.put_bytes(data))

    async def run(
        self,
        command: re.Command,
        files: dict[str, bytes] | None = None,
        *,
        timeout_s: float = 20.0,
        watch: Callable[[Handle], None] = lambda handle: None,
        **action: object,
    ) -> Outcome:
        digest = await asyncio.to_thread(self.push, command, files or {}, **action)
        return await self.attempt(digest, timeout_s=timeout_s, watch=watch)

    async def attempt(
        self,
        digest: Digest,
        *,
        timeout_s: float = 20.0,
        watch: Callable[[Handle], None] = lambda handle: None,
        action: bytes = b"",
        command: bytes = b"",
        **amounts: int,
    ) -> Outcome:
        """One attempt whose lease counts `amounts`, and that may bring its Action and its Command."""
        self.fence += 1
        self.command_ended = False

        def ended() -> None:
            self.command_ended = True
            self.on_ended(handle)

        def news() -> None:
            while (message := log.next_message()) is not None:
                data = os.pread(message.file, message.size_bytes, message.offset)
                piece = fleet_pb2.JoinRequest.FromString(message.head + data).log
                self.logs.append((piece.stream, piece.offset, piece.data))
            watch(handle)

        log = AttemptLog(self.fence, Clock(), news)
        handle = Handle(log)
        handle.on_command_ended(ended)
        key = ActionKey("", digest)
        assignment = Assignment(self.fence, key, timeout_s, **amounts, action=action, command=command)
        try:
            outcome = await asyncio.wait_for(self.executor.run(assignment, handle), timeout_s + 60)
        finally:
            # As the session does once it is sent.
            log.close()
        assert list(self.scratch.iterdir()) == [], "scratch is removed whatever happens"
        return outcome

    def blob(self, message: re.Digest) -> bytes:
        """A blob as the controller has it."""
        return self.cas.get_bytes(digest_of(message).text) if message.size_bytes else b""


class Elsewhere:
    """A sandbox that the native half knows nothing of: a process of this one."""

    isolation = "process"

    def start(self, plan: Plan, place: Place) -> Running:
        return launcher.start(plan, place)


def crew_of(path: Path, store: Store, link: Link) -> Crew:
    return Crew.open(
        {
            "store": store,
            "link": link,
            "trees": None,
            "scratch": path / "scratch",
            "cleared": path / "cleared",
            "node": "node-1",
            "away_timeout_s": 0.0,
            "threads_max": 2,
            "hidden": (path,),
            "files": launcher.own_files(),
        }
    )


@pytest.fixture(params=["namespaces", "process", "elsewhere"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    isolation = "process" if request.param == "elsewhere" else request.param
    if isolation == "namespaces" and not probe_isolation()["namespaces"]:
        pytest.skip("this kernel refuses namespaces")
    cas = Store(str(tmp_path / "controller"))
    door = Door(cas, [])
    address = door.start("127.0.0.1:0")
    link = Link(f"grpc://{address}")
    own = Store(str(tmp_path / "worker"))
    threads = ThreadPoolExecutor(2)
    sandboxes: dict[str, type[Sandbox]] = {
        "namespaces": NamespaceSandbox,
        "process": ProcessSandbox,
        "elsewhere": Elsewhere,
    }
    crew = crew_of(tmp_path, own, link)
    executor = Executor(
        crew,
        own,
        sandboxes[request.param](),
        tmp_path / "scratch",
        means_of(probe_isolation(), isolation, toolchain_of()),
        Limits(log_size_bytes_max=1 << 20, pids_max=100),
        (tmp_path,),
        threads,
        "node-1",
    )
    yield Bench(link, executor, tmp_path / "scratch", cas, door, own)
    crew.close()
    threads.shutdown()
    link.close()
    door.stop()
    door.close()
    own.close()
    cas.close()


def sh(script: str, *outputs: str, **fields: object) -> re.Command:
    return re.Command(
        arguments=["/bin/sh", "-c", script],
        output_paths=list(outputs),
        **fields,  # type: ignore[arg-type]
    )


def result_of(outcome: Outcome) -> re.ActionResult:
    assert outcome.result is not None, outcome
    return re.ActionResult.FromString(outcome.result)


async def test_an_action_becomes_a_result_at_the_controller(bench: Bench) -> None:
    outcome = await bench.run(sh("echo hi > out; echo said; echo oops >&2", "out"))
    assert (outcome.code, outcome.exit_code, outcome.worker) == ("ok", 0, "node-1"), outcome
    result = result_of(outcome)
    assert [file.path for file in result.output_files] == ["out"]
    assert bench.blob(result.output_files[0].digest) == b"hi\n"
    assert bench.blob(result.stdout_digest) == b"said\n"
    assert bench.blob(result.stderr_digest) == b"oops\n"
    assert not result.stdout_raw
    assert bench.cas.missing_of_result(outcome.result or b"") == []
    assert bench.logs == [(1, 0, b"said\n"), (2, 0, b"oops\n")] or len(bench.logs) >= 2


async def test_attempts_that_have_ended_hold_no_descriptors(bench: Bench) -> None:
    async def some(count: int) -> int:
        for number in range(count):
            outcome = await bench.run(sh(f"echo {number}; echo {number} >&2"))
            assert outcome.code == "ok", outcome
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    # The first leave what others use again: supervisors, groups, connections.
    before = await some(4)
    assert await some(24) - before < 12


async def test_the_result_tells_when_and_where_it_was_made(bench: Bench) -> None:
    began_ns = time.time_ns()
    metadata = result_of(await bench.run(sh("true"))).execution_metadata
    assert metadata.worker == "node-1"
    moments = [
        metadata.worker_start_timestamp,
        metadata.input_fetch_start_timestamp,
        metadata.input_fetch_completed_timestamp,
        metadata.execution_start_timestamp,
        metadata.execution_completed_timestamp,
        metadata.output_upload_start_timestamp,
        metadata.output_upload_completed_timestamp,
        metadata.worker_completed_timestamp,
    ]
    times = [moment.ToNanoseconds() for moment in moments]
    assert began_ns < times[0]
    assert times == sorted(times)
    assert times[-1] < time.time_ns()
    assert metadata.virtual_execution_duration.ToNanoseconds() > 0


async def test_inputs_are_staged_and_a_failing_command_is_a_result(bench: Bench) -> None:
    files = {"a/in": b"content", "b": b"other"}
    outcome = await bench.run(sh("cat a/in b; echo part > part; exit 7", "part"), files)
    assert (outcome.code, outcome.exit_code) == ("ok", 7)
    result = result_of(outcome)
    assert result.exit_code == 7
    assert bench.blob(result.stdout_digest) == b"contentother"
    assert [file.path for file in result.output_files] == ["part"]


async def test_output_parents_are_there_and_the_working_directory_counts(bench: Bench) -> None:
    command = sh("echo x > deep/er/out", "deep/er/out", working_directory="sub")
    outcome = await bench.run(command, {"sub/in": b""})
    assert outcome.code == "ok", outcome
    result = result_of(outcome)
    assert [file.path for file in result.output_files] == ["deep/er/out"]


async def test_an_output_directory_arrives_whole(bench: Bench) -> None:
    script = "mkdir -p d/e; echo 1 > d/a; echo 2 > d/e/b; ln -s a d/l"
    outcome = await bench.run(sh(script, "d"))
    assert outcome.code == "ok", outcome
    assert bench.cas.missing_of_result(outcome.result or b"") == []
    (directory,) = result_of(outcome).output_directories
    tree = re.Tree.FromString(bench.blob(directory.tree_digest))
    assert [file.name for file in tree.root.files] == ["a"]
    assert [link.name for link in tree.root.symlinks] == ["l"]


async def test_an_output_that_was_not_made_is_left_out(bench: Bench) -> None:
    outcome = await bench.run(sh("true", "nothing"))
    assert outcome.code == "ok"
    assert not result_of(outcome).output_files


async def test_inputs_cannot_be_changed_for_the_next_action(bench: Bench) -> None:
    files = {"in": b"content"}
    await bench.run(sh("chmod u+w in; echo evil > in; true"), files)
    outcome = await bench.run(sh("cat in # again"), files)
    assert bench.blob(result_of(outcome).stdout_digest) == b"content"


async def test_the_environment_is_the_commands(bench: Bench) -> None:
    command = re.Command(
        arguments=["env"],
        environment_variables=[
            re.Command.EnvironmentVariable(name="A", value="1"),
            re.Command.EnvironmentVariable(name="PATH", value="/usr/bin:/bin"),
        ],
    )
    result = result_of(await bench.run(command))
    assert sorted(bench.blob(result.stdout_digest).splitlines()) == [b"A=1", b"PATH=/usr/bin:/bin"]


async def test_a_timeout_leaves_what_it_printed(bench: Bench) -> None:
    outcome = await bench.run(sh("echo before; sleep 30"), timeout_s=0.3)
    assert outcome.code == "deadline_passed"
    assert "0.3 s" in outcome.message
    assert bench.blob(result_of(outcome).stdout_digest) == b"before\n"


async def test_endless_output_is_refused_with_a_remedy(bench: Bench) -> None:
    outcome = await bench.run(sh("yes"))
    assert outcome.code == "too_large"
    assert "output file" in outcome.message
    assert 0 < result_of(outcome).stdout_digest.size_bytes <= 1 << 20


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("no-such-program", "looked for in"),
        ("./no-such-program", "is not there"),
        ("./in", "may not be executed"),
    ],
)
async def test_a_program_that_cannot_run_is_the_requests_mistake(bench: Bench, argument: str, why: str) -> None:
    outcome = await bench.run(re.Command(arguments=[argument]), {"in": b"text"})
    assert outcome.code == "invalid_request"
    assert argument in outcome.message
    assert why in outcome.message


async def test_every_missing_input_is_named(bench: Bench) -> None:
    absent = [Digest.of(b"absent 1"), Digest.of(b"absent 2")]
    directory = re.Directory(
        files=[re.FileNode(name=f"f{n}", digest=digest_message(digest)) for n, digest in enumerate(absent)]
    )
    root = await asyncio.to_thread(bench.link.put_bytes, directory.SerializeToString())
    command = Digest.of(b"absent command")
    action = re.Action(
        command_digest=digest_message(command),
        input_root_digest=digest_message(Digest.parse(root)),
    )
    digest = await asyncio.to_thread(bench.link.put_bytes, action.SerializeToString())
    outcome = await bench.attempt(Digest.parse(digest))
    assert outcome.code == "blobs_missing"
    assert set(outcome.missing) == {d.text for d in (*absent, command)}


async def test_an_action_that_is_not_there_or_is_none(bench: Bench) -> None:
    gone = Digest.of(b"an action that nobody sent")
    outcome = await bench.attempt(gone)
    assert (outcome.code, outcome.missing) == ("blobs_missing", (gone.text,))
    junk = await asyncio.to_thread(bench.link.put_bytes, b"\xff\xff\xff")
    assert (await bench.attempt(Digest.parse(junk))).code == "invalid_request"


async def test_an_output_of_the_wrong_kind_is_refused_and_its_logs_kept(bench: Bench) -> None:
    command = re.Command(arguments=["/bin/sh", "-c", "mkdir out; echo said"], output_files=["out"])
    outcome = await bench.run(command)
    assert outcome.code == "output_invalid"
    assert bench.blob(result_of(outcome).stdout_digest) == b"said\n"


async def test_stopping_an_attempt_kills_its_command(bench: Bench) -> None:
    outcome = await bench.run(sh("echo up; sleep 1000"), watch=lambda handle: handle.stop("nobody waits"))
    assert outcome.code == "cancelled"
    assert "nobody waits" in outcome.message


async def test_an_undeclared_effect_is_refused(bench: Bench) -> None:
    platform = re.Platform(properties=[re.Platform.Property(name="effect:clock", value="virtual")])
    outcome = await bench.run(sh("true"), platform=platform)
    assert outcome.code == "sandbox_failed"
    assert "effect:clock=virtual" in outcome.message


async def test_what_a_killed_worker_left_is_removed_at_the_next_start(bench: Bench) -> None:
    left = bench.scratch / "000000000000000a" / "root" / "locked"
    left.mkdir(parents=True)
    (left / "file").touch()
    os.chmod(left, 0o500)
    crew_of(bench.scratch.parent, bench.own, bench.link).close()
    assert list(bench.scratch.iterdir()) == []


async def test_only_what_the_controller_lacks_travels(bench: Bench) -> None:
    digest = await asyncio.to_thread(bench.push, sh("cat in > out", "out"), {"in": b"same bytes"})
    before = bench.cas.statistics()["blobs_written"]
    outcome = await bench.attempt(digest)
    assert outcome.code == "ok", outcome
    assert bench.blob(result_of(outcome).output_files[0].digest) == b"same bytes"
    assert bench.cas.statistics()["blobs_written"] == before


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo small > out/a", False),
        ("head -c 300000 /dev/zero > out/a", True),
        ("head -c 300000 /dev/zero", True),
        ("for n in $(seq 100); do : > out/$n; done", True),
        ("ln -s /proc out/a", False),
        ("rmdir out; ln -s /usr out", False),
        ("mkfifo out/a", False),
        ("head -c 300000 /dev/zero > beside", False),
    ],
)
async def test_the_end_of_a_command_is_told_where_much_is_still_to_be_sent(
    bench: Bench, script: str, told: bool
) -> None:
    await bench.run(sh(script, "out/a", "out"))
    assert bench.command_ended == told


async def test_what_is_stopped_while_it_is_collected_is_not_sent(bench: Bench) -> None:
    bench.on_ended = lambda handle: handle.stop("nobody wants it")
    for _ in range(5):
        outcome = await bench.run(sh("head -c 20000000 /dev/urandom > out", "out"))
        if outcome.code == "cancelled":
            return
        # It was collected sooner than its end was heard of.
    raise AssertionError("what nobody wants is sent")


async def test_attempts_run_side_by_side(bench: Bench) -> None:
    digests = [await asyncio.to_thread(bench.push, sh(f"echo {n} > out", "out"), {}) for n in range(8)]
    outcomes = await asyncio.gather(
        *(
            bench.executor.run(Assignment(100 + n, ActionKey("", digest), 20.0), Handle(AttemptLog(100 + n, Clock())))
            for n, digest in enumerate(digests)
        )
    )
    assert [outcome.code for outcome in outcomes] == ["ok"] * 8
    assert list(bench.scratch.iterdir()) == []


async def test_a_controller_that_is_gone_is_told_as_such(bench: Bench) -> None:
    digest = await asyncio.to_thread(bench.push, sh("true"), {})
    bench.door.stop()
    outcome = await bench.attempt(digest)
    assert outcome.code == "node_down"
    assert outcome.message


def described(*arguments: str) -> tuple[Digest, bytes, bytes]:
    """An action without inputs that no CAS has: its digest, its own bytes, its Command's."""
    command = re.Command(arguments=arguments).SerializeToString(deterministic=True)
    action = re.Action(
        command_digest=digest_message(Digest.of(command)), input_root_digest=digest_message(EMPTY)
    ).SerializeToString(deterministic=True)
    return Digest.of(action), action, command


async def test_what_comes_with_an_assignment_is_not_asked_for(bench: Bench) -> None:
    digest, action, command = described("/bin/sh", "-c", "echo along")
    outcome = await bench.attempt(digest, action=action, command=command)
    assert (outcome.code, outcome.exit_code) == ("ok", 0)
    assert bench.blob(re.ActionResult.FromString(outcome.result or b"").stdout_digest) == b"along\n"
    assert (await bench.attempt(digest)).code == "blobs_missing"


async def test_what_comes_with_an_assignment_is_believed_only_as_far_as_its_digest(bench: Bench) -> None:
    digest, action, command = described("/bin/true")
    _, other_action, other_command = described("/bin/false")
    for given in ((other_action, command), (action, other_command)):
        outcome = await bench.attempt(digest, action=given[0], command=given[1])
        assert outcome.code == "blobs_missing", "what was not believed is fetched, and it is nowhere"
    for data in (action, command):
        await asyncio.to_thread(bench.link.put_bytes, data)
    outcome = await bench.attempt(digest, action=other_action, command=other_command)
    assert (outcome.code, outcome.exit_code) == ("ok", 0)
