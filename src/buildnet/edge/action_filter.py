"""Which operations a caller means, and where a page of them begins. Pure: operations in, operations out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from google.protobuf.message import Message

from buildnet.errors import InvalidRequest
from buildnet.model.caller import Caller, public_instance
from buildnet.scheduler.operation import Operation
from buildnet.wire import times
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.actions import ACTION_STATES, Described

_STATES: Final = {word: state for state, word in ACTION_STATES.items()}
_NOTHING: Final = Described(())

# Arguments and results may be long, and clients of gRPC take messages of 4 MiB.
_PAGE_BYTES_MAX: Final = 3 << 20

After = tuple[int, str]
M = TypeVar("M", bound=Message)


def state_of(operation: Operation) -> action_pb2.ActionState:
    """Where an operation stands, for people."""
    outcome = operation.progress.outcome
    if outcome is None or outcome.code == "ok":
        return _STATES[operation.progress.stage]
    return action_pb2.ACTION_STATE_CANCELLED if outcome.code == "cancelled" else action_pb2.ACTION_STATE_FAILED


def fitting(
    wanted: action_pb2.ActionFilter,
    caller: Caller,
    described: Callable[[str], Described | None],
    graph_of: Callable[[str], str],
) -> Callable[[Operation], bool]:
    """A test for operations that the caller may see and the filter means."""
    states = frozenset(wanted.states)
    since_ms = times.unix_ms(wanted.submitted_since) if wanted.HasField("submitted_since") else None
    before_ms = times.unix_ms(wanted.submitted_before) if wanted.HasField("submitted_before") else None
    by_tool = (wanted.mnemonic, wanted.target_id, wanted.invocation_id)

    def fits(operation: Operation) -> bool:
        instance = operation.wanted.key.instance
        if states and state_of(operation) not in states:
            return False
        if wanted.filter_instance_name and public_instance(instance) != wanted.instance_name:
            return False
        if wanted.worker and not operation.progress.worker.startswith(wanted.worker):
            return False
        if wanted.graph_id and graph_of(operation.id) != wanted.graph_id:
            return False
        if since_ms is not None and operation.submitted_at_unix_ms < since_ms:
            return False
        if before_ms is not None and operation.submitted_at_unix_ms >= before_ms:
            return False
        if any(by_tool):
            said = described(operation.id) or _NOTHING
            # What it is counted for is kept with it: an invocation is known, and cancelled, after a restart too.
            invocation = said.requested.invocation or operation.wanted.share[2]
            found = (said.requested.mnemonic, said.requested.target, invocation)
            if any(asked and asked != has for asked, has in zip(by_tool, found, strict=True)):
                return False
        return caller.may_see(instance)

    return fits


def token_of(operation: Operation) -> str:
    """Where the page ends whose last this is."""
    return f"{operation.submitted_at_unix_ms}:{operation.id}"


def after_of(token: str) -> After | None:
    """Where a page begins; None for the first.

    Raises:
        InvalidRequest: the token is none of ours.
    """
    if not token:
        return None
    moment, colon, operation_id = token.partition(":")
    if not colon or not moment.isdecimal() or not moment.isascii() or len(moment) > 18:
        raise InvalidRequest("the page token is not one of ours; begin again without one", field="page_token")
    return int(moment), operation_id


def later(operations: Iterator[Operation], after: After | None) -> Iterator[Operation]:
    """What comes after a place, of operations newest first.

    What began meanwhile is before that place, and what was forgotten only makes the next page begin at its moment.
    """
    if after is None:
        yield from operations
        return
    moment_ms, operation_id = after
    for operation in operations:
        if operation.id == operation_id:
            yield from operations
            return
        if operation.submitted_at_unix_ms < moment_ms:
            yield operation
            yield from operations
            return


def page_of(operations: Iterable[Operation], limit: int, shown: Callable[[Operation], M]) -> tuple[list[M], str]:
    """The messages of one page, at least one where there is any, and where the next one begins: empty at the end.

    No more of them are made than are wanted, and one to know whether there are more: many operations are known.
    """
    page: list[M] = []
    last, size_bytes = None, 0
    for operation in operations:
        message = shown(operation)
        size_bytes += message.ByteSize()
        if last is not None and (len(page) == limit or size_bytes > _PAGE_BYTES_MAX):
            return page, token_of(last)
        page.append(message)
        last = operation
    return page, ""
