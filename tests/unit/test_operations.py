"""What an operation tells a build tool: below a command that failed, where that was and how to learn more."""

from __future__ import annotations

import pytest

from buildnet.edge.execution import outcome_status
from buildnet.errors import NotFound
from buildnet.model.action import Outcome
from buildnet.model.digest import EMPTY
from buildnet.ports import Progress
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
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


def test_a_result_that_the_cache_alone_had_and_lost_is_not_there() -> None:
    with pytest.raises(NotFound, match="submit it again"):
        response_of(Outcome("ok", None), outcome_status)
