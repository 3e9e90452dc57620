"""What an action prints reaches whoever follows it, from wherever they are, while it runs and after."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from buildnet.client import Client, LogPiece
from buildnet.errors import InvalidRequest
from tests.conftest import COMMAND, Role

# The gates are in the home directory, which actions see when they say so.
MACHINE = {"read": "ambient"}
ENV = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def gates() -> Iterator[Path]:
    """A directory that actions see, for files that they wait for."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        yield Path(directory)


def until(gate: Path) -> str:
    return f"while ! test -e {gate}; do sleep 0.02; done"


async def executing(client: Client, word: str) -> str:
    """The id of the operation whose command has `word` in it, once it executes."""
    while True:
        for info in await client.actions():
            if info.state == "executing" and word in " ".join(info.arguments):
                return info.id
        await asyncio.sleep(0.02)


async def some(pieces: AsyncIterator[LogPiece], stream: int, size_bytes: int) -> list[LogPiece]:
    found: list[LogPiece] = []
    while sum(len(piece.data) for piece in found if piece.stream == stream) < size_bytes:
        found.append(await anext(pieces))
    return found


async def test_followers_see_both_streams_as_they_came_and_so_do_those_who_come_late(
    running: Role, gates: Path
) -> None:
    first, second, third = (until(gates / name) for name in "123")
    script = f"echo one; {first}; echo two >&2; {second}; echo three; {third}; echo four"
    async with Client(running.url) as client, asyncio.timeout(60):
        run = asyncio.ensure_future(client.run(["/bin/sh", "-c", script], env=ENV, effects=MACHINE, do_not_cache=True))
        operation = await executing(client, str(gates))
        follower = client.logs(operation, follow=True)
        live = await some(follower, 1, 4)
        (gates / "1").touch()
        live += await some(follower, 2, 4)
        (gates / "2").touch()
        live += await some(follower, 1, 6)
        # A reader that has some already goes on from there, and one that does not follow leaves.
        assert [piece.data async for piece in client.logs(operation, offsets=(4, 0))] == [b"two\n", b"three\n"]
        (gates / "3").touch()
        live += [piece async for piece in follower]
        await run
        assert [(piece.stream, piece.data) for piece in live] == [
            (1, b"one\n"),
            (2, b"two\n"),
            (1, b"three\n"),
            (1, b"four\n"),
        ]
        times = [piece.printed_at_unix_s for piece in live]
        assert all(time is not None for time in times)
        assert times == sorted(times)  # type: ignore[type-var]
        assert len({piece.fence for piece in live}) == 1
        assert [piece async for piece in client.logs(operation)] == live
        assert [piece.data async for piece in client.logs(operation, streams=[2])] == [b"two\n"]


async def test_a_slow_reader_holds_up_neither_the_action_nor_others(running: Role, gates: Path) -> None:
    script = f"head -c 20000000 /dev/zero; {until(gates / 'go')}; echo end"
    async with Client(running.url) as client, asyncio.timeout(90):
        run = asyncio.ensure_future(client.run(["/bin/sh", "-c", script], env=ENV, effects=MACHINE, do_not_cache=True))
        operation = await executing(client, str(gates))
        slow = client.logs(operation, follow=True)
        taken = len((await anext(slow)).data)
        other = client.logs(operation, follow=True)
        await some(other, 1, 20_000_000)
        (gates / "go").touch()
        assert (await run).exit_code == 0
        async for piece in slow:
            assert not piece.gap
            assert piece.offset == taken
            taken = piece.offset + len(piece.data)
        assert taken == 20_000_004


async def test_a_log_of_many_megabytes_comes_whole(running: Role) -> None:
    digests: list[bytes] = []
    async with Client(running.url) as client, asyncio.timeout(90):
        result = await client.run(
            ["/bin/sh", "-c", "seq 1000000"],
            env=ENV,
            do_not_cache=True,
            on_log=lambda piece: digests.append(piece.data),
        )
        assert b"".join(digests) == await asyncio.to_thread(result.stdout)


def received_bytes(running: Role, method: str) -> int:
    with urllib.request.urlopen(f"http://{running.ready['listen']}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("buildnet_received_bytes_total") and f'/{method}"' in line]
    return int(counts[0].rpartition(" ")[2]) if counts else 0


async def test_a_long_log_is_sent_once_and_is_the_log_of_record(running: Role) -> None:
    before = received_bytes(running, "Write")
    script = "seq 1000000; seq 300000 >&2; printf end"
    async with Client(running.url) as client, asyncio.timeout(90):
        result = await client.run(["/bin/sh", "-c", script], env=ENV)
        printed = [await asyncio.to_thread(stream) for stream in (result.stdout, result.stderr)]
    whole = [b"".join(b"%d\n" % number for number in range(1, count + 1)) for count in (1_000_000, 300_000)]
    assert printed == [whole[0] + b"end", whole[1]]
    assert received_bytes(running, "KeepLog") > 0
    assert received_bytes(running, "Write") == before, "no byte of it was uploaded"


async def test_a_log_that_the_controller_lost_is_uploaded(running: Role, gates: Path) -> None:
    before = received_bytes(running, "Write")
    script = f"head -c 5000000 /dev/zero; {until(gates / 'go')}; printf end"
    async with Client(running.url) as client, asyncio.timeout(90):
        run = asyncio.ensure_future(client.run(["/bin/sh", "-c", script], env=ENV, effects=MACHINE, do_not_cache=True))
        operation = await executing(client, str(gates))
        fence = (await some(client.logs(operation, follow=True), 1, 5_000_000))[0].fence
        spooled = list(Path(str(running.ready["state"]), "logs").glob(f"{fence:016x}-*.log"))
        assert spooled
        for path in spooled:
            path.unlink()
        (gates / "go").touch()
        assert await asyncio.to_thread((await run).stdout) == bytes(5_000_000) + b"end"
    assert received_bytes(running, "Write") - before > 5_000_000


async def test_a_stream_that_is_none_is_refused(running: Role) -> None:
    async with Client(running.url) as client:
        await client.run(["/bin/true", "stream"])
        operation = next(info.id for info in await client.actions() if "stream" in info.arguments)
        with pytest.raises(InvalidRequest, match="no stream 7"):
            await anext(client.logs(operation, streams=[7]))


def logs_command(running: Role, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    words = [*COMMAND, "actions", "logs", "--state", str(running.ready["state"]), *arguments]
    return subprocess.run(words, capture_output=True, timeout=60)


async def test_the_command_prints_what_is_asked_for(running: Role, gates: Path) -> None:
    # The worker looks at files: only what it has seen for itself is a piece of its own, and only what has come before
    # the end has a time for certain.
    script = f"echo one; {until(gates / '1')}; echo two >&2; printf half; {until(gates / '2')}"
    async with Client(running.url) as client, asyncio.timeout(60):
        run = asyncio.ensure_future(client.run(["/bin/sh", "-c", script], env=ENV, effects=MACHINE))
        operation = await executing(client, str(gates))
        follower = client.logs(operation, follow=True)
        await some(follower, 1, 4)
        (gates / "1").touch()
        rest = [await anext(follower), await anext(follower)]
        assert sorted(piece.data for piece in rest) == [b"half", b"two\n"]
        (gates / "2").touch()
        await run
    plain = logs_command(running, operation)
    assert (plain.stdout, plain.stderr) == (b"one\nhalf", b"two\n")
    only = logs_command(running, "--stderr", operation)
    assert (only.stdout, only.stderr) == (b"", b"two\n")
    later = logs_command(running, "--since-offset", "4:1", operation)
    assert (later.stdout, later.stderr) == (b"half", b"wo\n")
    stamped = logs_command(running, "--timestamps", "--stdout", operation)
    first, last = stamped.stdout.decode().split("\n")
    assert first.startswith("20")
    assert (first[23:], last[23:]) == ("  one", "  half")
    rows = [json.loads(line) for line in logs_command(running, "--json", operation).stdout.splitlines()]
    # What is printed within one look of the worker is in order within its stream only.
    shown = [(row["stream"], row["offset"], row["text"]) for row in rows]
    assert sorted(shown) == [(1, 0, "one\n"), (1, 4, "half"), (2, 0, "two\n")]
    wrong = logs_command(running, "--since-offset", "x", operation)
    assert wrong.returncode != 0
    assert b"--since-offset 4096:0" in wrong.stderr
