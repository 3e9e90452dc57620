"""What a caller says beside a call is read when it can be; what would change what happens is refused when it cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest
from buildnet.model.history import Requested
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.request_metadata import REQUEST_METADATA, Manner, manner_metadata, manner_of, requested_of


def test_for_whom_a_call_is_made() -> None:
    message = re.RequestMetadata(tool_invocation_id="i", target_id="//:t" + "x" * 2000, action_mnemonic="CppCompile")
    message.tool_details.tool_name = "bazel"
    found = requested_of([("other", "x"), (REQUEST_METADATA, message.SerializeToString())])
    assert found == Requested("bazel", "i", "//:t" + "x" * 1020, "CppCompile")
    assert requested_of([]) == Requested()


@given(st.binary(max_size=60))
def test_whatever_a_header_holds_the_call_goes_on(data: bytes) -> None:
    found = requested_of([(REQUEST_METADATA, data)])
    assert all(isinstance(text, str) for text in (found.tool, found.invocation, found.target, found.mnemonic))


@pytest.mark.parametrize("manner", [Manner(), Manner("n1"), Manner(apart=True), Manner("n1", apart=True)])
def test_how_it_is_to_be_served(manner: Manner) -> None:
    assert manner_of([*manner_metadata(manner), ("more", "x")]) == manner


@pytest.mark.parametrize(
    ("key", "value"), [("buildnet-apart", "yes"), ("buildnet-worker", "a b"), ("buildnet-worker", "x" * 200)]
)
def test_what_is_malformed_is_refused_with_its_name(key: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=key):
        manner_of([(key, value)])
