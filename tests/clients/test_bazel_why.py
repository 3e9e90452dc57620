"""Stock Bazel builds remotely, and what was changed between two builds is named: a header, a flag, a variable.

So it is where Bazel builds by itself and only caches, as far as it sends what it hashed: its input trees it does not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bazel import Bazel, why_not

from buildnet.client import SyncClient, Why, connect
from buildnet.history.trees import NOT_KEPT
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


def test_what_bazel_ran_by_itself_has_a_relative_too(house: House, bazel: Bazel) -> None:
    server = house.up("--no-worker")

    def build(*more: str) -> None:
        run = bazel.test(f"--remote_cache={server.url}", *more)
        assert run.exit_code == 0, run.log
        assert run.local, run.log

    build()
    with connect(server.url) as client:
        first = newest(client)
        assert first.reason in ("never_seen", "changed")
        assert (first.action.worker, first.action.tool) == ("", "bazel")

        header = bazel.workspace / "lib1.h"
        header.write_text(header.read_text() + "// changed\n")
        build()
        told = newest(client)
        assert told.relative is not None
        assert (told.relative.id, told.relation) == (first.action.id, "the same target, mnemonic and outputs")
        assert [(change.part, change.name, change.note) for change in told.changes] == [("input", ".", NOT_KEPT)]

        build("--copt=-DCHANGED=1")
        # By the digest of the action: an operation's name is not known to who runs it by himself.
        flag = client.why(newest(client).action.action.text)
        assert [(change.part, change.before, change.after) for change in flag.changes] == [
            ("argument", None, "-DCHANGED=1")
        ]

        # The cache is asked again, and has it: what was hit is no operation, and its entry is the update's.
        bazel.clean()
        hits = bazel.test(f"--remote_cache={server.url}", "--copt=-DCHANGED=1")
        assert hits.hits, hits.log
        assert newest(client).action == flag.action
        assert flag.action.entry_index is not None
