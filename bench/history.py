"""What the history costs: processor time of the follower for an operation, and of an explanation.

Back of the envelope: a no-op action brings an Action and a Command of its own and a root that is known: two messages
packed by zlib (20 us each), decoded twice (10 us each), four rows with nine index entries (60 us): some 200 us in a
thread beside the engine. An action whose header changed in a tree of 50 directories brings two directories more; an
unchanged tree is one look-up. The peer is bare SQLite inserting one row of the same bytes for each operation, with the
same settings and the same batches.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet.history.explain import Explainer
from buildnet.history.store import SqliteHistory
from buildnet.model.action import ActionKey
from buildnet.model.digest import Digest
from buildnet.model.history import EndedOperation, Requested
from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from buildnet.wire.history import ActionMessages

OPERATIONS = 500
DIRECTORIES = 50
FILES = 20


class Blobs:
    """What clients sent."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.made: dict[tuple[int, int], re.Digest] = {}

    def put(self, message: re.Action | re.Command | re.Directory) -> re.Digest:
        """Store a message."""
        data = message.SerializeToString(deterministic=True)
        digest = Digest.of(data)
        self.held[digest.text] = data
        return digest_message(digest)

    def root(self, changed: int) -> re.Digest:
        """A tree of usual shape, in one file of which a number is written."""
        root = re.Directory()
        for i in range(DIRECTORIES):
            root.directories.add(name=f"dir{i:03}", digest=self.directory(i, changed if i == 7 else 0))
        return self.put(root)

    def directory(self, number: int, changed: int) -> re.Digest:
        """One directory; those that are the same are made once."""
        if (number, changed) not in self.made:
            directory = re.Directory()
            for j in range(FILES):
                content = f"{number} {j} {changed if j == 7 else 0}".encode()
                directory.files.add(name=f"file{j:03}.h", digest=digest_message(Digest.of(content)))
            self.made[number, changed] = self.put(directory)
        return self.made[number, changed]

    def action(self, number: int, root: re.Digest) -> Digest:
        """An action of usual size: sixty arguments."""
        command = re.Command(
            arguments=["/usr/bin/gcc", *(f"-Iexternal/include/dir{i}" for i in range(58)), f"-DN={number}"],
            output_paths=[f"bazel-out/k8-fastbuild/bin/_objs/lib/{number}.o"],
        )
        command.environment_variables.add(name="PATH", value="/usr/local/bin:/usr/bin:/bin")
        action = re.Action(command_digest=self.put(command), input_root_digest=root)
        return Digest.parse(f"{(d := self.put(action)).hash}/{d.size_bytes}")


def ended(number: int, action: Digest) -> EndedOperation:
    """An operation of a build tool's."""
    requested = Requested("bazel", "5d1f6c9e-7b52-4b44-9d4e-3a1d1f0b8a11", f"//lib:{number}", "CppCompile")
    result = re.ActionResult(exit_code=0)
    result.output_files.add(path=f"{number}.o", digest=digest_message(action))
    facts = {"code": "ok", "worker": "w" * 32, "result": result.SerializeToString(), "requested": requested}
    return EndedOperation(f"{number:032x}", ActionKey("", action), number, number, **facts)  # type: ignore[arg-type]


async def recorded(directory: Path, blobs: Blobs, root_of: Callable[[int], re.Digest]) -> tuple[float, float]:
    """Processor time of an operation and of an explanation, in microseconds."""
    messages = ActionMessages(lambda digest: blobs.held[digest])
    history = SqliteHistory.open(directory, messages, ManualClock())
    waiting = [ended(i, blobs.action(i, root_of(i))) for i in range(OPERATIONS)]
    began = time.process_time()
    for one in waiting:
        history.record(one)
    await history.look(lambda reader: None)
    each_us = (time.process_time() - began) / OPERATIONS * 1e6
    # The same output with a changed flag: the nearest is looked for among twenty.
    later = ended(1, blobs.action(1, root_of(OPERATIONS + 1)))
    began = time.process_time()
    for number in range(20):
        history.record(EndedOperation(f"later{number}", later.key, 0, 0, "ok", requested=later.requested))
        name = f"later{number}"
        await history.look(lambda reader, name=name: Explainer(reader, messages).explain(reader.find(name)[0]))  # type: ignore[misc]
    why_us = (time.process_time() - began) / 20 * 1e6
    assert history.statistics()["history_dropped"] == 0
    await history.close()
    return each_us, why_us


def bare(path: Path, blobs: Blobs) -> float:
    """The peer: one row of the messages' bytes for each operation, in microseconds."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE row (number INTEGER PRIMARY KEY, id TEXT UNIQUE, body BLOB)")
    body = b"".join(list(blobs.held.values())[-2:])
    began = time.process_time()
    for start in range(0, OPERATIONS, 256):
        connection.execute("BEGIN IMMEDIATE")
        for number in range(start, min(start + 256, OPERATIONS)):
            connection.execute("INSERT INTO row (id, body) VALUES (?, ?)", (f"{number:032x}", body))
        connection.execute("COMMIT")
    each_us = (time.process_time() - began) / OPERATIONS * 1e6
    connection.close()
    return each_us


def main() -> None:
    """Print each figure beside the peer of the same minute."""
    header("history: processor time of an operation")
    with tempfile.TemporaryDirectory() as scratch:
        blobs = Blobs()
        same = blobs.root(0)
        known_us, _ = asyncio.run(recorded(Path(scratch, "known"), blobs, lambda _: same))
        changed_us, why_us = asyncio.run(recorded(Path(scratch, "changed"), blobs, blobs.root))
        peer_us = bare(Path(scratch, "bare.sqlite"), blobs)
    line("known tree", known_us, "us CPU", "bare SQLite", peer_us)
    line("changed header", changed_us, "us CPU", "bare SQLite", peer_us)
    line("why", why_us, "us CPU", "bare SQLite", peer_us)


if __name__ == "__main__":
    main()
