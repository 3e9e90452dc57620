"""`buildnet cas` as a person uses it: against a real server, from a shell, and stopped with Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from buildnet._native import Store
from buildnet.app.clock import SystemClock
from buildnet.client import Client, connect
from buildnet.edge.bridge import Bridge, Call, Method
from buildnet.edge.cache import CacheService, _Work
from buildnet.edge.results import ClientResults
from buildnet.edge.status import to_status
from buildnet.model.digest import Digest
from buildnet.testing.memory_ledger import MemoryLedger
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import cache_pb2
from buildnet.wire.actions import digest_message
from tests.conftest import COMMAND, House, Role
from tests.flow.test_door import Server


def cas(url: str, *arguments: str, code: int = 0) -> str:
    ended = subprocess.run(
        [*COMMAND, "cas", arguments[0], "--url", url, *arguments[1:]], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == code, ended.stderr
    return ended.stdout


def as_json(url: str, *arguments: str, code: int = 0) -> Any:
    return [json.loads(line) for line in cas(url, *arguments, "--json", code=code).splitlines()]


def told_to_memory() -> Callable[..., Awaitable[Sequence[int]]]:
    """Where a door without a controller tells what clients wrote."""
    return ClientResults(MemoryLedger(), SystemClock(), lambda written, entry: None).record


@pytest.fixture
def filled(house: House) -> tuple[Role, Digest, Digest]:
    """A server with a blob that a result refers to, and one that nothing does."""
    role = house.up("--no-worker")
    server = Server(role.ready["listen"])
    used, lone = server.put(b"used" * 100), server.put(b"lone")
    update = re.UpdateActionResultRequest(instance_name="team", action_digest=digest_message(Digest.of(b"action")))
    update.action_result.output_files.add(path="o", digest=digest_message(used))
    server.unary("/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult", update, re.ActionResult)
    return role, used, lone


def test_get_writes_into_what_is_no_file_and_leaves_it_in_its_place(
    filled: tuple[Role, Digest, Digest], tmp_path: Path
) -> None:
    role, _, lone = filled
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("file")
    cas(role.url, "get", "-o", str(link), lone.text)
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"lone"
    missing = Digest.of(b"nobody has it")
    cas(role.url, "get", "-o", str(link), missing.text, code=125)
    assert (tmp_path / "file").read_bytes() == b"lone", "what cannot be had empties nothing"
    os.mkfifo(pipe)
    with subprocess.Popen(["/bin/cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        cas(role.url, "get", "-o", str(pipe), lone.text)
        assert reader.communicate(timeout=20)[0] == b"lone"
    assert pipe.is_fifo()


async def test_a_download_leaves_links_and_pipes_in_their_place_whatever_size_comes(house: House) -> None:
    role = house.up("--no-worker")
    link, pipe, target = house.directory / "link", house.directory / "pipe", house.directory / "file"
    target.write_bytes(b"longer than what comes")
    link.symlink_to(target)
    os.mkfifo(pipe)
    # More than a pipe holds, in many chunks.
    large = os.urandom(3 << 20)
    async with Client(role.url) as client:
        short, long, empty = [await client.upload(data) for data in (b"short", large, b"")]
        await client.download(short, link, executable=True)
        assert (link.is_symlink(), target.read_bytes(), os.access(target, os.X_OK)) == (True, b"short", True)
        await client.download(empty, link)
        assert (link.is_symlink(), target.read_bytes()) == (True, b"")
        reading = asyncio.ensure_future(asyncio.to_thread(pipe.read_bytes))
        await client.download(long, pipe)
        assert await reading == large
    assert pipe.is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
async def test_a_download_leaves_a_device_in_its_place(house: House) -> None:
    role = house.up("--no-worker")
    device, link = house.directory / "device", house.directory / "link"
    # Of its own: none of the machine's is touched, whatever fails.
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    link.symlink_to(device)
    async with Client(role.url) as client:
        digest = await client.upload(b"to nowhere")
        for path in (device, link):
            await client.download(digest, path, executable=True)
            assert device.is_char_device()
            assert stat.S_IMODE(device.stat().st_mode) == 0o600
    assert link.is_symlink()


def test_ls_lists_what_fits(filled: tuple[Role, Digest, Digest]) -> None:
    role, used, lone = filled
    rows = as_json(role.url, "ls")
    assert {row["name"] for row in rows if row["kind"] == "blob"} == {used.text, lone.text}
    action = [row["name"] for row in rows if row["kind"] == "action"]
    assert action == [f"team:sha256/{Digest.of(b'action').hash}"]
    assert [row["name"] for row in as_json(role.url, "ls", "--prefix", "team:")] == action
    assert [row["name"] for row in as_json(role.url, "ls", "--kind", "blob", "--prefix", lone.hash[:8])] == [lone.text]
    assert len(as_json(role.url, "ls", "--limit", "1")) == 1
    assert lone.text in cas(role.url, "ls", "--limit", "0")


def test_ls_pages_through_thousands(house: House) -> None:
    role = house.up("--no-worker")
    server = Server(role.ready["listen"])
    batch = re.BatchUpdateBlobsRequest()
    for number in range(2500):
        data = b"blob %d" % number
        batch.requests.add(digest=digest_message(Digest.of(data)), data=data)
    server.unary(
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
        batch,
        re.BatchUpdateBlobsResponse,
    )
    rows = as_json(role.url, "ls", "--limit", "0")
    assert len({row["name"] for row in rows}) == len(rows) == 2500


def test_stat_and_why_say_what_keeps_a_blob(filled: tuple[Role, Digest, Digest]) -> None:
    role, used, lone = filled
    (facts,) = as_json(role.url, "stat", used.text)
    assert (facts["digest"], facts["stored_as"]) == (used.text, "packed")
    # Written within the second of the start, it looks like one that was there before.
    assert facts["usage"] in ("recent", "restored")
    assert facts["kept_until_unix_s"] > facts["used_at_unix_s"] > 1_600_000_000
    assert used.text in cas(role.url, "stat", used.text)
    (reasons,) = as_json(role.url, "why", used.text)
    assert reasons["kept"]
    assert reasons["referrers"] == [f"team:sha256/{Digest.of(b'action').hash}"]
    assert (reasons["looked"], reasons["looked_at_all"]) == (1, True)
    said = cas(role.url, "why", lone.text)
    assert "kept until" in said
    assert "no result refers to it; 1 entries were looked at, all of them" in said
    missing = Digest.of(b"never").text
    cas(role.url, "why", missing, code=125)
    cas(role.url, "stat", "nonsense", code=125)


def test_du_counts_every_sort(filled: tuple[Role, Digest, Digest]) -> None:
    role, used, lone = filled
    large = b"l" * (300 << 10)
    with connect(role.url) as client:
        client.upload(large)
    (usage,) = as_json(role.url, "du")
    groups = {(group["kind"], group["of"]): group for group in usage["groups"]}
    assert groups["blob", "sha256"]["count"] == 3
    assert groups["blob", "sha256"]["size_bytes"] == used.size_bytes + lone.size_bytes + len(large)
    assert groups["action", "team"]["count"] == 1
    assert (usage["large_files"], usage["large_bytes"]) == (1, len(large))
    assert usage["records"] == 4
    assert usage["segment_bytes"] == usage["live_bytes"] + usage["dead_bytes"]
    assert "blob    sha256  3" in cas(role.url, "du")


def test_scrub_finds_what_rotted_and_exits_with_one(filled: tuple[Role, Digest, Digest]) -> None:
    role, used, lone = filled
    (sound,) = as_json(role.url, "scrub")
    assert (sound["records"], sound["damaged_count"]) == (3, 0)
    (segment,) = Path(role.ready["state"], "cas", "segments").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"lone") + 1] ^= 1
    segment.write_bytes(data)
    said = cas(role.url, "scrub", code=1)
    assert f"damaged: {lone.text}" in said
    assert "1 damaged" in said
    with connect(role.url) as client:
        entries = [json.loads(body) for _, body in client.ledger_tail(0)]
    scrubs = [(entry["records"], entry["damaged"]) for entry in entries if entry["kind"] == "cache.scrubbed"]
    assert scrubs == [(3, 0), (2, 1)]
    (again,) = as_json(role.url, "scrub")
    assert (again["records"], again["damaged_count"]) == (2, 0)
    assert Server(role.ready["listen"]).missing(used, lone) == [lone.text]


def test_gc_leaves_what_was_used_lately_and_says_so(filled: tuple[Role, Digest, Digest]) -> None:
    role, used, lone = filled
    said = cas(role.url, "gc", "--to", "1KiB")
    assert "0 records" in said
    assert not Server(role.ready["listen"]).missing(used, lone)
    cas(role.url, "gc", "--to", "many", code=2)


class Served:
    """A store that keeps nothing for a while, behind a door of its own."""

    def __init__(self, store: Store, url: str, recorded: list[str]) -> None:
        self.store = store
        self.url = url
        self.recorded = recorded


@pytest.fixture
async def forgetful(tmp_path: Path) -> AsyncIterator[Served]:
    store = Store(str(tmp_path / "cas"), keep_s=0, segment_bytes=1 << 20)
    recorded: list[str] = []
    bridge = Bridge(
        store, CacheService(store, lambda kind, _: recorded.append(kind)).methods(), to_status, told_to_memory()
    )
    address = await bridge.serve("127.0.0.1:0")
    try:
        yield Served(store, f"grpc://{address}", recorded)
    finally:
        await bridge.stop(1)
        store.close()


async def test_gc_does_what_its_dry_run_said(forgetful: Served) -> None:
    kept = forgetful.store.put_bytes(b"kept" * 1000)
    for number in range(100):
        forgetful.store.put_bytes(b"%d" % number * 1000)
    forgetful.store.hold("someone", [kept])
    before = forgetful.store.statistics()["used_bytes"]
    (said,) = await asyncio.to_thread(as_json, forgetful.url, "gc", "--to", "0", "--dry-run")
    assert said["records"] == 100
    assert forgetful.store.statistics()["used_bytes"] == before
    reasons = (await asyncio.to_thread(as_json, forgetful.url, "why", kept))[0]
    assert (reasons["kept"], reasons["facts"]["held_by"]) == (True, ["someone"])
    (done,) = await asyncio.to_thread(as_json, forgetful.url, "gc", "--to", "0")
    assert (done["records"], done["size_bytes"]) == (said["records"], said["size_bytes"])
    assert done["used_bytes"] < before
    assert forgetful.recorded == ["cache.collected"]
    rows = await asyncio.to_thread(as_json, forgetful.url, "ls")
    assert [row["name"] for row in rows] == [kept]


async def test_why_names_the_next_to_go(forgetful: Served) -> None:
    digest = forgetful.store.put_bytes(b"idle")
    said = await asyncio.to_thread(cas, forgetful.url, "why", digest)
    assert "nothing keeps it: it is among the next to go" in said


async def test_ctrl_c_ends_the_command_and_the_servers_work(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def scrub(request: cache_pb2.ScrubRequest, call: Call) -> AsyncIterator[cache_pb2.ScrubResponse]:
        try:
            yield cache_pb2.ScrubResponse(records=1, records_total=2)
            begun.set()
            await asyncio.Event().wait()
        finally:
            left.set()

    begun = asyncio.Event()
    store = Store(str(tmp_path / "cas"))
    path = "/buildnet.v1.CacheService/Scrub"
    method = Method("server_stream", scrub, cache_pb2.ScrubRequest, cache_pb2.ScrubResponse)
    bridge = Bridge(store, {path: method}, to_status, told_to_memory())
    address = await bridge.serve("127.0.0.1:0")
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "cas", "scrub", "--url", f"grpc://{address}", stderr=asyncio.subprocess.PIPE
        )
        await begun.wait()
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
        assert process.returncode == 130
        assert b"Traceback" not in said
        await asyncio.wait_for(left.wait(), 10)
    finally:
        await bridge.stop(1)
        store.close()


async def test_work_whose_caller_is_gone_is_told_so_and_ends() -> None:
    told: list[bool] = []

    def work(tell: Any) -> int:
        while tell(1, 2):
            told.append(True)
        return 3

    steps = _Work(work).steps()
    assert await anext(steps) == (1, 2)
    await steps.aclose()  # type: ignore[attr-defined]
    assert told


def test_every_command_shows_an_example() -> None:
    for name in ("ls", "stat", "why", "du", "gc", "scrub"):
        ended = subprocess.run([*COMMAND, "cas", name, "--help"], capture_output=True, text=True, timeout=20)
        assert f"Example: buildnet cas {name}" in ended.stdout
