"""Rules are told as counts and a hash; a token that is revoked is told once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from buildnet.access import keys
from buildnet.app.access_record import RevocationWatch, configured
from buildnet.model.entry import Entry, Value


def watched(state: Path) -> tuple[RevocationWatch, list[tuple[str, Mapping[str, Value]]]]:
    told: list[tuple[str, Mapping[str, Value]]] = []
    return RevocationWatch(state, lambda kind, facts: told.append((kind, facts))), told


def test_a_revoked_token_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    keys.revoke(tmp_path, "before", 0)
    watch, told = watched(tmp_path)
    watch.look()
    assert told == []
    keys.revoke(tmp_path, "one", 0)
    keys.revoke(tmp_path, "two", 0)
    watch.look()
    watch.look()
    assert told == [("token.revoked", {"tokens": ["one", "two"]})]


def test_many_make_entries_that_fit(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    watch, told = watched(tmp_path)
    ids = [f"{number:03d}" + "x" * 252 for number in range(60)]
    keys.revoked_path(tmp_path).write_text("".join(f"{name} 0\n" for name in ids))
    watch.look()
    assert [name for _, facts in told for name in facts["tokens"]] == ids  # type: ignore[union-attr]
    assert all(len(Entry(kind, 1 << 42, facts).encode()) < 8 << 10 for kind, facts in told)


def test_rules_that_differ_have_another_hash() -> None:
    rules = {"keys": [b"k" * 32], "anonymous": ["read"], "certificates": [], "revoked": "path"}
    facts = configured(rules, frozenset({"a"}))
    assert {name: facts[name] for name in ("keys", "anonymous", "certificates", "revoked")} == {
        "keys": 1,
        "anonymous": ["read"],
        "certificates": 0,
        "revoked": 1,
    }
    assert configured(rules | {"anonymous": []}, frozenset())["rules_sha256"] != facts["rules_sha256"]
    assert configured(rules | {"keys": [b"l" * 32]}, frozenset())["rules_sha256"] != facts["rules_sha256"]
    assert configured(rules, frozenset())["rules_sha256"] == facts["rules_sha256"]
