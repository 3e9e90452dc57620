"""Stock clients of HTTP caches, each run twice with its local cache off: the second run is served by the server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from http_tools import (
    CCACHE,
    NX,
    SCCACHE,
    TURBO,
    Ccache,
    Sccache,
    forget_outputs,
    run,
    why_not,
    write_npm_workspace,
)

from tests.conftest import House

pytestmark = [pytest.mark.client, pytest.mark.timeout(300)]


def needs(tool: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(why_not(tool) is not None, reason=str(why_not(tool)))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield house.up("--no-worker").url.replace("grpc://", "http://")
    finally:
        house.close()


@needs(CCACHE)
@pytest.mark.parametrize(
    "storage",
    [
        "/ccache|layout=subdirs",
        "/ccache|layout=flat",
        "/ccache|layout=bazel",
        "|layout=bazel",
        "/team/a/ccache",
        "/ccache/|bearer-token=unused",
    ],
)
def test_ccache(url: str, storage: str, tmp_path: Path) -> None:
    ccache = Ccache(tmp_path, url + storage)
    assert [ccache.compile("cold"), ccache.compile("warm")] == ["miss", "hit"]
    assert (tmp_path / "cold.o").read_bytes() == (tmp_path / "warm.o").read_bytes()


@needs(CCACHE)
def test_ccache_is_told_where_no_cache_is(url: str, tmp_path: Path) -> None:
    ccache = Ccache(tmp_path, f"{url}/elsewhere")
    assert ccache.compile("cold") != "hit"
    assert ccache.compile("warm") != "hit"


@needs(SCCACHE)
@pytest.mark.parametrize("prefix", ["sccache", "sccache/deep/er", "team/a/sccache"])
def test_sccache(url: str, prefix: str, tmp_path: Path) -> None:
    sccache = Sccache(tmp_path, url, prefix)
    try:
        sccache.compile("cold")
        deadline = time.monotonic() + 60
        # A result is stored after the compiler has returned.
        while (stats := sccache.stats())["cache_writes"] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (stats["cache_writes"], stats["cache_write_errors"]) == (1, 0)
        sccache.compile("warm")
        stats = sccache.stats()
        assert sum(stats["cache_hits"]["counts"].values()) == 1, stats
        assert sum(stats["cache_misses"]["counts"].values()) == 1, stats
    finally:
        sccache.close()
    assert (tmp_path / "cold.o").read_bytes() == (tmp_path / "warm.o").read_bytes()


@needs(TURBO)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("base", ["", "/team/a"])
def test_turbo(url: str, base: str, signed: bool, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    write_npm_workspace(workspace)
    env = {
        "TURBO_API": url + base,
        "TURBO_TOKEN": "token",
        "TURBO_TEAM": "team",
        "TURBO_TELEMETRY_DISABLED": "1",
        "DO_NOT_TRACK": "1",
        "TURBO_REMOTE_CACHE_SIGNATURE_KEY": "not a secret",
    }
    if signed:
        # Then turbo takes only what comes back with the tag that it sent.
        document = '{"tasks": {"build": {"outputs": ["dist/**"]}}, "remoteCache": {"signature": true}}'
        (workspace / "turbo.json").write_text(document)
    hits = []
    for _ in range(2):
        forget_outputs(workspace)
        done = run(workspace, TURBO, "run", "build", "--cache=remote:rw", "--no-update-notifier", env=env)
        hits.append("cache hit" in done.stdout)
    assert hits == [False, True]
    package = workspace / "package"
    assert (package / "dist/output.txt").read_bytes() == (package / "input.txt").read_bytes()


@needs(NX)
def test_nx(url: str, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    write_npm_workspace(workspace)
    (workspace / "node_modules").symlink_to(NX.parent.parent)
    env = {
        "NX_SELF_HOSTED_REMOTE_CACHE_SERVER": url,
        "NX_SELF_HOSTED_REMOTE_CACHE_ACCESS_TOKEN": "token",
        "NX_DAEMON": "false",
        "NX_TUI": "false",
        "NX_NO_CLOUD": "true",
        "NX_CACHE_DIRECTORY": str(tmp_path / "cache"),
        "NX_WORKSPACE_DATA_DIRECTORY": str(tmp_path / "data"),
        "CI": "true",
    }
    logs = []
    for _ in range(2):
        forget_outputs(workspace)
        for remembered in ("cache", "data"):
            shutil.rmtree(tmp_path / remembered, ignore_errors=True)
        logs.append(run(workspace, NX, "run", "package:build", env=env).stdout)
    assert ["remote cache" in log for log in logs] == [False, True], logs
    package = workspace / "package"
    assert (package / "dist/output.txt").read_bytes() == (package / "input.txt").read_bytes()


GRADLE_BUILD = """
@CacheableTask
class Copied extends DefaultTask {
    @InputFile @PathSensitive(PathSensitivity.NONE) File input
    @OutputFile File output
    @TaskAction void copy() { output.text = input.text }
}
task copied(type: Copied) { input = file("input.txt"); output = file("output.txt") }
"""


@pytest.mark.skipif(shutil.which("gradle") is None, reason="gradle is not installed (tests/clients/install.sh)")
@pytest.mark.parametrize("place", ["/gradle/", "/team/a/gradle/main/"])
def test_gradle(url: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "settings.gradle").write_text(
        f"buildCache {{ local {{ enabled = false }}\n remote(HttpBuildCache) {{ url = '{url}{place}'; push = true }} }}"
    )
    (tmp_path / "build.gradle").write_text(GRADLE_BUILD)
    (tmp_path / "input.txt").write_text(str(time.monotonic_ns()))
    logs = []
    for _ in range(2):
        (tmp_path / "output.txt").unlink(missing_ok=True)
        command = ["gradle", "--no-daemon", "--build-cache", "--console=plain", "copied"]
        done = subprocess.run(
            [*command, f"--gradle-user-home={tmp_path}/home"], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        logs.append(done.stdout + done.stderr)
    assert ["FROM-CACHE" in log for log in logs] == [False, True], logs
    assert (tmp_path / "output.txt").read_text() == (tmp_path / "input.txt").read_text()
