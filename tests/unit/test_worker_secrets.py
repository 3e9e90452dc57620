"""Secrets come from files that nobody else may read, and no value is in what is said about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from buildnet.errors import InvalidRequest
from buildnet.sandbox.policy import Limits, Means, plan_of
from buildnet.wire.actions import requirements_of
from buildnet.worker.secrets import SECRETS_MAX, VALUE_BYTES_MAX, Secrets, read_value

VALUE = "correct horse battery"


def kept(directory: Path, name: str = "npm", data: bytes = VALUE.encode(), mode: int = 0o600) -> Path:
    path = directory / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_value_is_the_file_without_the_newline_at_its_end(tmp_path: Path) -> None:
    assert read_value("npm", kept(tmp_path, data=b"12345678\n")) == "12345678"
    assert read_value("npm", kept(tmp_path, data=b"-----BEGIN\n==\n\n", mode=0o400)) == "-----BEGIN\n==\n"
    assert read_value("npm", kept(tmp_path, "bytes", b"\xff" * 8)).encode("utf-8", "surrogateescape") == b"\xff" * 8


@pytest.mark.parametrize(
    ("data", "mode", "said"),
    [
        (b"12345678", 0o640, "chmod 600"),
        (b"12345678", 0o602, "chmod 600"),
        (b"1234567\n", 0o600, "8 to"),
        (b"x" * (VALUE_BYTES_MAX + 1), 0o600, "65536"),
        (b"12345678\x00", 0o600, "NUL"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_without_its_value(
    tmp_path: Path, data: bytes, mode: int, said: str
) -> None:
    path = kept(tmp_path, data=data, mode=mode)
    with pytest.raises(InvalidRequest) as refused:
        Secrets({"npm": path})
    assert said in refused.value.message
    assert str(path) in refused.value.message
    assert "1234567" not in refused.value.message


@pytest.mark.parametrize("what", ["absent", "directory"])
def test_what_is_no_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "absent" if what == "absent" else tmp_path
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Secrets({"npm": path})


def test_names_are_checked_and_bounded(tmp_path: Path) -> None:
    path = kept(tmp_path)
    with pytest.raises(InvalidRequest) as refused:
        Secrets({"hunter 2": path})
    assert "hunter" not in refused.value.message
    with pytest.raises(InvalidRequest, match=f"at most {SECRETS_MAX}"):
        Secrets({f"s{number}": path for number in range(SECRETS_MAX + 1)})


def secrets(directory: Path) -> Secrets:
    return Secrets({"npm": kept(directory)})


def test_a_command_is_given_what_it_names_and_a_changed_file_counts(tmp_path: Path) -> None:
    held = secrets(tmp_path)
    wanted = frozenset({("secret:TOKEN", "npm"), ("OSFamily", "linux")})
    assert held.given(wanted, []) == (("TOKEN", VALUE),)
    assert held.given(frozenset(), []) == ()
    kept(tmp_path, data=b"another value")
    assert held.given(wanted, []) == (("TOKEN", "another value"),)


@pytest.mark.parametrize(
    ("property_", "variables"),
    [
        (("secret:TOKEN", "other"), {}),
        (("secret:TOKEN", "npm"), {"TOKEN": "said already"}),
        (("secret:A=B", "npm"), {}),
        (("secret:", "npm"), {}),
    ],
)
def test_what_cannot_be_given_is_refused(
    tmp_path: Path, property_: tuple[str, str], variables: Mapping[str, str]
) -> None:
    with pytest.raises(InvalidRequest):
        secrets(tmp_path).given(frozenset({property_}), list(variables.items()))


def test_no_value_is_in_a_plan_that_is_shown(tmp_path: Path) -> None:
    given = secrets(tmp_path).given(frozenset({("secret:TOKEN", "npm")}), [])
    plan = plan_of(["true"], [], frozenset(), Means("process", private_network=False), Limits(), 1.0, given)
    assert plan.secrets == (("TOKEN", VALUE),)
    assert VALUE not in repr(plan)
    assert "TOKEN" in repr(plan)


def test_a_worker_offers_a_secret_by_its_name_whatever_variable_wants_it(tmp_path: Path) -> None:
    offered = secrets(tmp_path).properties
    assert requirements_of([("secret:A", "npm"), ("secret:B", "npm")], ()) == offered
    with pytest.raises(InvalidRequest) as refused:
        requirements_of([("secret:A", "the value itself!")], ())
    assert "value itself" not in refused.value.message
