"""Operations as a client sees them, and which of them it means. Where one stands is the server's word alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from buildnet.client.results import ActionInfo
from buildnet.errors import InvalidRequest
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.actions import ACTION_STATES, digest_of

ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_NUMBERS: Final = {name: number for number, name in ACTION_STATES.items()}


@dataclass(frozen=True, slots=True)
class ActionFilter:
    """Which operations are meant; what is left empty leaves out none. Times are Unix seconds.

    `states` are waiting, queued, executing, completed, failed and cancelled; `worker` may be the beginning of its id.
    `instance` None is every one that the caller may see.
    """

    states: tuple[str, ...] = ()
    instance: str | None = None
    worker: str = ""
    mnemonic: str = ""
    target: str = ""
    invocation: str = ""
    graph: str = ""
    since_unix_s: float | None = None
    before_unix_s: float | None = None

    def message(self) -> action_pb2.ActionFilter:
        """As it crosses the wire.

        Raises:
            InvalidRequest: there is no such state.
        """
        unknown = [state for state in self.states if state not in _NUMBERS]
        if unknown:
            raise InvalidRequest(f"{unknown[0]!r} is no state; states are {', '.join(_NUMBERS)}", field="states")
        message = action_pb2.ActionFilter(
            states=[_NUMBERS[state] for state in self.states],
            instance_name=self.instance or "",
            filter_instance_name=self.instance is not None,
            worker=self.worker,
            mnemonic=self.mnemonic,
            target_id=self.target,
            invocation_id=self.invocation,
            graph_id=self.graph,
        )
        if self.since_unix_s is not None:
            message.submitted_since.FromMilliseconds(round(self.since_unix_s * 1000))
        if self.before_unix_s is not None:
            message.submitted_before.FromMilliseconds(round(self.before_unix_s * 1000))
        return message


ALL: Final = ActionFilter()


def info_of(summary: action_pb2.ActionSummary) -> ActionInfo:
    """One operation as the server lists it."""
    completed = summary.completed_at.ToNanoseconds() / 1e9 if summary.HasField("completed_at") else None
    # One that waits for others has no digest yet.
    known = bool(summary.action_digest.hash)
    return ActionInfo(
        id=summary.id,
        action=digest_of(summary.action_digest) if known else None,
        instance=summary.instance_name,
        state=ACTION_STATES.get(summary.state, "unknown"),
        worker=summary.worker,
        exit_code=summary.exit_code,
        error_code=summary.error_code,
        message=summary.message,
        cached=summary.cached,
        entry_index=summary.entry_index if summary.has_entry else None,
        arguments=tuple(summary.command_arguments),
        submitted_at_unix_s=summary.submitted_at.ToNanoseconds() / 1e9,
        completed_at_unix_s=completed,
        graph=summary.graph_id,
        graph_name=summary.graph_name,
        target=summary.target_id,
        mnemonic=summary.mnemonic,
        invocation=summary.invocation_id,
    )
