"""moon, whose remote cache is REAPI's over gRPC with zstd: outputs of a task come back to a workspace that has none."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from http_tools import MOON, run, why_not

from tests.conftest import House, Role

pytestmark = [
    pytest.mark.client,
    pytest.mark.timeout(300),
    pytest.mark.skipif(why_not(MOON) is not None, reason=str(why_not(MOON))),
]

WORKSPACE = """
projects: {{app: app}}
remote:
  host: {url}
  cache: {{instanceName: teams/moon, compression: {compression}}}
telemetry: false
"""
TASKS = """
language: bash
tasks:
  build:
    command: sh -c 'mkdir -p out/d; cat src/salt > out/copy; head -c 300000 /dev/urandom > out/d/random; echo built'
    inputs: ['src/**/*']
    outputs: ['out']
    options: {shell: true}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield house.up("--no-worker")
    finally:
        house.close()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_task_is_run_once_and_its_outputs_come_back(server: Role, tmp_path: Path, compression: str) -> None:
    # moon takes no workspace in a home directory.
    work = tmp_path / "work"
    app = work / "app"
    (app / "src").mkdir(parents=True)
    (app / "src" / "salt").write_text(os.urandom(8).hex())
    (app / "moon.yml").write_text(TASKS)
    settings = work / ".moon"
    settings.mkdir()
    (settings / "workspace.yml").write_text(WORKSPACE.format(url=server.url, compression=compression))
    home = {"HOME": str(tmp_path)}
    run(work, "git", "init", "--quiet", env=home)
    named = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run(work, "git", *named, "commit", "--quiet", "--allow-empty", "--message", "begin", env=home)

    def build() -> str:
        done = run(work, MOON, "run", "app:build", env=home)
        return done.stdout + done.stderr

    assert "cached" not in build()
    made = (app / "out" / "d" / "random").read_bytes()
    shutil.rmtree(app / "out")
    shutil.rmtree(settings / "cache")
    assert "cached from remote" in build()
    assert (app / "out" / "d" / "random").read_bytes() == made
    assert (app / "out" / "copy").read_text() == (app / "src" / "salt").read_text()
