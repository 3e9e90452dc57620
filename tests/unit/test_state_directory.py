"""The state directory has one holder, and what a newer version wrote is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildnet.app import state
from buildnet.app.config import ControllerConfig, server_url
from buildnet.errors import InvalidRequest, NodeDown, StateCorrupt, StateLocked, StateNewer


def test_it_is_made_and_locked(tmp_path: Path) -> None:
    with state.opened(tmp_path / "s") as directory:
        assert (directory / "VERSION").read_text() == "1\n"
        assert (directory / "keys").stat().st_mode & 0o777 == 0o700
        with pytest.raises(StateLocked, match=rf"process {os.getpid()} .*--state"), state.opened(directory):
            pass
    with state.opened(tmp_path / "s"):
        pass


def test_a_newer_one_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("2\n")
    with pytest.raises(StateNewer, match="upgrade"), state.opened(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["VERSION"]


@pytest.mark.parametrize("text", ["", "x", "1.5"])
def test_a_version_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "VERSION").write_text(text)
    with pytest.raises(StateCorrupt), state.opened(tmp_path):
        pass


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateCorrupt), state.opened(tmp_path / "file"):
        pass


def test_terms_only_rise(tmp_path: Path) -> None:
    assert [state.next_term(tmp_path) for _ in range(3)] == [1, 2, 3]
    (tmp_path / "term").write_text("torn")
    with pytest.raises(StateCorrupt):
        state.next_term(tmp_path)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "192.0.2.1:80", "[::]:80", "example.org:80"])
def test_nothing_listens_beyond_this_machine_in_plaintext(tmp_path: Path, listen: str) -> None:
    with pytest.raises(InvalidRequest, match="tls-cert"):
        ControllerConfig(tmp_path, listen)


@pytest.mark.parametrize("listen", ["", "8980", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(tmp_path: Path, listen: str) -> None:
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        ControllerConfig(tmp_path, listen)


def test_a_server_is_found_by_argument_then_environment_then_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDNET_STATE", str(tmp_path))
    monkeypatch.delenv("BUILDNET_URL", raising=False)
    with pytest.raises(NodeDown, match="buildnet up"):
        server_url(None, None)
    with state.announced(tmp_path, {"url": "grpc://127.0.0.1:1"}):
        assert server_url(None, None) == "grpc://127.0.0.1:1"
        monkeypatch.setenv("BUILDNET_URL", "grpc://127.0.0.1:2")
        assert server_url(None, None) == "grpc://127.0.0.1:2"
        assert server_url("grpc://127.0.0.1:3", None) == "grpc://127.0.0.1:3"
        assert server_url(None, tmp_path) == "grpc://127.0.0.1:1"
    assert not (tmp_path / "controller.json").exists()
