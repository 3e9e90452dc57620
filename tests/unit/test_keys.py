"""Keys that this project writes are those that `cryptography` reads, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st

from buildnet._native import SigningKey, is_signed, public_of_pem, public_pem, session_pem, session_secret_of_pem
from buildnet.access import keys
from buildnet.errors import InvalidRequest, StateCorrupt

SECRETS = st.binary(min_size=32, max_size=32)


@given(SECRETS, st.binary(max_size=200))
def test_signatures_and_files_are_those_of_another_library(seed: bytes, message: bytes) -> None:
    own, other = SigningKey(seed), Ed25519PrivateKey.from_private_bytes(seed)
    signature = own.sign(message)
    assert signature == other.sign(message)
    assert is_signed(own.public, signature, message)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    assert (own.pem(), SigningKey.of_pem(pem).seed) == (pem, seed)
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert (public_pem(own.public), public_of_pem(public.decode())) == (public.decode(), own.public)


@given(SECRETS)
def test_secrets_of_sessions_too(secret: bytes) -> None:
    pem = X25519PrivateKey.from_private_bytes(secret).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert (session_pem(secret), session_secret_of_pem(pem.decode())) == (pem.decode(), secret)


def test_a_node_keeps_its_two_keys_where_others_read_them(tmp_path: Path) -> None:
    made = keys.node_keys(tmp_path)
    assert keys.node_keys(tmp_path) == made
    node, session = (load_pem_private_key((tmp_path / "keys" / name).read_bytes(), None)
                     for name in ("node.key", "session.key"))  # fmt: skip
    assert isinstance(node, Ed25519PrivateKey)
    assert isinstance(session, X25519PrivateKey)
    assert (node.private_bytes_raw(), session.private_bytes_raw()) == (made.node_seed, made.session_secret)
    assert made.node_seed.hex() not in repr(made)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}


def test_a_file_of_another_kind_is_refused_with_the_remedy(tmp_path: Path) -> None:
    keys.node_keys(tmp_path)
    (tmp_path / "keys" / "node.key").rename(tmp_path / "keys" / "session.key")
    with pytest.raises(StateCorrupt, match=r"session\.key does not hold its key: it is a key of another kind; restore"):
        keys.node_keys(tmp_path)
    with pytest.raises(InvalidRequest, match="what `buildnet token key` prints"):
        keys.load_public(tmp_path / "keys" / "session.key")
    (tmp_path / "public").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="what `buildnet token key` prints"):
        keys.load_public(tmp_path / "public")


def test_what_is_printed_is_what_is_trusted(tmp_path: Path) -> None:
    key = keys.load_or_create(tmp_path)
    (tmp_path / "public").write_text("\n" + public_pem(key.public).replace("\n", "\r\n") + "\n")
    assert keys.load_public(tmp_path / "public") == key.public
    loaded = load_pem_public_key(public_pem(key.public).encode())
    assert loaded.public_bytes(Encoding.Raw, PublicFormat.Raw) == key.public  # type: ignore[union-attr]
