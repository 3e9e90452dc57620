"""Writers that remember exactly what was acknowledged to them, and what they had begun when the server was killed.

Content is made from its number, so that a million acknowledged blobs are remembered in a few bytes each.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance import zstd
from tests.conformance.server import Server, pieces

SMALL_BYTES = (1, 5_000)
LARGE_BYTES = (200_000, 2_000_000)
CHUNK_BYTES = (20_000, 60_000)
RESULTS_PER_WRITER = 20
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED

# A number to make the content from, and its size.
Recipe: TypeAlias = tuple[int, int]


def content_of(recipe: Recipe) -> bytes:
    """The bytes of a blob."""
    number, size = recipe
    # Half of it repeats, so that compression has something to do.
    half = random.Random(number).randbytes((size + 1) // 2)
    return (half + half)[:size]


def digest_of(data: bytes) -> re.Digest:
    return re.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


@dataclass
class Record:
    """What one writer knows. `blobs` and `parts` are acknowledged; `begun` may be there or not, but never wrong."""

    blobs: dict[str, Recipe] = field(default_factory=dict)
    spliced: dict[str, list[Recipe]] = field(default_factory=dict)
    begun: dict[str, Recipe] = field(default_factory=dict)
    # Of each action: the highest version acknowledged, and the highest begun.
    results: dict[str, list[int]] = field(default_factory=dict)
    # SHA-256 of the results that were acknowledged, whatever overwrote them.
    entries: list[str] = field(default_factory=list)
    writes: int = 0
    refused: int = 0
    # When each was acknowledged, by time.monotonic().
    since_s: dict[str, float] = field(default_factory=dict)


class Writer(threading.Thread):
    """Writes to one server until it is gone or told to stop; the record is its caller's and outlives it."""

    def __init__(self, url: str, number: int, round_number: int, record: Record, wrote: threading.Semaphore) -> None:
        super().__init__(name=f"writer-{number}")
        self._url = url
        self._number = number
        self._random = random.Random(1_000_003 * round_number + number)
        self._next = (round_number << 40) + (number << 32)
        self.record = record
        self._wrote = wrote
        self.stop = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        steps = (
            [self._batch] * 5
            + [self._zstd_batch, self._small, self._zstd_stream, self._large, self._splice, self._http] * 2
            + [self._result] * 6
        )
        try:
            with Server(self._url) as server:
                while not self.stop.is_set():
                    before = self.record.writes
                    try:
                        self._random.choice(steps)(server)
                    except grpc.RpcError as error:
                        if error.code() is not FULL:
                            raise
                        self.record.refused += 1
                    for _ in range(self.record.writes - before):
                        self._wrote.release()
        except (grpc.RpcError, OSError, http.client.HTTPException) as error:
            # The kill; anything else that the server said is a failure of the campaign.
            code = error.code() if isinstance(error, grpc.RpcError) else None
            if code not in (None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
                self.failure = error
        except pytest.exit.Exception as error:
            # It was still connecting when the server was killed.
            if not self.stop.is_set():
                self.failure = error
        except Exception as error:  # noqa: BLE001 - the campaign raises it
            self.failure = error

    def _make(self, sizes: tuple[int, int]) -> tuple[re.Digest, bytes]:
        self._next += 1
        recipe = (self._next, self._random.randint(*sizes))
        data = content_of(recipe)
        digest = digest_of(data)
        self.record.begun[f"{digest.hash}/{digest.size_bytes}"] = recipe
        return digest, data

    def _acknowledged(self, *digests: re.Digest) -> None:
        for digest in digests:
            text = f"{digest.hash}/{digest.size_bytes}"
            self.record.blobs[text] = self.record.begun.pop(text)
            self.record.since_s[text] = time.monotonic()
        self.record.writes += len(digests)

    def _update(self, server: Server, blobs: list[tuple[re.Digest, bytes]], **options: int) -> bool:
        """A batch; whether all of it was acknowledged. A store that is full may refuse some."""
        answers = server.update(*blobs, **options)
        assert set(answers.values()) <= {0, FULL.value[0]}, answers
        done = [blob for blob, _ in blobs if answers[f"{blob.hash}/{blob.size_bytes}"] == 0]
        self._acknowledged(*done)
        self.record.refused += len(blobs) - len(done)
        return len(done) == len(blobs)

    def _batch(self, server: Server) -> None:
        self._update(server, [self._make(SMALL_BYTES) for _ in range(20)])

    def _zstd_batch(self, server: Server) -> None:
        blobs = [self._make(SMALL_BYTES) for _ in range(10)]
        packed = [(digest, zstd.compress(data)) for digest, data in blobs]
        self._update(server, packed, compressor=re.Compressor.ZSTD)

    def _small(self, server: Server) -> None:
        digest, data = self._make(SMALL_BYTES)
        assert server.write(pieces(server.upload_name(digest), data)) == len(data)
        self._acknowledged(digest)

    def _large(self, server: Server) -> None:
        digest, data = self._make(LARGE_BYTES)
        assert server.write(pieces(server.upload_name(digest), data)) == len(data)
        self._acknowledged(digest)

    def _zstd_stream(self, server: Server) -> None:
        digest, data = self._make(self._random.choice([SMALL_BYTES, LARGE_BYTES]))
        packed = zstd.compress(data)
        name = server.upload_name(digest, kind="compressed-blobs/zstd")
        # Either is legal: what was sent, or -1 when the blob was here already.
        assert server.write(pieces(name, packed)) in (len(packed), -1)
        self._acknowledged(digest)

    def _splice(self, server: Server) -> None:
        chunks = [self._make(CHUNK_BYTES) for _ in range(6)]
        if not self._update(server, chunks):
            return
        whole = digest_of(b"".join(data for _, data in chunks))
        server.splice(whole, [digest for digest, _ in chunks])
        recipes = [self.record.blobs[f"{digest.hash}/{digest.size_bytes}"] for digest, _ in chunks]
        text = f"{whole.hash}/{whole.size_bytes}"
        self.record.spliced[text] = recipes
        self.record.since_s[text] = time.monotonic()
        self.record.writes += 1

    def _http(self, server: Server) -> None:
        digest, data = self._make(SMALL_BYTES)
        connection = http.client.HTTPConnection(server.target, timeout=10)
        try:
            connection.request("PUT", f"/cas/{digest.hash}", body=data)
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 201, 204, 507), answer.status
        finally:
            connection.close()
        if answer.status == 507:
            self.record.refused += 1
            return
        self._acknowledged(digest)

    def _result(self, server: Server) -> None:
        """A new version of one of this writer's results; it refers to a blob that was acknowledged."""
        name = f"{self._number}-{self._random.randrange(RESULTS_PER_WRITER)}"
        versions = self.record.results.setdefault(name, [0, 0])
        versions[1] += 1
        digest, data = self._make(SMALL_BYTES)
        if not self._update(server, [(digest, data)]):
            return
        result = re.ActionResult(exit_code=versions[1], stdout_digest=digest)
        server.store_result(digest_of(name.encode()), result)
        versions[0] = versions[1]
        self.record.entries.append(digest_of(result.SerializeToString()).hash)
        self.record.writes += 1
