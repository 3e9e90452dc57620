"""Stock Bazel with tokens: a reader is served without a complaint, and a build that is not trusted poisons nobody.

In plaintext: Debian's Bazel 4.2.3 is built without the native library that its gRPC needs for TLS.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bazel import Bazel, why_not

from tests.conftest import House
from tests.flow.guarded import Guarded

pytestmark = [
    pytest.mark.client,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

# Bazel goes by what Capabilities say before it builds: without this it refuses to be a reader.
READS_ONLY = "--noremote_upload_local_results"


@pytest.fixture
def guarded(house: House) -> Guarded:
    return Guarded(house.up("--no-worker", "--anonymous", "none"))


@pytest.fixture
def bazel(tmp_path: Path) -> Iterator[Bazel]:
    bazel = Bazel(tmp_path / "bazel", libraries=4)
    try:
        yield bazel
    finally:
        bazel.close()


def flags(server: Guarded, token: str) -> tuple[str, ...]:
    return (
        f"--remote_cache={server.role.url}",
        f"--remote_header=authorization=Bearer {token}",
    )


def test_trust_decides_what_a_build_is_served_and_what_it_leaves(guarded: Guarded, bazel: Bazel) -> None:
    pr = flags(guarded, guarded.token("read", "write", namespace="pr"))
    writer = flags(guarded, guarded.token("read", "write"))
    reader = (*flags(guarded, guarded.token("read")), READS_ONLY)

    first = bazel.test(*pr)
    assert (first.exit_code, first.hits) == (0, 0), first.log
    bazel.clean()
    again = bazel.test(*pr)
    assert (again.exit_code, again.hits) == (0, first.local), again.log

    bazel.clean()
    trusted = bazel.test(*writer)
    assert (trusted.exit_code, trusted.hits) == (0, 0), trusted.log

    bazel.clean()
    served = bazel.test(*reader)
    assert (served.exit_code, served.hits) == (0, first.local), served.log
    assert "PERMISSION_DENIED" not in served.log


def test_a_reader_builds_what_is_not_cached_and_is_told_when_it_means_to_write(guarded: Guarded, bazel: Bazel) -> None:
    told = bazel.test(*flags(guarded, guarded.token("read")))
    assert told.exit_code != 0
    assert "not authorized to write" in told.log
    reader = bazel.test(*flags(guarded, guarded.token("read")), READS_ONLY)
    assert (reader.exit_code, reader.hits) == (0, 0), reader.log
    assert "PERMISSION_DENIED" not in reader.log


def test_nobody_is_told_so(guarded: Guarded, bazel: Bazel) -> None:
    refused = bazel.test(*flags(guarded, "letmein"))
    assert refused.exit_code != 0
    assert "UNAUTHENTICATED" in refused.log
