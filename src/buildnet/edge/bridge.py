"""Python's end of the door: a batch of events in, a batch of replies out. It knows no service and no policy.

One bad event or reply never loses its batch. A call's task is cancelled when its caller is gone.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, cast

from google.protobuf.message import DecodeError

from buildnet._native import Body, Door, Store, Tiers
from buildnet.edge.flow import END, FAIL, REPLY, Duplex, Exchange, Requests
from buildnet.edge.results import ClientResult
from buildnet.errors import BuildNetError
from buildnet.model.caller import ANYBODY, Caller
from buildnet.wire.native import translated

log = logging.getLogger(__name__)

Kind = Literal["unary", "server_stream", "bidi"]
Failure = tuple[int, str, bytes]

_CALL, _MESSAGE, _HALF_CLOSE, _CANCEL, _CREDIT, _DRAINED, _RESULTS, _SAID, _REQUEST, _GREETED, _ENDED = range(11)
_REKEYED: Final = 11
_CALLER: Final = "buildnet-caller-"
_CANCELLED: Final[Failure] = (1, "the call was cancelled", b"")
_INVALID_ARGUMENT: Final = 3
_INTERNAL: Final[Failure] = (13, "internal error; the server's log has the details", b"")
_LAST_WORDS_S: Final = 0.2
# Of a wide stream, and how many have it at once: replies that wait in the door are bounded by the two together.
WIDE_WINDOW_BYTES: Final = 2 << 20
WIDE_STREAMS_MAX: Final = 32
_STOPPING: Final[Failure] = (14, "the server is stopping", b"")


@dataclass(frozen=True, slots=True)
class Method:
    """One method: how its messages flow, who answers, and the types of its messages.

    A unary handler takes (request, Call) and returns the reply, plainly or as an awaitable. A server-streaming one is
    an async generator over the same; a bidi one gets an async iterator of requests, or, where the method is `direct`,
    is a coroutine function over a Duplex. A stream of replies that is `wide` has a larger window while few have one.
    `read` makes of a request of a stream what its handler gets, where that is no message of `request`.
    """

    kind: Kind
    handler: Callable[[Any, Call], Any]
    request: type[Any]
    response: type[Any]
    direct: bool = False
    wide: bool = False
    read: Callable[[bytes | Body], Any] | None = None


@dataclass(frozen=True, slots=True)
class Parted:
    """A reply of a stream: a message without its last field, and what follows in it, which stays native."""

    head: bytes
    rest: Body


@dataclass(slots=True)
class Call:
    """What is known of a call beside its messages. `timeout_s` is what was left when it came; the door has checked that
    the `caller` may make it.
    """

    id: int
    peer: str
    metadata: list[tuple[str, str | bytes]]
    timeout_s: float | None
    caller: Caller = ANYBODY


def _caller_of(metadata: list[tuple[str, str | bytes]]) -> Caller:
    """The door's word (native/door/src/access.rs, facts); it drops what a client sends under these names."""
    facts = [(key.removeprefix(_CALLER), str(value)) for key, value in metadata if key.startswith(_CALLER)]
    if not facts:
        return ANYBODY
    single = dict(facts)
    instances = tuple(value for key, value in facts if key == "instance") if "limited" in single else None
    return Caller(single.get("subject", ""), single.get("namespace", ""), instances, single.get("node", ""))


@dataclass(frozen=True, slots=True)
class WebRequest:
    """One HTTP request that is for no cache, whole. `path` is decoded, `query` is as it was sent, names of headers are
    in lower case; the door has checked that the `caller` may make it.
    """

    method: str
    path: str
    query: str
    version: str
    scheme: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    peer: str
    caller: Caller = ANYBODY


@dataclass(frozen=True, slots=True)
class Greeted:
    """A node that has proven its keys in a session: what it is let in by, or not. `token` is a join token, raw."""

    session: int
    key: str
    token: bytes | None = field(repr=False)
    pattern: str
    peer: str


class Gate(Protocol):
    """Who is let in by sessions, and who hears of their end."""

    async def admit(self, greeted: Greeted) -> None:
        """Return to let the node in; what is raised, it is told."""
        ...

    def rekeyed(self, session: int, key: str, rekeys: int) -> None:
        """The keys of a session that was let in were changed, so often in all; not every change is told."""
        ...

    def ended(self, session: int, key: str, reason: str, rekeys: int) -> None:
        """A session that was let in is over; `reason` is empty for an orderly end."""
        ...


WebAnswer = Callable[[WebRequest, Exchange], Coroutine[Any, Any, None]]


class Bridge:
    """The door with Python's handlers behind it."""

    def __init__(
        self,
        store: Store,
        methods: Mapping[str, Method],
        to_status: Callable[[BuildNetError], Failure],
        record_results: Callable[[list[str], list[ClientResult]], Awaitable[Sequence[int]]],
        *,
        execution: bool = True,
        access: Mapping[str, Any] | None = None,
        tls: Mapping[str, Any] | None = None,
        local: bool = False,
        sessions: Mapping[str, Any] | None = None,
        gate: Gate | None = None,
        web: WebAnswer | None = None,
        tiers: Tiers | None = None,
        observed: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._methods = list(methods.values())
        self._to_status = to_status
        self._record_results = record_results
        self._web = web
        self._gate = gate
        # `observed`: how the door is watched (buildnet._native.Door: durability, access_log, slow_ms, traces, ...).
        with translated():
            self._door = Door(
                store,
                [(path, method.kind) for path, method in methods.items()],
                execution=execution,
                access=access,
                tls=tls,
                local=local,
                sessions=sessions if gate is not None else None,
                application=web is not None,
                tiers=tiers,
                **observed,
            )
        self.local_address: str | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, Requests] = {}
        self._exchanges: dict[int, Exchange] = {}
        self._wide: set[int] = set()
        self._stopping = False
        self._outbox: list[tuple[int, int, Any]] = []
        self._flushing = False
        self._drained = asyncio.Event()

    async def serve(self, listen: str) -> str:
        """Listen, and return the address with the port that was taken. `local_address` is known from then on.

        Raises:
            PortInUse: the address is taken.
            InvalidRequest: it cannot be listened on.
        """
        self._loop = asyncio.get_running_loop()
        with translated():
            address = await asyncio.to_thread(self._door.start, listen)
        self.local_address = self._door.local_address
        self._loop.add_reader(self._door.fd, self._on_wake)
        return address

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let open calls end for `grace_s`, then end them with UNAVAILABLE; streams at once."""
        self._door.stop()
        self._stopping = True
        # After their last words they wait for what comes no more; who follows one goes on with the next controller.
        if streaming := [task for call_id, task in self._tasks.items() if call_id in self._streams]:
            await asyncio.wait(streaming, timeout=min(grace_s, _LAST_WORDS_S))
        for call_id in list(self._streams):
            self.emit((call_id, FAIL, _STOPPING))
            if (task := self._tasks.get(call_id)) is not None:
                task.cancel()
        for exchange in self._exchanges.values():
            exchange.leave.set()
        try:
            await asyncio.wait_for(self._drained.wait(), grace_s)
        except TimeoutError:
            for call_id, task in list(self._tasks.items()):
                self.emit((call_id, FAIL, _STOPPING))
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=grace_s)
            self._flush()
        finally:
            self._loop.remove_reader(self._door.fd)
            await asyncio.to_thread(self._door.close)

    def report(self, values: Mapping[str, int]) -> None:
        """Show numbers on /metrics and /status, beside those that the door counts itself."""
        with translated():
            self._door.report(values)

    def take_usage(self) -> list[dict[str, Any]]:
        """What each caller did with the cache since this was last asked (native/door/src/usage.rs)."""
        return self._door.take_usage()

    def end_sessions(self, key: str, error: BuildNetError) -> int:
        """End every session of the node with this key, telling it why; return how many those are."""
        code, text, _ = self._to_status(error)
        with translated():
            return self._door.end_sessions(key, code, text)

    def reopen_log(self) -> None:
        """Open the access log anew: its file was moved away."""
        self._door.reopen_log()

    def statistics(self) -> dict[str, int]:
        """Counts of calls and batches."""
        return {**self._door.statistics(), "tasks": len(self._tasks), "streams": len(self._streams)}

    def emit(self, op: tuple[int, int, Any]) -> None:
        """Queue one decision for the end of this turn of the loop."""
        self._outbox.append(op)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        outbox, self._outbox = self._outbox, []
        if outbox:
            self._door.submit(outbox)

    def _on_wake(self) -> None:
        for event in self._door.drain():
            try:
                self._on_event(event)
            except Exception:
                log.exception("an event of the door could not be handled")
                if len(event) > 1:
                    self.emit((event[1], FAIL, _INTERNAL))

    def _on_event(self, event: tuple[Any, ...]) -> None:
        match event[0]:
            case 0:  # _CALL
                self._on_call(*event[1:])
            case 1:  # _MESSAGE
                if (stream := self._streams.get(event[1])) is not None:
                    stream.message(event[2])
            case 2:  # _HALF_CLOSE
                if (stream := self._streams.get(event[1])) is not None:
                    stream.end()
            case 3:  # _CANCEL
                # A task cancelled before its first step never reaches its `finally`: forget it here.
                self._forget_stream(event[1])
                self._exchanges.pop(event[1], None)
                if (task := self._tasks.pop(event[1], None)) is not None:
                    task.cancel()
            case 4:  # _CREDIT
                if (sender := self._streams.get(event[1]) or self._exchanges.get(event[1])) is not None:
                    sender.credit(event[2])
            case 5:  # _DRAINED
                self._drained.set()
            case 7:  # _SAID
                log.warning("%s", event[1])
            case 8:  # _REQUEST
                self._on_request(*event[1:])
            case 6 | 9 | 10 | 11:  # _RESULTS, _GREETED, _ENDED, _REKEYED
                self._on_door(event)

    def _on_door(self, event: tuple[Any, ...]) -> None:
        """What the door itself asks or tells, in nobody's call."""
        if event[0] == _RESULTS:
            self._spawn(event[1], self._results(event[1], event[2], [ClientResult(*told) for told in event[3]]))
            return
        assert self._gate is not None, "only a door with a gate has sessions"
        if event[0] == _GREETED:
            self._spawn(event[1], self._admit(Greeted(*event[1:]), self._gate))
        elif event[0] == _REKEYED:
            self._gate.rekeyed(*event[1:])
        else:
            self._gate.ended(*event[1:])

    def _on_call(
        self,
        call_id: int,
        index: int,
        body: bytes | None,
        metadata: list[tuple[str, str | bytes]],
        timeout_s: float | None,
        peer: str,
    ) -> None:
        method = self._methods[index]
        call = Call(call_id, peer, metadata, timeout_s, _caller_of(metadata))
        if method.kind == "unary":
            try:
                answer = method.handler(method.request.FromString(body), call)
            except Exception as error:  # noqa: BLE001 - every failure becomes a status
                self.emit((call_id, FAIL, self._failure(error)))
                return
            if inspect.isawaitable(answer):
                self._spawn(call_id, self._unary(call_id, answer))
            else:
                self.emit((call_id, REPLY, answer.SerializeToString()))
            return
        decode = method.read or partial(_read, method.request)
        stream: Requests
        if method.direct:
            stream = Duplex(self.emit, call_id, decode)
        elif method.wide and len(self._wide) < WIDE_STREAMS_MAX:
            self._wide.add(call_id)
            stream = Requests(self.emit, call_id, decode, WIDE_WINDOW_BYTES)
        else:
            stream = Requests(self.emit, call_id, decode)
        self._streams[call_id] = stream
        try:
            argument: Any = stream if method.direct else stream.requests() if body is None else decode(body)
            replies = method.handler(argument, call)
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            self._forget_stream(call_id)
            self.emit((call_id, FAIL, self._failure(error)))
            return
        work = replies if method.direct else _replied(stream, replies)
        self._spawn(call_id, self._stream(call_id, work))

    def _on_request(
        self,
        call_id: int,
        line: tuple[str, str, str, str, str],
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        facts: list[tuple[str, str | bytes]],
        peer: str,
    ) -> None:
        exchange = self._exchanges[call_id] = Exchange(self.emit, call_id)
        if self._stopping:
            exchange.leave.set()
        request = WebRequest(*line, headers, body, peer, _caller_of(facts))
        self._spawn(call_id, self._answer(call_id, request, exchange))

    async def _answer(self, call_id: int, request: WebRequest, exchange: Exchange) -> None:
        try:
            assert self._web is not None, "the door was told that there is an application"
            await self._web(request, exchange)
            self.emit((call_id, END, None))
        except asyncio.CancelledError:
            self.emit((call_id, FAIL, _CANCELLED))
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            self.emit((call_id, FAIL, self._failure(error)))
        finally:
            self._tasks.pop(call_id, None)
            self._exchanges.pop(call_id, None)

    def _spawn(self, call_id: int, work: Any) -> None:
        # The bridge holds every task by its call, and a call's end ends its task.
        self._tasks[call_id] = self._loop.create_task(work)

    async def _unary(self, call_id: int, answer: Awaitable[Any]) -> None:
        try:
            reply = await answer
            self.emit((call_id, REPLY, reply.SerializeToString()))
        except asyncio.CancelledError:
            self.emit((call_id, FAIL, _CANCELLED))
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            self.emit((call_id, FAIL, self._failure(error)))
        finally:
            self._tasks.pop(call_id, None)

    async def _admit(self, greeted: Greeted, gate: Gate) -> None:
        try:
            await gate.admit(greeted)
            self.emit((greeted.session, REPLY, b""))
        except asyncio.CancelledError:
            self.emit((greeted.session, FAIL, _STOPPING))
        except Exception as error:  # noqa: BLE001 - every failure becomes a farewell
            self.emit((greeted.session, FAIL, self._failure(error)))
        finally:
            self._tasks.pop(greeted.session, None)

    async def _results(self, batch_id: int, rows: list[str], actions: list[ClientResult]) -> None:
        try:
            indices = await self._record_results(rows, actions)
            self.emit((batch_id, REPLY, b"".join(index.to_bytes(8, "little") for index in indices)))
        except asyncio.CancelledError:
            self.emit((batch_id, FAIL, _STOPPING))
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            self.emit((batch_id, FAIL, self._failure(error)))
        finally:
            self._tasks.pop(batch_id, None)

    async def _stream(self, call_id: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            self.emit((call_id, END, None))
        except asyncio.CancelledError:
            self.emit((call_id, FAIL, _CANCELLED))
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            self.emit((call_id, FAIL, self._failure(error)))
        finally:
            self._tasks.pop(call_id, None)
            self._forget_stream(call_id)

    def _forget_stream(self, call_id: int) -> None:
        self._streams.pop(call_id, None)
        self._wide.discard(call_id)

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, BuildNetError):
            if error.code == "internal":
                log.error("a call failed inside", exc_info=error)
            return self._to_status(error)
        if isinstance(error, DecodeError):
            return (_INVALID_ARGUMENT, "the request cannot be decoded", b"")
        log.error("a call failed inside", exc_info=error)
        return _INTERNAL


def _read(request: type[Any], body: bytes | Body) -> Any:
    return request.FromString(body if isinstance(body, bytes) else memoryview(body))


async def _replied(stream: Requests, replies: AsyncIterator[Any]) -> None:
    try:
        async for reply in replies:
            if isinstance(reply, Parted):
                await stream.send(reply.head, reply.rest)
            else:
                await stream.send(reply.SerializeToString())
    finally:
        # The generator's own `finally` runs now, not when it is collected.
        await cast(AsyncGenerator[Any, None], replies).aclose()
