"""SubmitAction and SubmitActions: a spec, or a graph of them, is accepted whole or refused with the wrong field named.

A request that is repeated under its client id is answered as the first time, by a later controller too; another one
under the same id is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from google.protobuf.message import DecodeError

from buildnet.edge.action import Descriptions
from buildnet.edge.binder import StoreBinder
from buildnet.edge.bridge import Call, Method
from buildnet.edge.execution import for_caller
from buildnet.errors import BuildNetError, Forbidden, InvalidRequest, StateCorrupt, TooLarge
from buildnet.model.action_spec import ActionSpec
from buildnet.model.caller import Caller
from buildnet.model.operation import GraphTerms
from buildnet.ports import Progress
from buildnet.scheduler.graph import ACTIONS_MAX, NAME_BYTES_MAX
from buildnet.scheduler.graphs import SLICE, Graph, Graphs
from buildnet.scheduler.service import Scheduler
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.action_spec import spec_of_message
from buildnet.wire.actions import Described
from buildnet.wire.request_metadata import requested_of

_ACTION: Final = "/buildnet.v1.ActionService/"
CLIENT_IDS_MAX: Final = 100_000
GRAPH_BYTES_MAX: Final = 64 << 20
_CLIENT_ID_CHARACTERS_MAX: Final = 256
_INSTANCE_BYTES_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class _Said:
    """What was asked under a client id, and the answer, which may still be on its way."""

    fingerprint: bytes
    answer: asyncio.Future[str]


_Key = tuple[str, str, str]
"""Caller, namespace and client id."""


class SubmissionService:
    """Accepts actions in the engine's own form."""

    def __init__(
        self,
        scheduler: Scheduler,
        graphs: Graphs,
        binder: StoreBinder,
        descriptions: Descriptions,
        summary: Callable[[str], action_pb2.ActionSummary],
    ) -> None:
        self._scheduler = scheduler
        self._graphs = graphs
        self._binder = binder
        self._descriptions = descriptions
        self._summary = summary
        # The oldest forgotten first.
        self._said: OrderedDict[_Key, _Said] = OrderedDict()
        self._restore()

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = action_pb2
        return {
            _ACTION + "SubmitAction": Method("unary", self.submit_action, pb.SubmitActionRequest, pb.ActionSummary),
            _ACTION + "SubmitActions": Method(
                "bidi", self.submit_actions, pb.SubmitActionsRequest, pb.SubmitActionsResponse
            ),
        }

    async def submit_action(self, request: action_pb2.SubmitActionRequest, call: Call) -> action_pb2.ActionSummary:
        """Queue or join one action; answer with where it stands."""
        instance = _instance(request.instance_name, call.caller)
        if not request.HasField("spec"):
            raise InvalidRequest("the request has no spec", field="spec")
        spec = spec_of_message(request.spec)
        if spec.references:
            raise InvalidRequest(
                f"the action takes an output of {spec.references[0][:64]!r}; submit both with SubmitActions",
                field="spec.inputs",
            )

        fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        said = _said_text(request.client_id, call.caller, fingerprint)

        async def submit() -> str:
            await self._binder.require(spec)
            wanted = await self._binder.bind(spec, instance, call.caller.subject, {})
            wanted = replace(for_caller(wanted, call), skip_cache_lookup=request.skip_cache_lookup)
            operation_id = self._scheduler.submit(wanted, _nobody, client_id=said)
            self._descriptions.add(operation_id, Described(spec.arguments, requested_of(call.metadata)))
            await self._scheduler.kept(operation_id)
            return operation_id

        operation_id = await self._once(request.client_id, call.caller, fingerprint, submit, self._knows_operation)
        return self._summary(operation_id)

    async def submit_actions(
        self, requests: AsyncIterator[action_pb2.SubmitActionsRequest], call: Call
    ) -> AsyncIterator[action_pb2.SubmitActionsResponse]:
        """Queue a graph that comes in pieces; one answer, after the last."""
        first: action_pb2.SubmitActionsRequest | None = None
        specs: dict[str, ActionSpec] = {}
        pieces = bytearray()
        async for request in requests:
            if first is None:
                first = action_pb2.SubmitActionsRequest(
                    client_id=request.client_id,
                    instance_name=request.instance_name,
                    skip_cache_lookup=request.skip_cache_lookup,
                )
            # Their actions alone: messages one after the other are one message, whose repeated fields are joined
            # (protobuf encoding). So it is the same graph, and the same bytes, however it was cut into pieces.
            for name in ("client_id", "instance_name", "skip_cache_lookup"):
                request.ClearField(name)
            pieces += request.SerializeToString(deterministic=True)
            if len(pieces) > GRAPH_BYTES_MAX:
                raise TooLarge(
                    f"a graph has at most {GRAPH_BYTES_MAX} bytes; submit it in parts",
                    field="actions",
                    limit=GRAPH_BYTES_MAX,
                )
            for number, action in enumerate(request.actions, 1):
                if not number % SLICE:
                    # A graph of thousands takes its turns like everybody.
                    await asyncio.sleep(0)
                _add(specs, action)
        if first is None:
            raise InvalidRequest("the graph has no actions", field="actions")
        instance = _instance(first.instance_name, call.caller)
        hashed = hashlib.sha256(pieces)
        hashed.update(repr((instance, first.skip_cache_lookup)).encode())

        fingerprint = hashed.digest()
        terms = GraphTerms(
            instance=instance,
            caller=call.caller.subject,
            skip_cache_lookup=first.skip_cache_lookup,
            requested=requested_of(call.metadata),
            client_id=_said_text(first.client_id, call.caller, fingerprint),
        )

        async def submit() -> str:
            await self._binder.check(specs.values())
            graph = await self._graphs.submit(specs, terms, bytes(pieces))
            await self._describe(graph, specs)
            await self._graphs.kept(graph)
            return graph.id

        graph_id = await self._once(first.client_id, call.caller, fingerprint, submit, self._knows_graph)
        yield _answer(self._graphs.find(graph_id))

    def _restore(self) -> None:
        """Know what an earlier controller was asked for under a client id."""
        answered = [(known.client_id, known.id) for known in self._scheduler.operations() if known.client_id]
        answered += [(graph.terms.client_id, graph.id) for graph in self._graphs.graphs() if graph.terms.client_id]
        for text, answer in answered:
            subject, namespace, client_id, fingerprint = json.loads(text)
            told = asyncio.get_running_loop().create_future()
            told.set_result(answer)
            self._said[subject, namespace, client_id] = _Said(bytes.fromhex(fingerprint), told)
        for graph in self._graphs.graphs():
            for member in graph.members.values():
                if member.spec is not None:
                    self._descriptions.add(member.id, Described(member.spec.arguments, graph.terms.requested))

    async def _describe(self, graph: Graph, specs: Mapping[str, ActionSpec]) -> None:
        for number, (name, spec) in enumerate(specs.items(), 1):
            if not number % SLICE:
                await asyncio.sleep(0)
            self._descriptions.add(graph.members[name].id, Described(spec.arguments, graph.terms.requested))

    async def _once(
        self,
        client_id: str,
        caller: Caller,
        fingerprint: bytes,
        submit: Callable[[], Coroutine[Any, Any, str]],
        knows: Callable[[str], bool],
    ) -> str:
        """Submit, unless that has been done under this client id; the id of what was submitted.

        Raises:
            InvalidRequest: something else was.
            BuildNetError: it cannot be submitted; nothing is remembered of it.
        """
        if not client_id:
            # A task of its own here too: what has begun to be accepted is accepted whole.
            answer = asyncio.ensure_future(submit())
            answer.add_done_callback(_seen)
            return await asyncio.shield(answer)
        if len(client_id) > _CLIENT_ID_CHARACTERS_MAX:
            raise InvalidRequest(f"a client id has at most {_CLIENT_ID_CHARACTERS_MAX} characters", field="client_id")
        key = (caller.subject, caller.namespace, client_id)
        said = self._said.get(key)
        if said is not None and (not said.answer.done() or knows(said.answer.result())):
            if said.fingerprint != fingerprint:
                raise InvalidRequest(
                    f"another request was made under the client id {client_id[:64]!r}; choose a new one",
                    field="client_id",
                )
            return await asyncio.shield(said.answer)
        # A task of its own: a caller that goes away in the middle finds it done when it comes back.
        answer = asyncio.ensure_future(submit())
        self._said[key] = _Said(fingerprint, answer)
        answer.add_done_callback(partial(self._ended, key))
        while len(self._said) > CLIENT_IDS_MAX:
            self._said.popitem(last=False)
        return await asyncio.shield(answer)

    def _ended(self, key: _Key, answer: asyncio.Future[str]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            # What was refused may be asked for again, mended.
            self._said.pop(key, None)

    def _knows_operation(self, operation_id: str) -> bool:
        return self._scheduler.find_operation(operation_id) is not None

    def _knows_graph(self, graph_id: str) -> bool:
        return self._graphs.knows(graph_id)


def _add(specs: dict[str, ActionSpec], action: action_pb2.NamedAction) -> None:
    name = action.name
    if not name or len(name.encode()) > NAME_BYTES_MAX or not name.isprintable():
        raise InvalidRequest(
            f"an action of a graph is called by 1 to {NAME_BYTES_MAX} bytes that can be printed, not {name[:64]!r}",
            field="actions.name",
        )
    if name in specs:
        raise InvalidRequest(f"two actions of the graph are called {name!r}", field=f"actions[{name}].name")
    if len(specs) >= ACTIONS_MAX:
        raise TooLarge(
            f"a graph has at most {ACTIONS_MAX} actions; submit it in parts", field="actions", limit=ACTIONS_MAX
        )
    try:
        specs[name] = spec_of_message(action.spec)
    except BuildNetError as error:
        field = f"actions[{name}].{error.fields.get('field', 'spec')}"
        raise type(error)(f"action {name!r}: {error.message}", **{**error.fields, "field": field}) from error


def _answer(graph: Graph) -> action_pb2.SubmitActionsResponse:
    answer = action_pb2.SubmitActionsResponse(graph_id=graph.id)
    for name, member in graph.members.items():
        answer.actions.add(name=name, id=member.id)
    return answer


def specs_of_pieces(pieces: bytes) -> dict[str, ActionSpec]:
    """The specs of a graph as it was kept.

    Raises:
        StateCorrupt: they cannot be read.
    """
    specs: dict[str, ActionSpec] = {}
    try:
        for action in action_pb2.SubmitActionsRequest.FromString(pieces).actions:
            _add(specs, action)
    except (DecodeError, BuildNetError) as error:
        raise StateCorrupt(f"a graph that was accepted cannot be read: {error}", path="") from error
    return specs


def _said_text(client_id: str, caller: Caller, fingerprint: bytes) -> str:
    """What a repetition is known by, as it outlives the controller."""
    key = (caller.subject, caller.namespace, client_id, fingerprint.hex())
    return json.dumps(key, ensure_ascii=False) if client_id else ""


def _instance(name: str, caller: Caller) -> str:
    """The instance as in the key of a result. The door has checked that the caller may execute somewhere.

    Raises:
        InvalidRequest: it is no instance's name.
        Forbidden: it is not the caller's.
    """
    if len(name.encode()) > _INSTANCE_BYTES_MAX or any(ord(character) < 32 for character in name):
        raise InvalidRequest(
            f"an instance name has at most {_INSTANCE_BYTES_MAX} bytes and no control characters", field="instance_name"
        )
    if not caller.may_see(name):
        raise Forbidden(f"{caller.subject!r} may not execute actions in {name!r}")
    return caller.written(name)


def _seen(answer: asyncio.Future[str]) -> None:
    """Whoever asked may be gone: then nobody is left to hear why it was refused."""
    if not answer.cancelled():
        answer.exception()


def _nobody(progress: Progress) -> None:
    """Who submits does not wait: the operation remembers."""
