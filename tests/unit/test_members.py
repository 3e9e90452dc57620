"""One token lets one node in, once, also over a crash; what is of no use is told why."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildnet.access.members import LIFETIME_S_MAX, Members, TokenRefused
from buildnet.errors import Forbidden, InvalidRequest, NotFound, StateCorrupt, StateNewer

ONE, TWO = "1" * 64, "2" * 64
SECRET = bytes(20)
NOW = 1_700_000_000_000


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    opened = Members(tmp_path / "members.sqlite")
    yield opened
    opened.close()


def made(members: Members, secret: bytes = SECRET, **more: Any) -> str:
    return members.make(secret, now_unix_ms=NOW, lifetime_s=60, **more).id


def refused(members: Members, key: str, secret: bytes | None, now: int = NOW) -> TokenRefused:
    with pytest.raises(TokenRefused) as error:
        members.admit(key, secret, now)
    return error.value


def test_a_token_lets_one_node_in_and_the_node_comes_back_without_it(members: Members) -> None:
    token = made(members, by="ann", note="rack7")
    assert [t.state for t in members.tokens(NOW)] == ["valid"]
    assert refused(members, ONE, None).reason == "unknown node"
    joined = members.admit(ONE, SECRET, NOW)
    assert (joined.token_id, joined.node, joined.is_ledgered) == (token, "", False)
    # It did not hear that it had joined, and shows the token again.
    assert members.admit(ONE, SECRET, NOW) == joined
    assert members.admit(ONE, None, NOW + 10**9) == joined
    again = refused(members, TWO, SECRET)
    assert (again.reason, again.token_id, again.is_news) == ("used", token, True)
    assert not refused(members, TWO, SECRET).is_news
    (kept,) = members.tokens(NOW)
    assert (kept.state, kept.used_by, kept.made_by, kept.note) == ("used", ONE, "ann", "rack7")
    members.ledgered(ONE)
    assert members.admit(ONE, None, NOW).is_ledgered


def test_a_token_that_ended_or_was_revoked_lets_nobody_in(members: Members) -> None:
    made(members)
    assert refused(members, ONE, SECRET, NOW + 60_000).reason == "expired"
    other = made(members, b"1" * 20)
    assert members.revoke(other, NOW)[1]
    token, fresh = members.revoke(other, NOW)
    assert (token.state, fresh) == ("revoked", False)
    assert refused(members, ONE, b"1" * 20).reason == "revoked"
    unknown = refused(members, ONE, b"2" * 20)
    assert (unknown.reason, unknown.is_news) == ("unknown token", False)
    with pytest.raises(NotFound):
        members.revoke("0" * 16, NOW)


def test_no_secret_is_kept(members: Members, tmp_path: Path) -> None:
    secret = b"a secret of 20 bytes"
    made(members, secret)
    members.admit(ONE, secret, NOW)
    for path in tmp_path.iterdir():
        assert secret not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_a_key_has_one_id_and_an_id_one_key(members: Members) -> None:
    for key, secret in ((ONE, SECRET), (TWO, b"1" * 20)):
        made(members, secret)
        members.admit(key, secret, NOW)
    assert members.check_id(ONE, "a")
    members.bind(ONE, "a")
    assert not members.check_id(ONE, "a")
    assert (members.key_of("a"), members.key_of("b")) == (ONE, "")
    for key, node in ((TWO, "a"), (ONE, "b"), ("3" * 64, "c")):
        with pytest.raises(Forbidden):
            members.check_id(key, node)
    assert members.admit(ONE, None, NOW).node == "a"


def test_all_of_it_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    first = Members(path)
    made(first)
    first.admit(ONE, SECRET, NOW)
    first.bind(ONE, "a")
    # Not closed: as if it had been killed.
    second = Members(path)
    assert second.admit(ONE, None, NOW).node == "a"
    assert second.key_of("a") == ONE
    assert refused(second, TWO, SECRET).reason == "used"
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("lifetime_s", "note"), [(0, ""), (LIFETIME_S_MAX + 1, ""), (60, "n" * 256), (60, "two\nlines")]
)
def test_what_a_token_cannot_be(members: Members, lifetime_s: int, note: str) -> None:
    with pytest.raises(InvalidRequest):
        members.make(SECRET, now_unix_ms=NOW, lifetime_s=lifetime_s, note=note)


def test_old_tokens_are_forgotten(members: Members) -> None:
    made(members)
    members.make(b"1" * 20, now_unix_ms=NOW + 8 * 86_400_000, lifetime_s=60)
    assert len(members.tokens(NOW)) == 1


def test_a_file_that_is_none_or_newer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StateCorrupt, match="restore it"):
        Members(path)
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(StateNewer):
        Members(path)


def test_a_node_has_the_tier_of_its_token_until_another_is_given(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    first = Members(path)
    made(first, tier="untrusted")
    made(first, bytes(19) + b"1")
    assert {token.tier for token in first.tokens(NOW)} == {"untrusted", "trusted"}
    first.admit(ONE, SECRET, NOW)
    first.bind(ONE, "a")
    assert (first.tier_of("a"), first.tier_of("b")) == ("untrusted", None)
    first.set_tier("a", "trusted")
    first.set_tier("a", "untrusted")
    second = Members(path)
    assert second.tier_of("a") == "untrusted"
    first.close()
    second.close()


def test_who_joined_before_there_were_tiers_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    with sqlite3.connect(path) as database:
        for statement in _VERSION_1:
            database.execute(statement)
        database.execute("INSERT INTO node VALUES (?, 'a', 1, 't', 1)", (ONE,))
        digest = hashlib.sha256(SECRET).digest()
        database.execute("INSERT INTO token VALUES (?, 't', 1, ?, '', '', NULL, NULL, NULL, '')", (digest, NOW * 2))
        database.execute("PRAGMA user_version = 1")
    members = Members(path)
    assert (members.tier_of("a"), members.key_of("a")) == ("trusted", ONE)
    assert members.tokens(NOW)[0].tier == "trusted"
    members.admit(TWO, SECRET, NOW)
    members.close()


_VERSION_1 = (
    "CREATE TABLE token (hash BLOB PRIMARY KEY, id TEXT NOT NULL UNIQUE, made_at_unix_ms INTEGER NOT NULL,"
    " expires_at_unix_ms INTEGER NOT NULL, made_by TEXT NOT NULL, note TEXT NOT NULL, used_at_unix_ms INTEGER,"
    " used_by TEXT, revoked_at_unix_ms INTEGER, refusals_told TEXT NOT NULL DEFAULT '') STRICT",
    "CREATE TABLE node (key TEXT PRIMARY KEY, node TEXT UNIQUE, joined_at_unix_ms INTEGER NOT NULL,"
    " token_id TEXT NOT NULL, is_ledgered INTEGER NOT NULL DEFAULT 0) STRICT",
)
