"""ActionService's calls about the past: why an action ran, its earlier runs, and in what two actions differ.

A caller is told of operations in instances that it may see, and of nothing else; what looks like a secret is hidden.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from google.protobuf.message import Message

from buildnet.edge.bridge import Call, Method
from buildnet.edge.paging import page_size_of
from buildnet.errors import InvalidRequest, NotFound
from buildnet.history.explain import Explainer
from buildnet.history.secrets import shown_arguments
from buildnet.model.action import ActionKey
from buildnet.model.caller import Caller, public_instance
from buildnet.model.digest import UNKNOWN, Digest
from buildnet.model.history import Change, Difference, Explanation, Part, PastOperation, Reason
from buildnet.ports import ActionMessages, Clock, History, HistoryReader
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.service import Scheduler
from buildnet.wire._gen.buildnet.v1 import action_pb2 as pb
from buildnet.wire.actions import digest_message

M = TypeVar("M", bound=Message)

_ACTION: Final = "/buildnet.v1.ActionService/"
_LIST_MAX: Final = 1000
_ARGUMENTS_SHOWN: Final = 8
_LIST_BYTES_MAX: Final = 3 << 20
_CHANGES_BYTES_MAX: Final = 2 << 20
_OUTPUTS_BYTES_MAX: Final = 512 << 10
_PREFIX_MIN: Final = 4
_NAME_MAX: Final = 1024
# The name of a REAPI operation, which a client may have at hand.
_OPERATION: Final = re.compile(r"(?:.*/)?operations/([0-9a-f]{4,64})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}/[0-9]+")

_PARTS: Final[dict[Part, pb.ActionPart]] = {
    "input": pb.ACTION_PART_INPUT,
    "argument": pb.ACTION_PART_ARGUMENT,
    "variable": pb.ACTION_PART_VARIABLE,
    "property": pb.ACTION_PART_PROPERTY,
    "effect": pb.ACTION_PART_EFFECT,
    "constraint": pb.ACTION_PART_CONSTRAINT,
    "output": pb.ACTION_PART_OUTPUT,
    "working_directory": pb.ACTION_PART_WORKING_DIRECTORY,
    "timeout": pb.ACTION_PART_TIMEOUT,
    "do_not_cache": pb.ACTION_PART_DO_NOT_CACHE,
    "salt": pb.ACTION_PART_SALT,
    "output_format": pb.ACTION_PART_OUTPUT_FORMAT,
    "encoding": pb.ACTION_PART_ENCODING,
}
_REASONS: Final[dict[Reason, pb.MissReason]] = {
    "cached": pb.MISS_REASON_CACHED,
    "joined": pb.MISS_REASON_JOINED,
    "not_cacheable": pb.MISS_REASON_NOT_CACHEABLE,
    "lookup_skipped": pb.MISS_REASON_LOOKUP_SKIPPED,
    "failed_before": pb.MISS_REASON_FAILED_BEFORE,
    "not_kept": pb.MISS_REASON_NOT_KEPT,
    "evicted": pb.MISS_REASON_EVICTED,
    "written_again": pb.MISS_REASON_WRITTEN_AGAIN,
    "changed": pb.MISS_REASON_CHANGED,
    "never_seen": pb.MISS_REASON_NEVER_SEEN,
}


class ExplainService:
    """The past, as one caller may see it."""

    def __init__(self, history: History, messages: ActionMessages, scheduler: Scheduler, clock: Clock) -> None:
        self._history = history
        self._messages = messages
        self._scheduler = scheduler
        self._clock = clock

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        return {
            _ACTION + "ExplainAction": Method("unary", self.explain, pb.ExplainActionRequest, pb.ExplainActionResponse),
            _ACTION + "GetActionHistory": Method(
                "unary", self.past, pb.GetActionHistoryRequest, pb.GetActionHistoryResponse
            ),
            _ACTION + "DiffActions": Method("unary", self.diff, pb.DiffActionsRequest, pb.DiffActionsResponse),
        }

    async def explain(self, request: pb.ExplainActionRequest, call: Call) -> pb.ExplainActionResponse:
        """Why an operation, or an action if it were asked for now, is no hit."""
        subject = await self._subject(_checked(request.id, "id"), call.caller, request.instance_name)

        def work(reader: HistoryReader) -> pb.ExplainActionResponse:
            explainer = Explainer(reader, self._messages)
            explanation = explainer.explain(subject)
            answer = pb.ExplainActionResponse(
                action=_message(explanation.subject, _arguments(explainer, explanation.subject)),
                reason=_REASONS[explanation.reason],
                message=_sentence(explanation),
                relation=explanation.relation,
            )
            answer.changes.extend(_fitting(map(_change, explanation.difference.changes), _CHANGES_BYTES_MAX))
            answer.left_out = _left_out(explanation.difference, len(answer.changes))
            if explanation.relative is not None:
                answer.relative.CopyFrom(_message(explanation.relative, _arguments(explainer, explanation.relative)))
            if explanation.since_unix_ms is not None:
                answer.since.FromMilliseconds(explanation.since_unix_ms)
            return answer

        return await self._history.look(work)

    async def past(self, request: pb.GetActionHistoryRequest, call: Call) -> pb.GetActionHistoryResponse:
        """One operation, or the runs of an action or a target, newest first."""
        name, sees = _checked(request.name, "name"), call.caller.may_see
        limit = page_size_of(request.page_size, 100, _LIST_MAX)

        def work(reader: HistoryReader) -> pb.GetActionHistoryResponse:
            # More than are wanted are read, for those that the caller may not see.
            if _DIGEST.fullmatch(name):
                found = reader.of_action(Digest.parse(name), _LIST_MAX)
            elif len(name) >= _PREFIX_MIN and (one := _one(reader.find(name), name, sees)) is not None:
                explainer = Explainer(reader, self._messages)
                return _with_since(reader, [_message(one, _arguments(explainer, one))])
            else:
                found = reader.of_target(name, _LIST_MAX)
            seen = [past for past in found if sees(past.key.instance)][:limit]
            return _with_since(reader, _fitting(map(_message, seen), _LIST_BYTES_MAX))

        return await self._history.look(work)

    async def diff(self, request: pb.DiffActionsRequest, call: Call) -> pb.DiffActionsResponse:
        """In what two actions differ."""
        before = (await self._subject(_checked(request.before, "before"), call.caller, "")).key.digest
        after = (await self._subject(_checked(request.after, "after"), call.caller, "")).key.digest
        found = await self._history.look(lambda reader: Explainer(reader, self._messages).differ(before, after))
        answer = pb.DiffActionsResponse(before_digest=digest_message(before), after_digest=digest_message(after))
        answer.changes.extend(_fitting(map(_change, found.changes), _CHANGES_BYTES_MAX))
        answer.left_out = _left_out(found, len(answer.changes))
        return answer

    async def _subject(self, name: str, caller: Caller, instance: str) -> PastOperation:
        """The operation of that name, or a stand-in for an action that has none, or for one that has not ended."""
        if _DIGEST.fullmatch(name):
            return await self._of_digest(Digest.parse(name), caller, instance)
        if len(name) >= _PREFIX_MIN:
            past = await self._history.look(lambda reader: _one(reader.find(name), name, caller.may_see))
            if past is not None:
                return past
            known = [
                o
                for o in self._scheduler.operations()
                if o.id.startswith(name) and caller.may_see(o.wanted.key.instance)
            ]
            exact = [operation for operation in known if operation.id == name]
            if len(exact or known) == 1:
                return _stand_in(*(exact or known))
        raise NotFound(
            f"no operation is called {name!r}; `buildnet actions ls` lists the newest, "
            "and an action is named by its digest HASH/SIZE",
            kind="operation",
            name=name,
        )

    async def _of_digest(self, digest: Digest, caller: Caller, instance: str) -> PastOperation:
        found = await self._history.look(lambda reader: reader.of_action(digest, _LIST_MAX))
        seen = [past for past in found if caller.may_see(past.key.instance)]
        if seen:
            return seen[0]
        # Whatever it names is read in the reader's thread: it may be a blob of any size.
        if not caller.may_see(instance) or not await self._history.look(lambda r: self._is_action(r, digest)):
            raise NotFound(
                f"no operation of the action {digest} is in the history, nor the Action in the cache",
                kind="action",
                name=digest.text,
            )
        now = self._clock.now_unix_ms()
        return PastOperation(0, "", ActionKey(caller.written(instance), digest), now, None)

    def _is_action(self, reader: HistoryReader, digest: Digest) -> bool:
        return Explainer(reader, self._messages).parts(digest) is not None


def _fitting(messages: Iterable[M], bytes_max: int) -> list[M]:
    """The first messages, as many as fit: a reply has room for 4 MiB."""
    found: list[M] = []
    for message in messages:
        bytes_max -= message.ByteSize()
        if bytes_max < 0:
            break
        found.append(message)
    return found


def _left_out(difference: Difference, listed: int) -> int:
    return len(difference.changes) - listed + difference.left_out


def _checked(name: str, field: str) -> str:
    if 0 < len(name) <= _NAME_MAX:
        operation = _OPERATION.fullmatch(name)
        return operation[1] if operation else name
    raise InvalidRequest(f"{field} must be 1 to {_NAME_MAX} characters, not {len(name)}", field=field)


def _one(found: Sequence[PastOperation], name: str, sees: Callable[[str], bool]) -> PastOperation | None:
    seen = [past for past in found if sees(past.key.instance)]
    if len(seen) > 1:
        raise NotFound(f"several operations begin with {name!r}; write more of the id", kind="operation", name=name)
    return seen[0] if seen else None


def _stand_in(operation: Operation) -> PastOperation:
    wanted, outcome = operation.wanted, operation.progress.outcome
    if wanted.key.digest == UNKNOWN:
        why = "it waits for others of its graph" if outcome is None else outcome.message
        raise NotFound(
            f"the operation {operation.id} was never asked of a worker, so there is no action to explain: {why}",
            kind="action",
            name=operation.id,
        )
    return PastOperation(
        number=0,
        operation=operation.id,
        key=wanted.key,
        submitted_at_unix_ms=operation.submitted_at_unix_ms,
        ended_at_unix_ms=None,
        kept=not wanted.do_not_cache,
        lookup_skipped=wanted.skip_cache_lookup,
        worker=operation.progress.worker,
        caller=wanted.caller,
    )


def _with_since(reader: HistoryReader, actions: list[pb.PastAction]) -> pb.GetActionHistoryResponse:
    answer = pb.GetActionHistoryResponse(actions=actions)
    if (since_unix_ms := reader.since_unix_ms()) is not None:
        answer.since.FromMilliseconds(since_unix_ms)
    return answer


def _arguments(explainer: Explainer, past: PastOperation) -> tuple[str, ...]:
    parts = explainer.parts(past.key.digest)
    return () if parts is None else shown_arguments(parts.arguments[:_ARGUMENTS_SHOWN])


def _message(past: PastOperation, arguments: tuple[str, ...] = ()) -> pb.PastAction:
    message = pb.PastAction(
        summary=_summary(past, arguments),
        invocation_id=past.requested.invocation,
        tool=past.requested.tool,
        caller=past.caller,
        outputs=_fitting(
            (pb.PastOutput(path=fact.path, kind=fact.kind, text=fact.text) for fact in past.ran.outputs),
            _OUTPUTS_BYTES_MAX,
        ),
        output_count=past.ran.output_count,
        lookup_skipped=past.lookup_skipped,
        kept=past.kept,
    )
    if past.command is not None:
        message.command_digest.CopyFrom(digest_message(past.command))
    if past.root is not None:
        message.input_root_digest.CopyFrom(digest_message(past.root))
    for field, milliseconds in (
        (message.queued, past.queued_ms),
        (message.staged, past.ran.staged_ms),
        (message.ran, past.ran.ran_ms),
        (message.uploaded, past.ran.uploaded_ms),
    ):
        if milliseconds is not None:
            field.FromMilliseconds(milliseconds)
    return message


def _summary(past: PastOperation, arguments: tuple[str, ...]) -> pb.ActionSummary:
    summary = pb.ActionSummary(
        id=past.operation,
        action_digest=digest_message(past.key.digest),
        instance_name=public_instance(past.key.instance),
        worker=past.worker,
        cached=past.cached,
        target_id=past.requested.target,
        mnemonic=past.requested.mnemonic,
        command_arguments=arguments,
    )
    summary.submitted_at.FromMilliseconds(past.submitted_at_unix_ms)
    if past.entry_index is not None:
        summary.entry_index, summary.has_entry = past.entry_index, True
    if past.ended_at_unix_ms is None:
        if past.operation:
            summary.state = pb.ACTION_STATE_EXECUTING if past.worker else pb.ACTION_STATE_QUEUED
        return summary
    summary.completed_at.FromMilliseconds(past.ended_at_unix_ms)
    summary.exit_code = past.exit_code
    if past.code == "ok":
        summary.state = pb.ACTION_STATE_COMPLETED
    else:
        summary.state = pb.ACTION_STATE_CANCELLED if past.code == "cancelled" else pb.ACTION_STATE_FAILED
        summary.error_code = past.code
    return summary


def _change(change: Change) -> pb.ActionChange:
    return pb.ActionChange(
        part=_PARTS[change.part], name=change.name, before=change.before, after=change.after, note=change.note
    )


def _sentence(explanation: Explanation) -> str:
    relative = explanation.relative
    then = _moment(relative.ended_at_unix_ms) if relative is not None else ""
    match explanation.reason:
        case "cached":
            return "it was answered from the cache"
        case "joined":
            return "an equal action was in flight, and its one execution was shared"
        case "not_cacheable":
            return "the Action says do_not_cache: it runs whenever it is asked for"
        case "lookup_skipped":
            return "the client asked for it to run whatever the cache has (skip_cache_lookup)"
        case "failed_before":
            assert relative is not None
            how = f"exited with {relative.exit_code}" if relative.code == "ok" else f"failed ({relative.code})"
            return f"it ran at {then} and {how}; only a result with exit code 0 is cached"
        case "not_kept":
            return f"it ran at {then} apart, so its result was not kept"
        case "evicted":
            return (
                f"its result was cached at {then} and was no longer whole in the cache when it was asked for: "
                "it, or an output of it, was evicted"
            )
        case "written_again":
            return (
                f"its client ran it by itself and wrote its result, as at {then}; "
                "whether it asked the cache first is not known"
            )
        case "changed":
            assert relative is not None
            count = len(explanation.difference.changes) + explanation.difference.left_out
            changed = "1 thing has" if count == 1 else f"{count} things have"
            return f"{changed} changed since {relative.operation[:12]}, which has {explanation.relation}"
        case "never_seen":
            since = explanation.since_unix_ms
            back = "which is empty" if since is None else f"which goes back to {_moment(since)}"
            return f"neither this action nor one like it is in the history, {back}"


def _moment(at_unix_ms: int | None) -> str:
    if at_unix_ms is None:
        return "a time that is not known"
    return datetime.fromtimestamp(at_unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
