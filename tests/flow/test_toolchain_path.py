"""`--toolchain-path`: a tool outside /usr is found by actions once its path is named, and only then."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildnet._native import probe_isolation
from buildnet.client import connect
from buildnet.errors import InvalidRequest
from tests.conftest import COMMAND, House

pytestmark = pytest.mark.skipif(not probe_isolation()["namespaces"], reason="this kernel refuses namespaces")


@pytest.fixture
def tools() -> Iterator[Path]:
    """A directory with one tool, not below /tmp, which each action has of its own."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        tool = Path(directory) / "tool"
        tool.write_text("#!/bin/sh\necho found\n")
        tool.chmod(0o755)
        yield Path(directory)


def test_a_tool_is_found_where_its_path_is_shown(house: House, tools: Path) -> None:
    config = house.directory / "buildnet.toml"
    config.write_text(f'[worker]\ntoolchain_paths = ["{tools}"]\n')
    bare, shown = house.up("--slots", "1", name="bare"), house.up("--slots", "1", "--config", str(config), name="shown")
    with connect(bare.url) as client:
        with pytest.raises(InvalidRequest, match="--toolchain-path") as refused:
            client.run([f"{tools}/tool"])
        assert "effect:read=ambient" in refused.value.message
        ran = client.run([f"{tools}/tool"], effects={"read": "ambient"})
        assert ran.exit_code == 0
    with connect(shown.url) as client:
        assert client.run([f"{tools}/tool"]).exit_code == 0


def test_a_path_that_is_not_there_is_named_before_anything_starts(house: House) -> None:
    server = house.up("--no-worker")
    state = str(house.directory / "worker")
    words = ["join", server.url, "--state", state, "--toolchain-path", "/no/such/tools"]
    ended = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 125
    assert "the toolchain path /no/such/tools is not there" in ended.stderr
