"""What a client may know of operations that ended: why they ran, how often and how, and in what they differ."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from buildnet.errors import InvalidRequest, NotFound
from buildnet.model.digest import Digest
from buildnet.model.history import Change, OutputFact, Part, Parts, Reason
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2 as pb
from buildnet.wire.actions import ACTION_STATES, digest_of
from buildnet.wire.history import parts_of

_ACTION: Final = "/buildnet.v1.ActionService/"

Unary = Callable[[str, Any, type[Any]], Awaitable[Any]]
Read = Callable[[Digest], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class PastRun:
    """One operation that ended, as the server's history keeps it; spans are in seconds, None when nobody told them.

    `id` is "" for an action that no operation has asked for yet. Times are Unix seconds by the controller's clock.
    `outputs` are the first of `output_count`; `arguments` are the first eight, where one operation was asked for.
    """

    id: str
    action: Digest
    instance: str
    state: str
    worker: str
    exit_code: int
    error_code: str
    cached: bool
    kept: bool
    lookup_skipped: bool
    entry_index: int | None
    caller: str
    tool: str
    invocation: str
    target: str
    mnemonic: str
    arguments: tuple[str, ...]
    submitted_at_unix_s: float
    completed_at_unix_s: float | None
    queued_s: float | None
    staged_s: float | None
    ran_s: float | None
    uploaded_s: float | None
    command: Digest | None
    root: Digest | None
    outputs: tuple[OutputFact, ...]
    output_count: int


@dataclass(frozen=True, slots=True)
class Why:
    """Why an action ran. `reason` is stable, `message` is for people; `relative` is the nearest earlier operation."""

    action: PastRun
    reason: Reason
    message: str
    relative: PastRun | None
    relation: str
    changes: tuple[Change, ...]
    left_out: int
    since_unix_s: float | None


@dataclass(frozen=True, slots=True)
class Differing:
    """In what two actions differ; `left_out` counts changes beyond those that are listed."""

    before: Digest
    after: Digest
    changes: tuple[Change, ...]
    left_out: int


class HistoryCalls:
    """The calls of ActionService about the past, over a client's connection.

    An operation is named by its id or an unambiguous beginning of it, an action by its digest as HASH/SIZE.
    """

    def __init__(self, unary: Unary, read: Read) -> None:
        self._unary = unary
        self._read = read

    async def why(self, name: str, *, instance: str = "") -> Why:
        """Why an operation was no hit; or why an action would not be one if it were asked for in `instance` now.

        Raises:
            NotFound: the history knows no such operation, nor the cache such an action.
        """
        request = pb.ExplainActionRequest(id=name, instance_name=instance)
        answer = await self._unary(_ACTION + "ExplainAction", request, pb.ExplainActionResponse)
        return Why(
            action=_run_of(answer.action),
            reason=cast("Reason", _word(pb.MissReason, answer.reason, "MISS_REASON_")),
            message=answer.message,
            relative=_run_of(answer.relative) if answer.HasField("relative") else None,
            relation=answer.relation,
            changes=tuple(map(_change_of, answer.changes)),
            left_out=answer.left_out,
            since_unix_s=answer.since.ToNanoseconds() / 1e9 if answer.HasField("since") else None,
        )

    async def past(self, name: str, *, limit: int = 100) -> list[PastRun]:
        """One operation, or the newest runs of an action or of a build tool's target, newest first.

        Raises:
            NotFound: several operations begin so.
        """
        request = pb.GetActionHistoryRequest(name=name, page_size=limit)
        answer = await self._unary(_ACTION + "GetActionHistory", request, pb.GetActionHistoryResponse)
        return [_run_of(action) for action in answer.actions]

    async def diff(self, before: str, after: str) -> Differing:
        """In what two actions differ.

        Raises:
            NotFound: one is not known, or its messages are neither in the history nor in the cache.
        """
        request = pb.DiffActionsRequest(before=before, after=after)
        answer = await self._unary(_ACTION + "DiffActions", request, pb.DiffActionsResponse)
        changes = tuple(map(_change_of, answer.changes))
        return Differing(digest_of(answer.before_digest), digest_of(answer.after_digest), changes, answer.left_out)

    async def parts(self, action: Digest) -> Parts:
        """What an action is made of, as the cache has it; nothing is hidden.

        Raises:
            BlobsMissing: its Action or Command is no longer there.
            InvalidRequest: it is no action.
        """
        try:
            message = re.Action.FromString(await self._read(action))
            command = re.Command.FromString(await self._read(digest_of(message.command_digest)))
        except DecodeError as error:
            raise InvalidRequest(f"{action} is not an Action", field="action") from error
        return parts_of(message, command)

    async def action_of(self, name: str) -> Digest:
        """The action of an operation, or of a digest's text.

        Raises:
            NotFound: the history knows no operation of that name.
        """
        if "/" in name:
            return Digest.parse(name)
        found = await self.past(name, limit=1)
        if not found:
            raise NotFound(
                f"no operation is called {name!r}; `buildnet actions ls` lists the newest", kind="operation", name=name
            )
        return found[0].action


def _word(enum: Any, number: int, prefix: str) -> str:
    """The name of a number; one of a newer server's is a number still."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix).lower()


def _change_of(change: pb.ActionChange) -> Change:
    return Change(
        part=cast("Part", _word(pb.ActionPart, change.part, "ACTION_PART_")),
        name=change.name,
        before=change.before if change.HasField("before") else None,
        after=change.after if change.HasField("after") else None,
        note=change.note,
    )


def _seconds(span: Duration) -> float:
    return span.seconds + span.nanos / 1e9


def _run_of(message: pb.PastAction) -> PastRun:
    summary = message.summary

    def span(name: str) -> float | None:
        return _seconds(getattr(message, name)) if message.HasField(name) else None

    completed = summary.completed_at.ToNanoseconds() / 1e9 if summary.HasField("completed_at") else None
    return PastRun(
        id=summary.id,
        action=digest_of(summary.action_digest),
        instance=summary.instance_name,
        state=ACTION_STATES.get(summary.state, "not asked for" if not summary.id else "unknown"),
        worker=summary.worker,
        exit_code=summary.exit_code,
        error_code=summary.error_code,
        cached=summary.cached,
        kept=message.kept,
        lookup_skipped=message.lookup_skipped,
        entry_index=summary.entry_index if summary.has_entry else None,
        caller=message.caller,
        tool=message.tool,
        invocation=message.invocation_id,
        target=summary.target_id,
        mnemonic=summary.mnemonic,
        arguments=tuple(summary.command_arguments),
        submitted_at_unix_s=summary.submitted_at.ToNanoseconds() / 1e9,
        completed_at_unix_s=completed,
        queued_s=span("queued"),
        staged_s=span("staged"),
        ran_s=span("ran"),
        uploaded_s=span("uploaded"),
        command=digest_of(message.command_digest) if message.HasField("command_digest") else None,
        root=digest_of(message.input_root_digest) if message.HasField("input_root_digest") else None,
        outputs=tuple(OutputFact(o.path, cast("Any", o.kind), o.text) for o in message.outputs),
        output_count=message.output_count,
    )
