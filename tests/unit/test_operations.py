"""What an operation tells a build tool: below a command that failed, where that was and how to learn more."""

from __future__ import annotations

import pytest

from buildnet.client.status import error_of_status
from buildnet.edge.execution import outcome_status
from buildnet.edge.status import FAILED_PRECONDITION, RESOURCE_EXHAUSTED
from buildnet.errors import NotFound
from buildnet.model.action import Outcome
from buildnet.model.digest import EMPTY
from buildnet.ports import Progress
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.rpc import error_details_pb2
from buildnet.wire.operations import operation_of, response_of

NAME = "team/operations/0123456789abcdef0123456789abcdef"
NODE = "8135a906ccdf57a3c1e0"


def said(outcome: Outcome) -> re.ExecuteResponse:
    operation = operation_of(NAME, EMPTY, Progress("completed", outcome, NODE), outcome_status)
    response = re.ExecuteResponse()
    assert operation.done
    assert operation.response.Unpack(response)
    return response


def result(exit_code: int) -> bytes:
    return re.ActionResult(exit_code=exit_code).SerializeToString()


def test_a_command_that_failed_says_where_and_how_to_learn_more() -> None:
    failed = Outcome("ok", result(2), worker=NODE, exit_code=2, entry_index=12)
    assert said(failed).message == (
        "it failed on the worker 8135a906ccdf (ledger entry 12); more: buildnet actions show 0123456789ab"
    )
    assert said(failed).status.code == 0
    # Asked for by its id, it is known already.
    assert response_of(failed, outcome_status).message == "it failed on the worker 8135a906ccdf (ledger entry 12)"


def test_a_result_names_its_entry_and_an_error_its_reason() -> None:
    assert said(Outcome("ok", result(0), worker=NODE, entry_index=12)).message == "ledger entry 12"
    assert said(Outcome("ok", result(0), cached=True)).message == ""
    late = said(Outcome("deadline_passed", result(137), "it took longer than 1 s", NODE, exit_code=137))
    assert (late.message, late.status.message) == ("it took longer than 1 s", "it took longer than 1 s")
    assert late.result.exit_code == 137


def test_an_action_over_its_limits_is_not_repeated_by_clients() -> None:
    over = said(Outcome("too_large", result(137), "the command used more memory", NODE, exit_code=137)).status
    assert over.code == FAILED_PRECONDITION
    assert error_of_status(over).code == "too_large"
    # What Bazel would upload and try again is named by violations, of which there is none.
    failure = error_details_pb2.PreconditionFailure()
    assert not any(detail.Unpack(failure) for detail in over.details)
    for code in ("overloaded", "storage_full"):
        assert said(Outcome(code, None, "later", NODE)).status.code == RESOURCE_EXHAUSTED


def test_a_result_that_the_cache_alone_had_and_lost_is_not_there() -> None:
    with pytest.raises(NotFound, match="submit it again"):
        response_of(Outcome("ok", None), outcome_status)
