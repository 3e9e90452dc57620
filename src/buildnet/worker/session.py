"""The worker dials out and keeps one session to its controller, for ever. It owns no policy: the
lease book decides.

A session that breaks ends no attempt: the next one reports what is held and repeats what is not
settled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from google.protobuf.message import DecodeError

from buildnet.dial import call_of
from buildnet.errors import BuildNetError, CallerError, InvalidRequest, Untrusted
from buildnet.model.action import Outcome, Properties
from buildnet.model.digest import Digest
from buildnet.ports import Clock
from buildnet.wire import times
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_of
from buildnet.worker import lease_book, messages
from buildnet.worker.announcer import Announcer
from buildnet.worker.attempt import AttemptLog, Handle, Runner
from buildnet.worker.backoff import Backoff
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity, Randomness
from buildnet.worker.lease_book import Assignment, Book
from buildnet.worker.outbox import Outbox
from buildnet.worker.stream import Excerpt, Stream
from buildnet.worker.uplink import Uplink

_log = logging.getLogger(__name__)
_JOIN: Final = "/buildnet.v1.FleetService/Join"
_JOIN_TIMEOUT_S: Final = 10.0
_LEAVE_TIMEOUT_S: Final = 2.0
_HEARTBEAT_INTERVAL_DEFAULT_S: Final = 1.0
# A result waits so long for the log before it to be sent; the stored log has it all.
_LOG_SENT_TIMEOUT_S: Final = 2.0
# An attempt that ends within this is told of once, by its end.
_ACCEPTED_LINGER_S: Final = 0.02
_INVALID_ARGUMENT, _PERMISSION_DENIED, _FAILED_PRECONDITION, _UNIMPLEMENTED, _UNAUTHENTICATED = 3, 7, 9, 12, 16
# Repeating a first Hello that was refused for one of these would be refused for ever. Codes of gRPC's status.
_REFUSALS: Final = {
    _INVALID_ARGUMENT,
    _UNIMPLEMENTED,
    _UNAUTHENTICATED,
    _PERMISSION_DENIED,
    _FAILED_PRECONDITION,
}

Ready = Callable[[str], None]
"""Told the controller's id each time a session begins."""


class _Ended(Exception):
    """The call ended before there was a session."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text or f"it ended with code {code}"


class Session:
    """One worker's conversation with its controller, over as many connections as it takes."""

    def __init__(
        self,
        config: WorkerConfig,
        identity: Identity,
        properties: Properties,
        runner: Runner,
        *,
        prefetch: Callable[[Digest], None] = lambda action: None,
        be_strict: Callable[[bool], None] = lambda strict: None,
        clock: Clock,
        rng: Randomness,
        ready: Ready | None = None,
        announcer: Announcer | None = None,
        uplink: Uplink | None = None,
    ) -> None:
        self._config = config
        self._uplink = uplink
        self._open = partial(call_of, config.address, config.credentials) if uplink is None else uplink.call
        self._announcer = announcer
        self._controller_id = ""
        self._takes_command_ended = False
        self._identity = identity
        self._properties = properties
        self._runner = runner
        self._prefetch = prefetch
        self._be_strict = be_strict
        self._clock = clock
        self._ready = ready
        self._backoff = Backoff(config.backoff_first_s, config.backoff_max_s, rng)
        self._book = Book()
        self._handles: dict[int, Handle] = {}
        self._accepted: dict[int, asyncio.TimerHandle] = {}
        # Logs that may have something to send, in the order of their turns.
        self._printing: dict[int, AttemptLog] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self._outbox = Outbox()
        self._slots = asyncio.Semaphore(config.attempts_max)
        self._leaving = asyncio.Event()
        self._owing = asyncio.Event()
        self._away = asyncio.Event()
        self._here = asyncio.Event()
        self._ever_joined = False
        self._refused: InvalidRequest | None = None
        self._tasks: asyncio.TaskGroup

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serve until told to stop and nothing is owed any more.

        Raises:
            InvalidRequest: the controller refused the very first Hello.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            watching = [
                tasks.create_task(self._when(stop, lease_book.DrainAsked())),
                tasks.create_task(self._when(stop_now, lease_book.StopAsked())),
                tasks.create_task(self._give_up_settling()),
                tasks.create_task(self._give_up_running()),
                tasks.create_task(self._give_up_stopping(stop_now)),
            ]
            talking = tasks.create_task(self._keep_talking())
            await self._leaving.wait()
            # The session says goodbye by itself; a peer that does not listen is not waited for.
            await asyncio.wait({talking}, timeout=_LEAVE_TIMEOUT_S)
            for task in (talking, *watching, *self._attempts):
                task.cancel()
        if self._refused is not None:
            raise self._refused
        for fence in self._book.unsettled:
            _log.warning("left without handing over the result of fence %016x", fence)

    async def _when(self, asked: asyncio.Event, event: lease_book.Event) -> None:
        await asked.wait()
        self._apply(event)

    async def _give_up_settling(self) -> None:
        """Leave a controller that stays away: whoever asked this worker to drain does not wait for
        ever.
        """
        while True:
            await self._owing.wait()
            await asyncio.sleep(self._config.settle_timeout_s)
            if self._owing.is_set():
                self._apply(lease_book.StopAsked())

    async def _give_up_running(self) -> None:
        """Stop what runs for a controller that stays away: it, or the next one, adopts what runs only for a while."""
        while True:
            await self._away.wait()
            try:
                await asyncio.wait_for(self._here.wait(), self._config.away_timeout_s)
            except TimeoutError:
                self._apply(lease_book.Abandoned())
                await self._here.wait()

    async def _give_up_stopping(self, stop_now: asyncio.Event) -> None:
        await stop_now.wait()
        await asyncio.sleep(self._config.stop_timeout_s)
        for fence in self._book.running:
            _log.warning("left fence %016x behind, which did not stop in time", fence)
        self._leaving.set()
        self._outbox.close()

    # The book and what follows from it.

    def _apply(self, event: lease_book.Event) -> None:
        self._book, effects = lease_book.step(self._book, event)
        for effect in effects:
            match effect:
                case lease_book.Start():
                    self._start(effect.assignment)
                case lease_book.Kill():
                    self._handles[effect.fence].stop(effect.reason)
                case lease_book.TellAccepted() if isinstance(event, lease_book.Begun):
                    self._forget_accepted(effect.fence)
                    later = asyncio.get_running_loop().call_later
                    self._accepted[effect.fence] = later(_ACCEPTED_LINGER_S, self._tell_accepted, effect)
                case lease_book.TellCommandEnded():
                    if self._takes_command_ended:
                        self._outbox.put(messages.told(effect))
                case lease_book.TellDone():
                    self._forget_accepted(effect.fence)
                    self._outbox.put(messages.told(effect))
                case _:
                    self._outbox.put(messages.told(effect))
        book = self._book
        (self._here if book.joined else self._away).set()
        (self._away if book.joined else self._here).clear()
        if book.draining and not book.running and not book.joined:
            self._owing.set()
        else:
            self._owing.clear()
        if book.free_to_leave:
            self._leaving.set()
            self._outbox.close()

    def _tell_accepted(self, effect: lease_book.TellAccepted) -> None:
        self._forget_accepted(effect.fence)
        self._outbox.put(messages.told(effect))

    def _forget_accepted(self, fence: int) -> None:
        if (timer := self._accepted.pop(fence, None)) is not None:
            timer.cancel()

    def _start(self, assignment: Assignment) -> None:
        fence = assignment.fence
        log = AttemptLog(fence, self._clock, lambda: self._log_waits(fence))
        handle = Handle(log)
        self._handles[fence] = handle
        attempt = self._tasks.create_task(self._attempt(assignment, handle))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)

    async def _attempt(self, assignment: Assignment, handle: Handle) -> None:
        fence = assignment.fence
        await self._slots.acquire()
        handle.on_command_ended(partial(self._command_ended, fence))
        try:
            if handle.stop_reason is None:
                self._apply(lease_book.Begun(fence))
                outcome = await self._runner.run(assignment, handle)
            else:
                outcome = Outcome("cancelled", None, handle.stop_reason)
        finally:
            if not handle.has_ended:
                self._slots.release()
        if self._book.joined and handle.stop_reason is None:
            # The controller takes no more of a log once it has the result.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOG_SENT_TIMEOUT_S):
                    await handle.log.emptied()
        handle.log.close()
        self._printing.pop(fence, None)
        del self._handles[fence]
        self._apply(lease_book.Finished(fence, outcome))

    def _command_ended(self, fence: int) -> None:
        # What it sends takes a thread, and no place of one that runs.
        self._slots.release()
        self._apply(lease_book.CommandEnded(fence))

    # Logs.

    def _log_waits(self, fence: int) -> None:
        if (handle := self._handles.get(fence)) is not None:
            if fence in self._accepted:
                # What it prints comes after that it runs.
                self._tell_accepted(lease_book.TellAccepted(fence))
            self._printing[fence] = handle.log
            self._outbox.log_waits()

    def _next_log(self) -> Excerpt | None:
        """A piece of the log whose turn it is."""
        while self._printing and self._book.joined:
            fence = next(iter(self._printing))
            log = self._printing.pop(fence)
            if (message := log.next_message()) is not None:
                self._printing[fence] = log
                return message
        return None

    def _log_taken(self, taken: fleet_pb2.LogTaken) -> None:
        if (handle := self._handles.get(taken.fence)) is not None:
            handle.log.taken((taken.stdout_offset, taken.stderr_offset), resend=taken.resend)

    def _session_began(self, outbox: Outbox) -> None:
        self._outbox = outbox
        for fence, handle in self._handles.items():
            handle.log.rewind()
            self._log_waits(fence)

    def _session_ended(self) -> None:
        self._apply(lease_book.Lost())
        for handle in self._handles.values():
            handle.log.give_up()

    # Connections.

    async def _keep_talking(self) -> None:
        while not self._leaving.is_set():
            began_s = self._clock.monotonic_s()
            reason = self._bare(await self._connect())
            if self._leaving.is_set():
                return
            self._backoff.lasted(self._clock.monotonic_s() - began_s)
            delay_s = self._backoff.next_s()
            _log.warning("no session with %s (%s); trying again in %.1f s", self._config.url, reason, delay_s)
            try:
                await asyncio.wait_for(self._leaving.wait(), delay_s)
            except TimeoutError:
                continue

    async def _connect(self) -> str:
        """Hold one session; return why it ended."""
        try:
            outbox = Outbox(self._next_log)
            outbox.put(self._hello())
            welcome: asyncio.Future[fleet_pb2.Welcome] = asyncio.get_running_loop().create_future()
            with Stream(self._open(_JOIN), outbox, partial(self._heard, outbox, welcome)) as stream:
                try:
                    async with asyncio.timeout(_JOIN_TIMEOUT_S):
                        intervals_s = await self._join(stream, welcome)
                    return await self._converse(stream, *intervals_s)
                finally:
                    if welcome.done():
                        self._session_ended()
        except TimeoutError:
            return f"no welcome within {_JOIN_TIMEOUT_S:g} s"
        except _Ended as error:
            if self._uplink is not None and (failure := self._uplink.failure()) is not None:
                # There was no session to call in: why is known where it was dialled.
                if not self._ever_joined and isinstance(failure, CallerError | Untrusted):
                    self._refuse(failure.message)
                return failure.message
            if not self._ever_joined and error.code in _REFUSALS:
                self._refuse(error.text)
            return error.text
        except InvalidRequest as error:
            if not self._ever_joined:
                self._refuse(error.message)
            return error.message

    def _refuse(self, reason: str) -> None:
        self._refused = InvalidRequest(f"{self._config.url} refused this worker: {self._bare(reason)}", field="hello")
        self._leaving.set()

    def _bare(self, reason: str) -> str:
        # Those that dial say whom; the sentences that it goes into say it already.
        return reason.removeprefix(f"{self._config.url}: ")

    def _hello(self) -> fleet_pb2.JoinRequest:
        return messages.hello_of(
            self._config,
            self._identity,
            self._properties,
            self._book.held,
            sent_unix_ms=self._clock.now_unix_ms(),
        )

    async def _join(self, stream: Stream, welcome: asyncio.Future[fleet_pb2.Welcome]) -> tuple[float, float]:
        """Wait for the Welcome; return the heartbeat intervals in seconds: with leases, without."""
        either: set[asyncio.Future[Any]] = {welcome, stream.over}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not welcome.done():
            raise _Ended(*stream.over.result())
        said = welcome.result()
        if self._uplink is not None:
            await asyncio.to_thread(self._uplink.remember)
        if self._ready is not None:
            self._ready(said.controller_id)
        interval_s = times.seconds(said.heartbeat_interval) or _HEARTBEAT_INTERVAL_DEFAULT_S
        return interval_s, max(interval_s, times.seconds(said.idle_heartbeat_interval))

    def _heard(self, outbox: Outbox, welcome: asyncio.Future[fleet_pb2.Welcome], received: Sequence[bytes]) -> None:
        """Take what came in one turn.

        Raises:
            InvalidRequest: it cannot come from a controller.
        """
        for body in received:
            try:
                message = fleet_pb2.JoinResponse.FromString(body)
            except DecodeError:
                raise InvalidRequest("it sent what cannot be decoded", field="message") from None
            if welcome.done():
                self._take(message)
                continue
            if not message.HasField("welcome"):
                raise InvalidRequest(
                    "it answered Hello with something other than Welcome; is it a BuildNET controller?",
                    field="welcome",
                )
            self._session_began(outbox)
            self._ever_joined = True
            self._controller_id = message.welcome.controller_id
            self._be_strict(message.welcome.strict)
            self._takes_command_ended = message.welcome.takes_command_ended
            welcome.set_result(message.welcome)
            self._apply(lease_book.Joined(message.welcome.controller_id))

    def _take(self, message: fleet_pb2.JoinResponse) -> None:
        if message.HasField("announced"):
            if self._announcer is not None:
                self._announcer.heard(message.announced)
            return
        if message.HasField("log_taken"):
            self._log_taken(message.log_taken)
            return
        try:
            if message.HasField("prefetch"):
                self._prefetch(digest_of(message.prefetch.action_digest))
                return
            event = messages.event_of(message)
        except BuildNetError as error:
            # A newer controller may say what this worker does not know; its lease will run out.
            _log.warning("ignored a message of the controller: %s", error.message)
            return
        self._apply(event)

    async def _converse(self, stream: Stream, interval_s: float, idle_interval_s: float) -> str:
        tasks = {asyncio.ensure_future(self._beat(interval_s, idle_interval_s))}
        if self._announcer is not None:
            tasks.add(asyncio.ensure_future(self._announcer.run(self._controller_id, self._outbox.put)))
        waiting: set[asyncio.Future[Any]] = {stream.over, *tasks}
        try:
            while stream.over in waiting:
                ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in ended - {stream.over}:
                    one.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        code, text = stream.over.result()
        if code:
            raise _Ended(code, text)
        return "the controller ended it"

    async def _beat(self, interval_s: float, idle_interval_s: float) -> None:
        """Renew leases at every interval; with none, say at longer ones that this worker lives."""
        silent_s = 0.0
        while True:
            await asyncio.sleep(interval_s)
            silent_s += interval_s
            held = self._book.wanted
            # Half an interval of grace, so that a sum of roundings does not skip a beat.
            if held or silent_s + interval_s / 2 >= idle_interval_s:
                silent_s = 0.0
                self._outbox.put(messages.heartbeat_of(held, sent_unix_ms=self._clock.now_unix_ms()))
