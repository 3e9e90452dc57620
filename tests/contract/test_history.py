"""What every History promises: it follows, is bounded, and names what changed even when the cache has lost it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from buildnet.errors import BlobsMissing, NotFound, StateCorrupt, StateNewer
from buildnet.history import files, store
from buildnet.history.explain import Explainer
from buildnet.history.store import Bounds, SqliteHistory
from buildnet.history.trees import NOT_KEPT
from buildnet.model.action import ActionKey
from buildnet.model.digest import Digest
from buildnet.model.history import Change, EndedOperation, Explanation, Requested
from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from buildnet.wire.history import ActionMessages

Tree = dict[str, "bytes | Tree"]


class Blobs:
    """A store that can lose everything; `gate`, when it is set, is waited for by every read."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.reads = 0
        self.gate: threading.Event | None = None

    def read(self, digest: str) -> bytes:
        if self.gate is not None:
            self.gate.wait(10)
        self.reads += 1
        if digest not in self.held:
            raise BlobsMissing("gone", digests=[digest])
        return self.held[digest]

    def put(self, data: bytes) -> re.Digest:
        digest = Digest.of(data)
        self.held[digest.text] = data
        return digest_message(digest)

    def tree(self, tree: Tree) -> re.Digest:
        directory = re.Directory()
        for name, value in sorted(tree.items()):
            if isinstance(value, dict):
                directory.directories.add(name=name, digest=self.tree(value))
            else:
                directory.files.add(name=name, digest=digest_message(Digest.of(value)))
        return self.put(directory.SerializeToString(deterministic=True))

    def action(self, *arguments: str, tree: Tree | None = None, outputs: tuple[str, ...] = ("o",)) -> Digest:
        command = re.Command(arguments=arguments, output_paths=outputs).SerializeToString(deterministic=True)
        action = re.Action(command_digest=self.put(command), input_root_digest=self.tree(tree or {}))
        data = action.SerializeToString(deterministic=True)
        self.put(data)
        return Digest.of(data)


class Bench:
    """A history over a store and a clock, both the test's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = Blobs()
        self.clock = ManualClock()
        self.messages = ActionMessages(self.blobs.read)
        self.history = self.open()
        self.ended = 0

    def open(self, bounds: Bounds | None = None) -> SqliteHistory:
        return SqliteHistory.open(self.directory, self.messages, self.clock, bounds or Bounds())

    def end(self, action: Digest, **facts: object) -> EndedOperation:
        self.ended += 1
        now = self.clock.now_unix_ms()
        known: dict[str, object] = {"operation": f"{self.ended:032x}", "code": "ok", "worker": "w"} | facts
        instance = str(known.pop("instance", ""))
        one = EndedOperation(
            key=ActionKey(instance, action),
            submitted_at_unix_ms=now,
            ended_at_unix_ms=now,
            **known,  # type: ignore[arg-type]
        )
        self.history.record(one)
        return one

    async def why(self, ended: EndedOperation) -> Explanation:
        def work(reader: object) -> Explanation:
            [past] = reader.find(ended.operation)  # type: ignore[attr-defined]
            return Explainer(reader, self.messages).explain(past)  # type: ignore[arg-type]

        return await self.history.look(work)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "history")
    try:
        yield bench
    finally:
        await bench.history.close()


async def test_a_header_is_named_when_the_cache_has_lost_every_tree(bench: Bench) -> None:
    tree: Tree = {"src": {"a.c": b"a", "h": {"a.h": b"1"}}, "lib": {"b.c": b"b"}}
    first = bench.end(bench.blobs.action("cc", tree=tree))
    second = bench.end(bench.blobs.action("cc", tree=tree | {"src": {"a.c": b"a", "h": {"a.h": b"2"}}}))
    await bench.history.look(lambda reader: None)
    bench.blobs.held.clear()
    told = await bench.why(second)
    assert told.reason == "changed"
    assert told.relative is not None
    assert told.relative.operation == first.operation
    one, other = Digest.of(b"1").text, Digest.of(b"2").text
    assert told.difference.changes == (Change("input", "src/h/a.h", one, other),)


async def test_an_unchanged_tree_is_read_once(bench: Bench) -> None:
    tree: Tree = {f"d{i}": {"x": b"x", "y": f"{i}".encode()} for i in range(30)}
    bench.end(bench.blobs.action("cc", "1", tree=tree))
    await bench.history.look(lambda reader: None)
    before = bench.blobs.reads
    bench.end(bench.blobs.action("cc", "2", tree=tree))
    await bench.history.look(lambda reader: None)
    assert bench.blobs.reads - before == 2, "an Action and a Command"


async def test_of_a_tree_with_too_many_directories_the_rest_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DIRECTORIES_MAX", 5)
    tree: Tree = {f"d{i}": {"x": b"%d" % i} for i in range(20)}
    bench.end(bench.blobs.action("cc", "1", tree=tree))
    second = bench.end(bench.blobs.action("cc", "2", tree=tree | {"d0": {"x": b"x"}, "d19": {"x": b"x"}}))
    await bench.history.look(lambda reader: None)
    bench.blobs.held.clear()
    told = await bench.why(second)
    assert [(change.part, change.name, change.note) for change in told.difference.changes] == [
        ("argument", "1", ""),
        ("input", "d0/x", ""),
        ("input", "d19/", NOT_KEPT),
    ]


async def test_what_never_was_here_is_recorded_without_its_parts(bench: Bench) -> None:
    ended = bench.end(Digest.of(b"an action that was never sent"))
    told = await bench.why(ended)
    assert (told.reason, told.subject.command, told.relative) == ("never_seen", None, None)
    with pytest.raises(NotFound, match="neither in the history nor in the cache"):
        await bench.history.look(
            lambda reader: Explainer(reader, bench.messages).differ(ended.key.digest, Digest.of(b"another"))
        )


@pytest.mark.parametrize(
    ("earlier", "later", "reason"),
    [
        ({}, {"cached": True}, "cached"),
        ({}, {}, "evicted"),
        ({}, {"lookup_skipped": True}, "lookup_skipped"),
        ({"exit_code": 1}, {}, "failed_before"),
        ({"code": "deadline_passed"}, {}, "failed_before"),
        ({"kept": False}, {}, "not_kept"),
        ({"entry_index": 5}, {"entry_index": 5}, "joined"),
        ({"cached": True}, {}, "never_seen"),
        # What has no worker was run by its client. Its entry tells of others too, and a miss it need not have been.
        ({"worker": ""}, {}, "evicted"),
        ({}, {"worker": ""}, "written_again"),
        ({"entry_index": 5, "worker": ""}, {"entry_index": 5, "worker": ""}, "written_again"),
        ({"exit_code": 1}, {"worker": ""}, "failed_before"),
        ({"instance": "other"}, {}, "never_seen"),
        # A namespace's look-ups go on to the instance itself, and not the other way round.
        ({}, {"instance": "\x01fork"}, "evicted"),
        ({"instance": "\x01fork"}, {}, "never_seen"),
    ],
)
async def test_the_same_action_again(
    bench: Bench, earlier: dict[str, object], later: dict[str, object], reason: str
) -> None:
    action = bench.blobs.action("true")
    bench.end(action, **earlier)
    assert (await bench.why(bench.end(action, **later))).reason == reason


async def test_a_run_apart_does_not_hide_what_was_cached(bench: Bench) -> None:
    action = bench.blobs.action("true")
    kept = bench.end(action)
    bench.end(action, kept=False)
    told = await bench.why(bench.end(action))
    assert told.reason == "evicted"
    assert told.relative is not None
    assert told.relative.operation == kept.operation


LIB = Requested("bazel", "i1", "//:lib", "CppCompile")


async def test_the_nearest_is_of_the_same_target_and_outputs(bench: Bench) -> None:
    blobs = bench.blobs
    own = bench.end(blobs.action("cc", "a.c", "-O1", outputs=("a.o",)), requested=LIB)
    # The same target, another file of it; then the same output, of another target.
    bench.end(blobs.action("cc", "b.c", "-O2", outputs=("b.o",)), requested=LIB)
    bench.end(blobs.action("cc", "a.c", "-O2", outputs=("a.o",)), requested=replace(LIB, target="//:other"))
    told = await bench.why(bench.end(blobs.action("cc", "a.c", "-O2", "-g", outputs=("a.o",)), requested=LIB))
    assert told.relative is not None
    assert told.relative.operation == own.operation
    assert told.relation == "the same target, mnemonic and outputs"


async def test_without_outputs_or_target_the_most_alike_is_the_nearest(bench: Bench) -> None:
    blobs = bench.blobs
    near = bench.end(blobs.action("lint", "--strict", "--all", "src", outputs=()))
    bench.end(blobs.action("lint", "--fix", "other", "src", outputs=()))
    told = await bench.why(bench.end(blobs.action("lint", "--strict", "--none", "src", outputs=())))
    assert told.relative is not None
    assert told.relative.operation == near.operation
    assert [change.name for change in told.difference.changes] == ["2"]
    unlike = await bench.why(bench.end(blobs.action("lint", "-x", outputs=())))
    assert unlike.reason == "never_seen", "one program alone relates nobody"


async def test_of_equals_the_newest_is_the_nearest(bench: Bench) -> None:
    trees: list[Tree] = [{"h": b"%d" % i} for i in range(4)]
    ended = [bench.end(bench.blobs.action("cc", tree=tree)) for tree in trees]
    told = await bench.why(ended[2])
    assert told.relative is not None
    assert told.relative.operation == ended[1].operation


async def test_an_id_is_found_by_its_beginning_and_nothing_else_is(bench: Bench) -> None:
    action = bench.blobs.action("true")
    for operation in ("abc1", "abc2", "abd"):
        bench.end(action, operation=operation)
    found = await bench.history.look(lambda reader: [reader.find(x) for x in ("abd", "ab", "abc1", "%", "a_d")])
    assert [[past.operation for past in row] for row in found] == [["abd"], ["abd", "abc2"], ["abc1"], [], []]


async def test_it_is_bounded_by_count_and_lets_messages_go_with_their_operations(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "history")
    await bench.history.close()
    bench.history = bench.open(Bounds(operations_max=20))
    shared: Tree = {"same": {"x": b"x"}}
    for i in range(60):
        bench.end(bench.blobs.action("cc", f"{i}", tree=shared | {f"{i}": b"x"}))
        # One at a time, so that every bound is met as it comes.
        await bench.history.look(lambda reader: None)
    await bench.history.close()
    with sqlite3.connect(bench.directory / files.DATABASE) as connection:
        [operations] = connection.execute("SELECT count(*) FROM operation").fetchone()
        [messages] = connection.execute("SELECT count(*) FROM message").fetchone()
        [orphans] = connection.execute(
            "SELECT count(*) FROM refers WHERE parent NOT IN (SELECT number FROM message)"
        ).fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert 15 <= operations <= 20
    assert messages == 3 * operations + 1, "an Action, a Command and a root of each, and what they share"
    assert orphans == 0


async def test_it_is_bounded_by_bytes_and_by_age(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "history")
    await bench.history.close()
    bench.history = bench.open(Bounds(bytes_max=400_000, kept_s=3600))
    for i in range(50):
        bench.end(bench.blobs.action("cc", *(f"{i * j:x}" for j in range(5000))))
        await bench.history.look(lambda reader: None)
    used = await bench.history.look(lambda reader: files.used_bytes(reader._connection))  # type: ignore[attr-defined]
    assert used < 500_000
    bench.clock.now_s += 2 * 86_400
    newest = bench.end(bench.blobs.action("cc", "new"))
    [past] = await bench.history.look(lambda reader: reader.find(newest.operation))
    assert await bench.history.look(lambda reader: reader.since_unix_ms()) == past.ended_at_unix_ms
    await bench.history.close()


@pytest.mark.parametrize(("worker", "kept"), [("w", 5), ("", 2)], ids=["ran here", "a client's"])
async def test_what_there_is_no_room_for_is_dropped_and_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, worker: str, kept: int
) -> None:
    monkeypatch.setattr(store, "WAITING_MAX", 5)
    monkeypatch.setattr(store, "WAITING_OF_CLIENTS_MAX", 2)
    bench.blobs.gate = threading.Event()
    action = bench.blobs.action("true")
    for _ in range(20):
        bench.end(action, worker=worker)
    assert bench.history.statistics()["history_dropped"] == 20 - kept
    bench.blobs.gate.set()
    await bench.history.look(lambda reader: None)
    assert bench.history.statistics() == {
        "history_recorded": kept,
        "history_dropped": 20 - kept,
        "history_waiting": 0,
    }


async def test_a_write_that_fails_costs_the_history_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broke:
        broke.setattr(bench.history, "_keep", broken)
        bench.end(bench.blobs.action("true"))
        await bench.history.look(lambda reader: None)
    assert bench.history.statistics()["history_dropped"] == 1
    assert (await bench.why(bench.end(bench.blobs.action("true")))).reason == "never_seen"


@pytest.mark.parametrize("damage", [b"", b"not a database" * 100], ids=["cut", "overwritten"])
async def test_a_damaged_one_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    bench = Bench(tmp_path / "history")
    bench.end(bench.blobs.action("true"))
    await bench.history.look(lambda reader: None)
    await bench.history.close()
    path = bench.directory / files.DATABASE
    path.write_bytes(damage or path.read_bytes()[:5000])
    bench.history = bench.open()
    assert (await bench.why(bench.end(bench.blobs.action("true")))).reason == "never_seen"
    assert path.with_name(path.name + ".damaged").exists()
    await bench.history.close()


def test_one_that_cannot_be_opened_now_is_left_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "history" / files.DATABASE
    path.mkdir(parents=True)
    with pytest.raises(StateCorrupt, match="move it aside"):
        Bench(tmp_path / "history")
    assert path.is_dir()


async def test_damage_that_is_met_while_reading_is_told(bench: Bench) -> None:
    def read(reader: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with pytest.raises(StateCorrupt, match="malformed"):
        await bench.history.look(read)
    assert (await bench.why(bench.end(bench.blobs.action("true")))).reason == "never_seen"


async def test_a_newer_one_is_refused_untouched(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "history")
    await bench.history.close()
    path = bench.directory / files.DATABASE
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateNewer):
        bench.open()
    assert not path.with_name(path.name + ".damaged").exists()


@pytest.mark.parametrize("mangle", [lambda data: data[:-1], lambda data: b"\xff" * 20], ids=["cut", "garbage"])
async def test_messages_that_cannot_be_read_are_said_to_be_absent(
    bench: Bench, mangle: Callable[[bytes], bytes]
) -> None:
    # What a hostile client sends is admitted elsewhere; here nothing it sends may raise.
    body = mangle(re.Action(command_digest=bench.blobs.put(b"\xff"), salt=b"x").SerializeToString())
    bench.blobs.put(body)
    ended = bench.end(Digest.of(body), result=b"\xff\xff\xff")
    assert (await bench.why(ended)).reason == "never_seen"
