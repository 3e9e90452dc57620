"""What an ExecuteRequest asks of the scheduler: its limit of time, its platform, its priority."""

from __future__ import annotations

from typing import Any

import pytest

from buildnet.errors import InvalidRequest
from buildnet.model.action import Wanted
from buildnet.model.caller import Caller
from buildnet.model.digest import EMPTY, Digest
from buildnet.model.history import Requested
from buildnet.model.timeout import TIMEOUT_DEFAULT_S, TIMEOUT_MAX_S
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import Asker, digest_message, wanted_of
from buildnet.wire.request_metadata import Manner


def platform(name: str) -> re.Platform:
    return re.Platform(properties=[re.Platform.Property(name=name, value="1")])


def wanted(command: re.Command | None = None, priority: int = 0, **fields: Any) -> Wanted:
    blobs: dict[str, bytes] = {}

    def put(message: Any) -> re.Digest:
        data = message.SerializeToString()
        digest = Digest.of(data)
        blobs[digest.text] = data
        return digest_message(digest)

    action = re.Action(
        command_digest=put(command or re.Command(arguments=["true"])), input_root_digest=digest_message(EMPTY), **fields
    )
    request = re.ExecuteRequest(action_digest=put(action), execution_policy=re.ExecutionPolicy(priority=priority))
    return wanted_of("", request, Asker(Caller(), Requested(), Manner()), blobs.__getitem__)[0]


def test_an_action_without_a_limit_of_time_has_the_servers() -> None:
    assert wanted().timeout_s == TIMEOUT_DEFAULT_S
    assert wanted(timeout={"seconds": 1, "nanos": 500_000_000}).timeout_s == 1.5


@pytest.mark.parametrize("seconds", [0, -1, int(TIMEOUT_MAX_S) + 1])
def test_a_limit_of_time_that_cannot_be_kept_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="timeout"):
        wanted(timeout={"seconds": seconds})


def test_the_actions_platform_is_preferred_to_the_commands() -> None:
    older = re.Command(arguments=["true"], platform=platform("older"))
    assert ("older", "1") in wanted(older).requirements
    assert wanted(older, platform=platform("newer")).requirements == wanted(platform=platform("newer")).requirements
    # An empty platform is one: it asks for nothing.
    assert wanted(older, platform=re.Platform()).requirements == wanted().requirements


def test_the_priority_is_the_requests() -> None:
    assert wanted(priority=-3).priority == -3
