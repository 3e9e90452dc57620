"""Tokens, quantities and callers: what is signed is what is read, and nothing that means nothing is signed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.access import keys, tokens
from buildnet.cli.serving import StdinTokens
from buildnet.errors import BadSignature, InvalidRequest, StateCorrupt
from buildnet.model.caller import ANYBODY, Caller, looked_up, public_instance
from buildnet.model.credentials import Address, Credentials
from buildnet.model.quantity import duration_s_of, size_bytes_of


def test_what_is_signed_is_what_is_read(tmp_path: Path) -> None:
    key = keys.load_or_create(tmp_path)
    said = tokens.Token("7", ("read", "write"), 99, "ci", ("team", ""), "pr", 5, 6)
    assert tokens.read(tokens.sign(key, said), [key.public]) == (said, True)
    assert tokens.read(tokens.sign(key, said), []) == (said, False)


def test_an_altered_token_is_told_from_a_strangers(tmp_path: Path) -> None:
    key = keys.load_or_create(tmp_path)
    head, claims, signature = tokens.sign(key, tokens.Token("7", ("read",), 99)).split(".")
    with pytest.raises(BadSignature):
        tokens.read(f"{head}.{claims}.{signature[:-4]}AAAA", [key.public])
    with pytest.raises(InvalidRequest):
        tokens.read("not a token", [key.public])


def test_a_key_stays_and_is_its_owners_alone(tmp_path: Path) -> None:
    key = keys.load_or_create(tmp_path)
    assert keys.load_or_create(tmp_path).seed == key.seed
    assert keys.key_path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["token.key"]
    keys.key_path(tmp_path).write_text("torn")
    with pytest.raises(StateCorrupt, match="restore"):
        keys.load_or_create(tmp_path)


def test_a_token_is_revoked_once(tmp_path: Path) -> None:
    keys.load_or_create(tmp_path)
    assert [keys.revoke(tmp_path, "7", 99), keys.revoke(tmp_path, "7", 99)] == [True, False]
    assert keys.revoked(tmp_path) == {"7"}
    with pytest.raises(InvalidRequest):
        keys.revoke(tmp_path, "7\n8", 0)


@pytest.mark.parametrize(
    ("text", "size"), [("0 B", 0), ("50 GiB", 50 << 30), ("1.5TB", 1_500_000_000_000), (" 7MiB ", 7 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "50", "GiB", "-1 GiB", "1 gib", "1e9 B", "1 GiB 2 MiB", "١ B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a size"):
        size_bytes_of(text)


@pytest.mark.parametrize(("text", "duration_s"), [("90s", 90), ("15m", 900), ("12h", 43200), ("1.5d", 129600)])
def test_durations(text: str, duration_s: int) -> None:
    assert duration_s_of(text) == duration_s


@given(st.text(alphabet="abcde/", max_size=8), st.text(alphabet="abc", min_size=1, max_size=3))
def test_a_namespace_is_before_the_trusted_results_and_apart_from_every_instance(instance: str, namespace: str) -> None:
    apart = Caller(namespace=namespace).written(instance)
    assert list(looked_up(apart)) == [apart, instance]
    assert public_instance(apart) == instance
    assert apart != instance
    assert list(looked_up(ANYBODY.written(instance))) == [instance]


def test_instances_are_seen_by_segments() -> None:
    caller = Caller(instances=("team", ""))
    seen = [name for name in ("", "team", "team/a", "teams", "other", "/x") if caller.may_see(name)]
    assert seen == ["", "team", "team/a"]
    assert caller.may_see(Caller(namespace="pr").written("team/a"))


def test_credentials_show_no_secret_and_come_in_pairs() -> None:
    shown = repr(Credentials(b"ca", b"certificate", b"private", lambda: "secret"))
    assert "private" not in shown
    assert "secret" not in shown
    with pytest.raises(InvalidRequest, match="key"):
        Credentials(certificate_pem=b"x")


def test_an_address_says_whether_it_is_within_tls() -> None:
    assert Address.parse("grpcs://host:1/").url == "grpcs://host:1"
    assert Address.parse("https://[::1]:1") == Address("[::1]:1", tls=True)
    assert Address.parse("host:1").tls is False


def test_the_newest_line_of_standard_input_is_the_token() -> None:
    held = StdinTokens()
    for data in (b"fir", b"st\nsec", b"ond\nthi"):
        held.feed(data)
    assert held() == "second"
    held.feed(b"x" * (1 << 20))
    assert held() == "second"
