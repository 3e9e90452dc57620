"""Stock Bazel 4.2.3 as remote cache over gRPC and HTTP, and as remote executor, with a worker killed half-way."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bazel import Bazel, why_not

from tests.conftest import House

pytestmark = [
    pytest.mark.client,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

EXECUTION = ("--remote_default_exec_properties=OSFamily=linux",)


@pytest.fixture
def bazel(tmp_path: Path) -> Iterator[Bazel]:
    bazel = Bazel(tmp_path / "bazel", libraries=20)
    try:
        yield bazel
    finally:
        bazel.close()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_remote_cache_serves_the_second_clean_build_wholly(scheme: str, house: House, bazel: Bazel) -> None:
    server = house.up("--no-worker")
    flag = f"--remote_cache={server.url.replace('grpc://', scheme + '://')}"

    cold = bazel.test(flag)
    assert cold.exit_code == 0, cold.log
    assert (cold.hits, cold.remote) == (0, 0), cold.log
    assert cold.local >= 40

    bazel.clean()
    warm = bazel.test(flag)
    assert warm.exit_code == 0, warm.log
    assert (warm.hits, warm.remote, warm.local) == (cold.local, 0, 0), warm.log


@pytest.mark.parametrize("minimal", [False, True], ids=["all", "minimal"])
def test_remote_execution_runs_everything_and_then_nothing(minimal: bool, house: House, bazel: Bazel) -> None:
    server = house.up("--slots", "2")
    flags = [f"--remote_executor={server.url}", *EXECUTION]
    if minimal:
        flags.append("--remote_download_minimal")

    cold = bazel.test(*flags)
    assert cold.exit_code == 0, cold.log
    assert (cold.hits, cold.local) == (0, 0), cold.log
    assert cold.remote >= 40

    bazel.clean()
    warm = bazel.test(*flags)
    assert warm.exit_code == 0, warm.log
    assert (warm.hits, warm.remote, warm.local) == (cold.remote, 0, 0), warm.log
    assert (bazel.workspace / "bazel-bin" / "app").exists() is not minimal


def test_a_worker_killed_half_way_costs_nothing_but_time(house: House, bazel: Bazel) -> None:
    server = house.up("--no-worker")
    victim = house.join(server.url, "--slots", "1", name="victim")
    house.join(server.url, "--slots", "1", name="survivor")

    build = bazel.start(f"--remote_executor={server.url}", *EXECUTION, jobs=4)
    _wait_for_published(house.directory / "controller", at_least=10)
    victim.kill()
    run = Bazel.finish(build)

    assert run.exit_code == 0, run.log
    assert run.local == 0, run.log
    entries = _entries(server.url)
    actions = [e["action"] for e in entries if e["kind"] == "action.published"]
    assert len(actions) == len(set(actions)), "an action was published twice"


def _entries(url: str) -> list[dict[str, object]]:
    import subprocess

    from tests.conftest import COMMAND

    out = subprocess.run(
        [*COMMAND, "ledger", "tail", "--url", url, "--from", "0", "--json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    entries = [json.loads(line) for line in out.splitlines()]
    return [entry.get("body", entry) for entry in entries]


def _wait_for_published(state: Path, at_least: int) -> None:
    """Wait until the ledger's checkpoint has grown: a condition, bounded."""
    deadline = time.monotonic() + 300
    checkpoint = state / "ledger" / "checkpoint"
    while time.monotonic() < deadline:
        if checkpoint.exists() and int(checkpoint.read_text().splitlines()[1]) >= at_least:
            return
        time.sleep(0.05)
    raise AssertionError("the build did not get half-way in five minutes")
