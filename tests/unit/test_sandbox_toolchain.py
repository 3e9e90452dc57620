"""Which paths of a machine are shown, and which cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest
from buildnet.sandbox.toolchain import PATHS_MAX, accounts, toolchain_of


def test_usual_paths_that_exist_are_shown_and_no_secret() -> None:
    paths = toolchain_of()
    assert "/usr" in paths
    assert all(os.path.exists(path) for path in paths)
    for secret in ("/etc/shadow", "/etc/ssl/private", "/root", "/home", "/var", "/srv", "/etc", "/"):
        assert not any(secret == path or secret.startswith(f"{path}/") for path in paths), secret


def test_added_paths_come_last_and_once(tmp_path: Path) -> None:
    assert toolchain_of([str(tmp_path), "/usr", str(tmp_path)])[-1] == str(tmp_path)
    assert toolchain_of([str(tmp_path)]).count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "effect:read=ambient"),
        ("opt", "absolute"),
        ("/usr/../etc", "absolute"),
        ("/proc/sys", "of its own"),
        ("/dev", "of its own"),
        ("/no/such/place", "is not there"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(path: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        toolchain_of([path])
    assert path in refused.value.message
    assert refused.value.fields["field"] == "toolchain_path"


def test_too_many_are_refused(tmp_path: Path) -> None:
    for number in range(PATHS_MAX):
        (tmp_path / str(number)).touch()
    with pytest.raises(InvalidRequest, match="too many"):
        toolchain_of(str(path) for path in tmp_path.iterdir())


@given(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2))
def test_each_user_and_group_is_named_once_and_well(uid: int, gid: int) -> None:
    files = accounts(uid, gid)
    users = [line.split(":") for line in files["/etc/passwd"].splitlines()]
    groups = [line.split(":") for line in files["/etc/group"].splitlines()]
    assert all(len(user) == 7 for user in users)
    assert all(len(group) == 4 for group in groups)
    assert [user[2] for user in users].count(str(uid)) == 1
    assert [group[2] for group in groups].count(str(gid)) == 1
    assert len({user[0] for user in users}) == len(users)
