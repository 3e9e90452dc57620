"""The crash campaign: kill -9 in the middle of writes, start again, and look for every acknowledged blob and result.

It counts as lost what was acknowledged and is absent, and as wrong what is there and is not what was written. A server
that takes long to start again fails it too.
Run in full: `python -m tests.faults.campaign --kills 100` (`make crash`).
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.server import Server
from tests.faults.process import Process, small_store
from tests.faults.writers import Record, Writer, content_of, digest_of

WRITERS = 4
WRITES_PER_ROUND = 10_000
READ_AT_ONCE = 200
# A restart may take so much longer than the start of an empty server, at the median.
RESTART_S = 2.0
# Of the store that evicts: what was used within so many seconds stays.
KEEP_S = 2


@dataclass
class Campaign:
    """What a campaign does and what it saw. `may_evict`: the store is kept small, so old blobs may be gone."""

    state: Path
    seed: int
    command: list[str] | None = None
    arguments: tuple[str, ...] = ()
    writes_per_round: int = WRITES_PER_ROUND
    may_evict: bool = False
    kills: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    restarts_s: list[float] = field(default_factory=list)
    first_s: float = 0.0
    killed_s: float = 0.0

    def __post_init__(self) -> None:
        self.records = [Record() for _ in range(WRITERS)]
        self.random = random.Random(self.seed)

    def run(self, kills: int) -> None:
        """So many rounds of write, kill, start again and look; at the end everything is read once more."""
        server = self.started()
        self.first_s = server.ready_s
        try:
            for number in range(kills):
                fresh = self._write_until_killed(server, number)
                server = self.started()
                self.restarts_s.append(server.ready_s)
                whole = number == kills - 1 or number % 10 == 9
                self._look(server.url, fresh, whole=whole)
                if whole:
                    print(self.line(), flush=True)
        finally:
            server.kill()

    def started(self) -> Process:
        """The server, on what the kill left."""
        return Process(self.state, *self.arguments, command=self.command)

    def _write_until_killed(self, server: Process, number: int) -> list[set[str]]:
        before = [set(record.blobs) | set(record.spliced) for record in self.records]
        wrote = threading.Semaphore(0)
        # What was begun in earlier rounds was looked at then.
        for record in self.records:
            record.begun.clear()
        writers = [Writer(server.url, index, number + 1, record, wrote) for index, record in enumerate(self.records)]
        for writer in writers:
            writer.start()
        for _ in range(self.random.randrange(1, self.writes_per_round)):
            while not wrote.acquire(timeout=0.5):
                failed = [writer.failure for writer in writers if writer.failure]
                assert not failed, failed
        self.killed_s = time.monotonic()
        server.kill()
        for writer in writers:
            writer.stop.set()
            writer.join()
            if writer.failure is not None:
                raise writer.failure
        self.kills += 1
        self.acknowledged = sum(
            len(record.blobs) + len(record.spliced) + sum(acked for acked, _ in record.results.values())
            for record in self.records
        )
        return [
            (set(record.blobs) | set(record.spliced)) - known
            for record, known in zip(self.records, before, strict=True)
        ]

    def _look(self, url: str, fresh: list[set[str]], *, whole: bool) -> None:
        """Read what was acknowledged in this round, and from time to time all of it."""
        with Server(url) as server:
            for record, new in zip(self.records, fresh, strict=True):
                everything = [*record.blobs, *record.spliced]
                chosen = everything if whole else sorted(new)
                missing = set(self._missing(server, everything))
                must = set(everything) if not self.may_evict else self._in_use(record)
                self.lost += [f"blob {text}" for text in sorted(missing & must)]
                self._read(server, [text for text in chosen if text not in missing], record)
                self._read_begun(server, record)
                self._results(server, record)

    def _in_use(self, record: Record) -> set[str]:
        """What was acknowledged so shortly before the kill that nothing may have evicted it."""
        return {text for text, since_s in record.since_s.items() if since_s > self.killed_s - KEEP_S / 2}

    @staticmethod
    def _missing(server: Server, texts: Iterable[str]) -> Iterator[str]:
        for page in _pages(list(texts), 2_000):
            yield from server.missing(*map(_digest, page))

    def _read(self, server: Server, texts: list[str], record: Record) -> None:
        small = [text for text in texts if _digest(text).size_bytes <= 5_000]
        for page in _pages(small, READ_AT_ONCE):
            for answer in server.read_batch(*map(_digest, page)):
                text = f"{answer.digest.hash}/{answer.digest.size_bytes}"
                if answer.status.code:
                    # FindMissing said that it was here.
                    self.lost.append(f"blob {text}: code {answer.status.code}")
                elif answer.data != self._content(text, record):
                    self.wrong.append(f"blob {text}")
        for text in texts:
            digest = _digest(text)
            if digest.size_bytes > 5_000:
                try:
                    data = server.read(server.name(digest))
                except grpc.RpcError as error:
                    self.lost.append(f"blob {text}: {error.code().name}")
                    continue
                if data != self._content(text, record):
                    self.wrong.append(f"blob {text}")

    @staticmethod
    def _content(text: str, record: Record) -> bytes:
        if text in record.spliced:
            return b"".join(map(content_of, record.spliced[text]))
        return content_of(record.blobs.get(text) or record.begun[text])

    def _read_begun(self, server: Server, record: Record) -> None:
        """What was begun and not acknowledged is absent, or it is whole."""
        missing = set(self._missing(server, record.begun))
        self._read(server, [text for text in record.begun if text not in missing], record)

    def _results(self, server: Server, record: Record) -> None:
        for name, (acknowledged, begun) in record.results.items():
            try:
                found = server.result(digest_of(name.encode())).exit_code
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                if acknowledged and not self.may_evict:
                    self.lost.append(f"result {name} of version {acknowledged}")
                continue
            if not acknowledged <= found <= begun:
                self.wrong.append(f"result {name}: version {found}, {acknowledged} acknowledged, {begun} begun")
            # Only one of the two was ever true; from now on it is the one that is there.
            record.results[name] = [found, begun]

    @property
    def is_slow(self) -> bool:
        """Whether a server that was killed starts later than it may."""
        return statistics.median(self.restarts_s) - self.first_s >= RESTART_S

    def line(self) -> str:
        """The line of the log."""
        return (
            f"{self.kills} kills, {self.acknowledged} acknowledged, {len(self.lost)} lost, {len(self.wrong)} wrong; "
            f"start of an empty server {self.first_s:.2f} s, restart {statistics.median(self.restarts_s):.2f} s at the "
            f"median, {max(self.restarts_s):.2f} s at most"
        )


def _digest(text: str) -> re.Digest:
    hash_, _, size = text.partition("/")
    return re.Digest(hash=hash_, size_bytes=int(size))


def _pages(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def evicting(state: Path, seed: int, **options: int) -> Campaign:
    """A campaign over a store of 24 MiB in segments of 1 MiB, so that kills fall into rolls and evictions."""
    return Campaign(state, seed, small_store(1 << 20, 24 << 20, KEEP_S), may_evict=True, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--writes", type=int, default=WRITES_PER_ROUND, help="A kill falls before so many writes.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    parser.add_argument("--evict", action="store_true", help="Keep the store small, so that it evicts all the time.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        if asked.evict:
            campaign = evicting(state, asked.seed, writes_per_round=asked.writes)
        else:
            arguments = ("--durability", asked.durability)
            campaign = Campaign(state, asked.seed, arguments=arguments, writes_per_round=asked.writes)
        print(f"seed {asked.seed}", flush=True)
        campaign.run(asked.kills)
    print(campaign.line())
    for line in (campaign.lost + campaign.wrong)[:20]:
        print(line)
    if campaign.is_slow:
        print(f"slow: the median restart is to be less than {RESTART_S:g} s over the start of an empty server")
    raise SystemExit(1 if campaign.lost or campaign.wrong or campaign.is_slow else 0)


if __name__ == "__main__":
    main()
