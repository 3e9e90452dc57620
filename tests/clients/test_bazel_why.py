"""Stock Bazel builds remotely, and what was changed between two builds is named: a header, a flag, a variable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bazel import Bazel, why_not

from buildnet.client import SyncClient, Why, connect
from tests.conftest import House

pytestmark = [
    pytest.mark.client,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

TARGET = "//:lib2"


@pytest.fixture
def bazel(tmp_path: Path) -> Iterator[Bazel]:
    bazel = Bazel(tmp_path / "bazel", libraries=2)
    try:
        yield bazel
    finally:
        bazel.close()


def newest(client: SyncClient) -> Why:
    """Why the target was compiled last."""
    compiled = [run for run in client.past(TARGET) if run.mnemonic == "CppCompile"]
    return client.why(compiled[0].id)


def test_each_change_of_a_build_is_named(house: House, bazel: Bazel) -> None:
    server = house.up("--slots", "2")
    flags = [f"--remote_executor={server.url}", "--remote_default_exec_properties=OSFamily=linux"]

    def build(*more: str) -> None:
        run = bazel.test(*flags, *more)
        assert run.exit_code == 0, run.log

    build()
    with connect(server.url) as client:
        told = newest(client)
        assert told.reason in ("never_seen", "changed")
        assert (told.action.target, told.action.mnemonic, told.action.tool) == (TARGET, "CppCompile", "bazel")

        header = bazel.workspace / "lib1.h"
        header.write_text(header.read_text() + "// changed\n")
        build()
        told = newest(client)
        assert (told.reason, told.relation) == ("changed", "the same target, mnemonic and outputs")
        assert [(change.part, change.name) for change in told.changes] == [("input", "lib1.h")]

        build("--copt=-DCHANGED=1")
        told = newest(client)
        assert [(change.part, change.before, change.after) for change in told.changes] == [
            ("argument", None, "-DCHANGED=1")
        ]

        build("--copt=-DCHANGED=1", "--action_env=CHANGED=1")
        told = newest(client)
        assert [(change.part, change.name, change.after) for change in told.changes] == [("variable", "CHANGED", "1")]
