"""Submit actions and graphs of them, follow them, stop them. It decides nothing: order and failure are the server's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

from buildnet._native import Link
from buildnet.client.actions import ALL, ENDED, ActionFilter, info_of
from buildnet.client.patience import OnBreak, Patience, watched
from buildnet.client.results import ActionInfo, EffectsTold, RunResult, effects_told, result_of
from buildnet.client.status import error_of_status
from buildnet.errors import BuildNetError, DeadlinePassed, InvalidRequest, NotFound
from buildnet.model.action_spec import ActionSpec
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.action_spec import message_of_spec

_ACTION: Final = "/buildnet.v1.ActionService/"
# Well under a message's 4 MiB, and small enough that a server takes other calls between two of them.
_PIECE_BYTES: Final = 128 << 10

Unary = Callable[[str, Any, type[Any]], Awaitable[Any]]
Upload = Callable[[str, Iterator[Any], type[Any]], Awaitable[Any]]
Stream = Callable[[str, Any, type[Any]], AsyncGenerator[Any, None]]
OnChange = Callable[[ActionInfo], None]


@dataclass(frozen=True, slots=True)
class SubmittedGraph:
    """A graph that a server accepted: operation ids by the names of its actions."""

    id: str
    ids: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GraphOutcome:
    """How every action of a graph ended, by name."""

    id: str
    actions: Mapping[str, ActionInfo]

    @property
    def failed(self) -> tuple[str, ...]:
        """What did not end well, sorted: no result, or an exit code other than zero."""
        return tuple(sorted(name for name, info in self.actions.items() if info.state != "completed" or info.exit_code))


class SubmissionCalls:
    """The calls of ActionService that begin, follow and end actions, over a client's connection."""

    def __init__(
        self, unary: Unary, upload: Upload, stream: Stream, link: Link, instance: str, patience: Patience
    ) -> None:
        self._patience = patience
        self._unary = unary
        self._upload = upload
        self._stream = stream
        self._link = link
        self._instance = instance

    async def submit(self, spec: ActionSpec, *, client_id: str = "", skip_cache: bool = False) -> ActionInfo:
        """Queue an action whose inputs the server has; it answers at once.

        Args:
            spec: what is to be run.
            client_id: makes repeating this call safe, as long as the server knows the operation.
            skip_cache: run it even if there is a result.

        Raises:
            InvalidRequest: the spec cannot be meant, or something else was submitted under the client id.
            BlobsMissing: inputs are absent; upload them and submit again.
        """
        request = action_pb2.SubmitActionRequest(
            client_id=client_id,
            instance_name=self._instance,
            spec=message_of_spec(spec),
            skip_cache_lookup=skip_cache,
        )
        return info_of(await self._unary(_ACTION + "SubmitAction", request, action_pb2.ActionSummary))

    async def start_graph(
        self, specs: Mapping[str, ActionSpec], *, client_id: str = "", skip_cache: bool = False
    ) -> SubmittedGraph:
        """Queue a graph, whole or not at all; inputs may be outputs of others in it, by name.

        Raises:
            InvalidRequest: it is no graph, an action of it cannot be meant, or the client id is taken.
            TooLarge: there are too many actions.
            BlobsMissing: inputs are absent.
        """
        head = action_pb2.SubmitActionsRequest(
            client_id=client_id, instance_name=self._instance, skip_cache_lookup=skip_cache
        )

        async def upload() -> action_pb2.SubmitActionsResponse:
            # A copy: the first piece has actions put into it.
            first = action_pb2.SubmitActionsRequest.FromString(head.SerializeToString())
            told: action_pb2.SubmitActionsResponse = await self._upload(
                _ACTION + "SubmitActions", _pieces(first, specs), action_pb2.SubmitActionsResponse
            )
            return told

        # Without a client id it may have been accepted, and would be twice.
        answer = await (self._patience.tried(upload) if client_id else upload())
        self._patience.reached = True
        return SubmittedGraph(answer.graph_id, {action.name: action.id for action in answer.actions})

    async def follow_graph(self, graph: SubmittedGraph, *, on_change: OnChange | None = None) -> GraphOutcome:
        """Wait until every action of a graph has ended.

        Raises:
            NotFound: the server does not know it any more; submit it again, what was done is in the cache.
            NodeDown: the server cannot be reached.

        Cancels:
            nothing at the server; `cancel_graph` does.
        """
        ended: dict[str, ActionInfo] = {}
        told = set[str]()
        # The graph goes on without us, and under the next controller.
        async with aclosing(self.watch(ActionFilter(graph=graph.id), on_break=lambda _: told.clear())) as events:
            while len(ended) < len(graph.ids):
                info = await anext(events)
                if info is not None:
                    told.add(info.id)
                    if info.state in ENDED:
                        ended[info.id] = info
                    if on_change is not None:
                        on_change(info)
                elif lost := set(graph.ids.values()) - told - ended.keys():
                    raise NotFound(
                        f"the server does not know {len(lost)} actions of the graph {graph.id} any more; "
                        "submit it again: what was done is in the cache",
                        kind="graph",
                        name=graph.id,
                    )
        return GraphOutcome(graph.id, {name: ended[id_] for name, id_ in graph.ids.items()})

    async def submit_graph(
        self,
        specs: Mapping[str, ActionSpec],
        *,
        client_id: str = "",
        skip_cache: bool = False,
        on_change: OnChange | None = None,
    ) -> GraphOutcome:
        """Queue a graph and wait until every action of it has ended.

        Raises:
            BuildNetError: as `start_graph` and `follow_graph` do.

        Cancels:
            the graph is cancelled at the server.
        """
        graph = await self.start_graph(specs, client_id=client_id, skip_cache=skip_cache)
        try:
            return await self.follow_graph(graph, on_change=on_change)
        except asyncio.CancelledError:
            with suppress(BuildNetError):
                await self.cancel_graph(graph.id)
            raise

    async def result(self, operation_id: str) -> RunResult:
        """Wait until an operation has ended, and return how.

        Raises:
            NotFound: it is not known any more.
            BuildNetError: it ended without a result.
        """
        response = await self._response(operation_id)
        if response.status.code:
            raise error_of_status(response.status)
        summary = await self._unary(
            _ACTION + "GetAction", action_pb2.GetActionRequest(id=operation_id), action_pb2.ActionSummary
        )
        info = info_of(summary)
        assert info.action is not None, "what has a result has a digest"
        return result_of(response, info.action, info.id, info.entry_index, self._link)

    async def effects(self, operation_id: str) -> EffectsTold | None:
        """Wait until an operation has ended, and return what its worker told of it, also where a limit ended it; None
        when it told nothing, or that is not kept any more.
        """
        try:
            response = await self._response(operation_id)
        except NotFound:
            return None
        return effects_told(response.result)

    async def _response(self, operation_id: str) -> re.ExecuteResponse:
        request = action_pb2.GetResultRequest(id=operation_id)
        while True:
            try:
                return await self._patience.tried(
                    lambda: self._unary(_ACTION + "GetResult", request, re.ExecuteResponse)
                )
            except DeadlinePassed:
                # Of the call: an action that took too long says so in the response.
                continue

    async def watch(
        self, only: ActionFilter = ALL, *, on_break: OnBreak | None = None
    ) -> AsyncGenerator[ActionInfo | None, None]:
        """Operations as they are, then None, then those that change, each as it is then. A connection that breaks is
        made again, for as long as a server that is started anew may take, and tells operations as they are again, then
        None; `on_break` is called with why.

        Raises:
            NodeDown: the server stayed away.
        """
        request = action_pb2.WatchActionsRequest(filter=only.message())
        events = watched(
            lambda: self._stream(_ACTION + "WatchActions", request, action_pb2.ActionEvent),
            self._patience.absence(),
            on_break,
        )
        async for event in events:
            yield None if event.complete else info_of(event.action)

    async def action_pages(self, *, only: ActionFilter = ALL, page_size: int = 1000) -> AsyncIterator[list[ActionInfo]]:
        """Operations, newest first, some at once."""
        request = action_pb2.ListActionsRequest(page_size=page_size, filter=only.message())
        while True:
            answer = await self._unary(_ACTION + "ListActions", request, action_pb2.ListActionsResponse)
            yield [info_of(summary) for summary in answer.actions]
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def cancel_graph(self, graph_id: str) -> int:
        """Stop all that is left of a graph; how many had not ended. Repeat: safe.

        Raises:
            NotFound: it is not known.
        """
        return await self._cancel(action_pb2.CancelActionRequest(graph_id=graph_id))

    async def cancel_invocation(self, invocation_id: str) -> int:
        """Stop all that an invocation of a build tool asked for; how many had not ended. Repeat: safe.

        Raises:
            NotFound: nothing of it is known.
        """
        return await self._cancel(action_pb2.CancelActionRequest(invocation_id=invocation_id))

    async def _cancel(self, request: action_pb2.CancelActionRequest) -> int:
        answer = await self._unary(_ACTION + "CancelAction", request, action_pb2.CancelActionResponse)
        return int(answer.cancelled_count)


def _pieces(
    head: action_pb2.SubmitActionsRequest, specs: Mapping[str, ActionSpec]
) -> Iterator[action_pb2.SubmitActionsRequest]:
    """One request in messages of a bounded size, made while they are sent."""
    piece, size_bytes = head, 0
    for name, spec in specs.items():
        try:
            action = action_pb2.NamedAction(name=name, spec=message_of_spec(spec))
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the name {name!r} is not UTF-8", field="actions.name") from error
        more_bytes = action.ByteSize() + 8
        if size_bytes and size_bytes + more_bytes > _PIECE_BYTES:
            yield piece
            piece, size_bytes = action_pb2.SubmitActionsRequest(), 0
        piece.actions.append(action)
        size_bytes += more_bytes
    yield piece
