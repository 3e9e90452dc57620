"""One worker's session over real sockets: repeats, breaks, drains. Attempts are scripted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from buildnet.errors import InvalidRequest
from buildnet.model.action import Outcome
from buildnet.model.digest import Digest
from buildnet.testing.attempts import ScriptedRunner
from buildnet.testing.controller import FakeController, FakeSession
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.worker import messages
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity
from buildnet.worker.log_progress import PIECE_BYTES_MAX, WINDOW_BYTES
from buildnet.worker.session import Session

OK = Outcome("ok", b"result", exit_code=0)
IDENTITY = Identity("n" * 32, "b" * 32)


class Clock:
    """Real enough for the age of connections."""

    def now_unix_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class Worker:
    """A session under test."""

    def __init__(self, url: str, state: Path, *, stubborn: bool = False, slots: int = 2, away_ms: int = 60_000) -> None:
        self.config = WorkerConfig(
            url,
            state,
            slots=slots,
            version="0.1.0",
            hostname="here",
            backoff_first_s=0.01,
            backoff_max_s=0.05,
            settle_timeout_s=0.2,
            away_timeout_s=away_ms / 1000,
            stop_timeout_s=0.3,
        )
        self.runner = ScriptedRunner(stubborn=stubborn)
        self.stop = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.joined: list[str] = []
        self.task: asyncio.Task[None]

    async def run(self) -> None:
        session = Session(
            self.config,
            IDENTITY,
            frozenset({("os", "linux")}),
            self.runner,
            clock=Clock(),
            rng=random.Random(1),
            ready=self.joined.append,
        )
        await session.run(self.stop, self.stop_now)


@asynccontextmanager
async def started(url: str, state: Path, **options: bool | int) -> AsyncIterator[Worker]:
    worker = Worker(url, state, **options)  # type: ignore[arg-type]
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        worker.task = tasks.create_task(worker.run())
        yield worker
        worker.stop_now.set()


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    controller = FakeController()
    await controller.start()
    yield controller
    await controller.stop()


async def done(session: FakeSession) -> messages.fleet_pb2.Done:
    message = await session.receive()
    assert message.WhichOneof("message") == "done", message
    return message.done


async def accepted(session: FakeSession) -> int:
    message = await session.receive()
    assert message.WhichOneof("message") == "accepted", message
    return int(message.accepted.fence)


async def test_a_worker_says_what_it_is_and_runs_what_it_is_given(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        hello = session.hello
        assert (hello.node_id, hello.boot_id) == (IDENTITY.node, IDENTITY.boot)
        assert (hello.slots, hello.version, hello.hostname) == (2, "0.1.0", "here")
        assert [(p.name, p.value) for p in hello.properties] == [("os", "linux")]
        assert not hello.running
        session.assign(7)
        assert await accepted(session) == 7
        assert worker.joined == ["controller-1"]
        assert await session.heartbeat() == (7,)
        worker.runner.finish(7, OK)
        answer = await done(session)
        assert (answer.fence, answer.error_code, answer.result) == (7, "", b"result")
        assert await session.heartbeat() == ()
        session.settle(7)
        session.assign(8)
        assert await accepted(session) == 8
        assert await session.heartbeat() == (8,)


async def test_a_repeated_assign_runs_once(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(7)
        session.assign(7)
        assert await accepted(session) == 7
        worker.runner.finish(7, OK)
        await done(session)
        session.assign(7)
        assert (await done(session)).fence == 7
        assert worker.runner.begun == [7]


async def test_only_as_many_attempts_run_as_there_are_slots(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path, slots=1) as worker:
        session = await controller.session()
        session.assign(1)
        session.assign(2)
        assert await accepted(session) == 1
        assert set(await session.heartbeat()) == {1, 2}
        assert worker.runner.begun == [1]
        worker.runner.finish(1, OK)
        assert (await done(session)).fence == 1
        assert await accepted(session) == 2


async def test_while_one_sends_another_runs_and_every_session_hears_of_it(
    controller: FakeController, tmp_path: Path
) -> None:
    controller.takes_command_ended = True
    async with started(controller.url, tmp_path, slots=1) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        worker.runner.handles[1].command_ended()
        message = await session.receive()
        assert (message.WhichOneof("message"), message.command_ended.fence) == ("command_ended", 1)
        session.assign(2)
        assert await accepted(session) == 2
        assert set(await session.heartbeat()) == {1, 2}, "its lease lasts until its outputs are there"
        session.end()
        session = await controller.session()
        assert {await accepted(session), await accepted(session)} == {1, 2}
        assert (await session.receive()).command_ended.fence == 1
        worker.runner.finish(1, OK)
        assert (await done(session)).fence == 1
        # Its slot was given back once.
        session.assign(3)
        assert set(await session.heartbeat()) == {2, 3}
        assert worker.runner.begun == [1, 2]
        worker.runner.finish(2, OK)
        assert (await done(session)).fence == 2
        assert await accepted(session) == 3


async def test_a_controller_that_does_not_take_it_is_not_told_that_a_command_has_ended(
    controller: FakeController, tmp_path: Path
) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        worker.runner.handles[1].command_ended()
        worker.runner.finish(1, OK)
        assert (await done(session)).fence == 1


async def test_what_sends_is_cancelled_and_waited_for_when_draining(controller: FakeController, tmp_path: Path) -> None:
    controller.takes_command_ended = True
    async with started(controller.url, tmp_path, slots=2) as worker:
        session = await controller.session()
        for fence in (1, 2):
            session.assign(fence)
            assert await accepted(session) == fence
            worker.runner.handles[fence].command_ended()
            assert (await session.receive()).command_ended.fence == fence
        session.cancel(1)
        worker.stop.set()
        assert (await session.receive()).WhichOneof("message") == "draining"
        assert await session.heartbeat() == (2,)
        assert not worker.task.done()
        worker.runner.finish(2, OK)
        assert (await done(session)).fence == 2
        session.settle(2)
        await worker.task
        assert worker.runner.stopped == [(1, "asked")]


async def test_a_broken_session_ends_no_attempt_and_is_told_what_it_missed(
    controller: FakeController, tmp_path: Path
) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        session.assign(2)
        assert {await accepted(session), await accepted(session)} == {1, 2}
        await controller.stop()
        worker.runner.finish(1, OK)
        await controller.start()
        session = await controller.session()
        assert {running.fence for running in session.hello.running} == {1, 2}
        assert await accepted(session) == 2
        assert (await done(session)).fence == 1
        # Not settled: the session after it hears it again.
        session.end()
        session = await controller.session()
        assert await accepted(session) == 2
        assert (await done(session)).fence == 1
        session.settle(1)
        worker.runner.finish(2, OK)
        assert (await done(session)).fence == 2
        assert worker.runner.begun == [1, 2]


async def test_what_runs_for_a_controller_that_stays_away_is_stopped_and_results_are_kept(
    controller: FakeController, tmp_path: Path
) -> None:
    async with started(controller.url, tmp_path, away_ms=200) as worker:
        session = await controller.session()
        session.assign(1)
        session.assign(2)
        assert {await accepted(session), await accepted(session)} == {1, 2}
        worker.runner.finish(1, OK)
        assert (await done(session)).fence == 1
        await controller.stop()
        await stopped(worker)
        assert worker.runner.stopped == [(2, "the controller has been away for too long")]
        await controller.start()
        session = await controller.session()
        assert [running.fence for running in session.hello.running] == [1]
        assert (await done(session)).fence == 1


async def stopped(worker: Worker) -> None:
    """Wait until an attempt was stopped; its end wakes nobody here."""
    while not worker.runner.stopped:
        await asyncio.sleep(0.01)


async def test_a_worker_waits_for_a_controller_that_is_not_there_yet(tmp_path: Path) -> None:
    controller = FakeController()
    await controller.start()
    await controller.stop()
    async with started(controller.url, tmp_path) as worker:
        await controller.start()
        await controller.session()
        assert not worker.task.done()
        await controller.stop()


async def test_cancel_stops_an_attempt_and_reports_nothing(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.cancel(99)
        session.assign(1)
        assert await accepted(session) == 1
        session.cancel(1, "nobody waits")
        session.assign(2)
        assert await accepted(session) == 2
        worker.runner.finish(2, OK)
        assert (await done(session)).fence == 2
        assert worker.runner.stopped == [(1, "nobody waits")]


async def test_draining_finishes_hands_over_and_leaves(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        worker.stop.set()
        assert (await session.receive()).WhichOneof("message") == "draining"
        worker.runner.finish(1, OK)
        assert (await done(session)).fence == 1
        assert not worker.task.done()
        session.settle(1)
        await worker.task
        await session.ended.wait()


async def test_the_controller_may_ask_a_worker_to_leave(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.drain()
        assert (await session.receive()).WhichOneof("message") == "draining"
        await worker.task


async def test_stopping_now_kills_and_reports_nothing(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        worker.stop.set()
        worker.stop_now.set()
        await worker.task
        assert worker.runner.stopped == [(1, "the worker is stopping")]
        assert (await session.receive()).WhichOneof("message") == "draining"
        await session.ended.wait()
        assert session._received.empty()


async def test_an_attempt_that_is_stuck_does_not_keep_a_worker_from_stopping(
    controller: FakeController, tmp_path: Path
) -> None:
    async with started(controller.url, tmp_path, stubborn=True) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        worker.stop_now.set()
        await worker.task


async def test_a_draining_worker_does_not_wait_for_ever_for_its_controller(
    controller: FakeController, tmp_path: Path
) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        await controller.stop()
        worker.runner.finish(1, OK)
        worker.stop.set()
        await worker.task


async def test_a_worker_that_never_reached_anybody_stops_at_once(tmp_path: Path) -> None:
    async with started("grpc://127.0.0.1:1", tmp_path) as worker:
        worker.stop.set()
        await worker.task


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED])
async def test_a_first_hello_that_is_refused_ends_the_worker_with_the_reason(
    controller: FakeController, tmp_path: Path, code: grpc.StatusCode
) -> None:
    controller.refusal = (code, "install the same version on both")
    worker = Worker(controller.url, tmp_path)
    with pytest.raises(InvalidRequest, match="install the same version on both"):
        await asyncio.wait_for(worker.run(), 10)


async def test_a_later_refusal_is_waited_out(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        controller.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "not now")
        session.end()
        await session.ended.wait()
        controller.refusal = None
        await controller.session()
        assert not worker.task.done()


async def test_messages_that_a_worker_does_not_know_are_passed_over(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path):
        session = await controller.session()
        session.send(messages.fleet_pb2.JoinResponse())
        bad = messages.fleet_pb2.JoinResponse()
        bad.assign.fence = 3
        bad.assign.action_digest.hash = "nonsense"
        session.send(bad)
        session.assign(4, timeout_s=0)
        session.assign(5)
        assert await accepted(session) == 5


class Printed:
    """The files that a scripted attempt prints to, and what a controller has of them."""

    def __init__(self, worker: Worker, directory: Path) -> None:
        self.paths = [directory / "stdout", directory / "stderr"]
        for path in self.paths:
            path.write_bytes(b"")
        self.log = worker.runner.handles[1].log
        self.log.open(*map(str, self.paths))
        self.got = [bytearray(), bytearray()]
        self.order: list[int] = []

    def say(self, stream: int, data: bytes) -> None:
        with self.paths[stream - 1].open("ab") as file:
            file.write(data)
        self.log.look()

    def take(self, message: fleet_pb2.JoinRequest) -> None:
        log = message.log
        assert log.fence == 1
        assert log.offset <= len(self.got[log.stream - 1]), "a piece is missing"
        self.got[log.stream - 1][log.offset :] = log.data
        self.order.append(log.stream)

    def taken(self, *, resend: bool = False) -> fleet_pb2.JoinResponse:
        message = fleet_pb2.JoinResponse()
        taken = message.log_taken
        taken.fence, taken.stdout_offset, taken.stderr_offset = 1, len(self.got[0]), len(self.got[1])
        taken.resend = resend
        return message


async def test_logs_come_before_the_result_both_streams_in_order(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        printed = Printed(worker, tmp_path)
        printed.say(1, b"one\n")
        printed.say(2, b"two\n")
        printed.say(1, b"three\n")
        worker.runner.finish(1, OK)
        while (message := await session.receive()).WhichOneof("message") == "log":
            printed.take(message)
        assert message.done.fence == 1
        assert printed.got == [b"one\nthree\n", b"two\n"]
        assert printed.order == [1, 2, 1]


async def test_no_more_than_a_window_is_sent_and_the_rest_once_it_is_taken(
    controller: FakeController, tmp_path: Path
) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        printed = Printed(worker, tmp_path)
        size = 6 << 20
        printed.say(1, bytes(range(256)) * (size // 256))
        while len(printed.got[0]) < WINDOW_BYTES - PIECE_BYTES_MAX:
            printed.take(await session.receive())
        assert worker.runner.handles[1].log.waits
        # The rest of the window, and not a byte more, until something is taken.
        while len(printed.got[0]) < size:
            session.send(printed.taken())
            printed.take(await session.receive())
        assert printed.got[0] == bytes(range(256)) * (size // 256)


async def test_a_result_does_not_wait_for_ever_for_a_log_that_nobody_takes(
    controller: FakeController, tmp_path: Path
) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        printed = Printed(worker, tmp_path)
        printed.say(1, b"x" * (8 << 20))
        worker.runner.finish(1, OK)
        while (message := await session.receive()).WhichOneof("message") == "log":
            printed.take(message)
        assert message.done.fence == 1
        assert len(printed.got[0]) <= WINDOW_BYTES + PIECE_BYTES_MAX


async def test_what_was_on_its_way_when_a_session_broke_comes_again(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        printed = Printed(worker, tmp_path)
        printed.say(1, b"one\n")
        printed.take(await session.receive())
        session.send(printed.taken())
        printed.say(1, b"two\n")
        # It comes, and is lost with the controller that got it.
        assert (await session.receive()).log.data == b"two\n"
        await controller.stop()
        printed.say(2, b"meanwhile\n")
        await controller.start()
        session = await controller.session()
        assert [lease.fence for lease in session.hello.running] == [1]
        assert await accepted(session) == 1
        while len(printed.got[1]) < len(b"meanwhile\n"):
            printed.take(await session.receive())
        assert printed.got == [b"one\ntwo\n", b"meanwhile\n"]


async def test_a_controller_that_lost_a_log_gets_it_again(controller: FakeController, tmp_path: Path) -> None:
    async with started(controller.url, tmp_path) as worker:
        session = await controller.session()
        session.assign(1)
        assert await accepted(session) == 1
        printed = Printed(worker, tmp_path)
        printed.say(1, b"one\n")
        printed.take(await session.receive())
        session.send(printed.taken())
        printed.got[0].clear()
        session.send(printed.taken(resend=True))
        printed.take(await session.receive())
        assert printed.got[0] == b"one\n"


def test_a_result_that_no_session_could_carry_becomes_an_error_that_one_can() -> None:
    outcome = replace(OK, result=b"x" * (5 << 20))
    message = messages.told(messages.TellDone(1, outcome))
    assert message.done.error_code == "too_large"
    assert message.ByteSize() < 1024


def test_every_missing_blob_is_named() -> None:
    texts = tuple(Digest.of(bytes([n])).text for n in range(200))
    outcome = Outcome("blobs_missing", None, "missing", missing=texts)
    message = messages.told(messages.TellDone(1, outcome))
    assert tuple(f"{d.hash}/{d.size_bytes}" for d in message.done.missing) == texts
