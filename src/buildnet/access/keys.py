"""Keys in a state directory: the one that signs tokens, a node's own, that of its sessions; and the list of revoked
tokens. A key is never logged and never leaves its file, which only its owner may read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from buildnet._native import SigningKey, public_of_pem, session_pem, session_secret_of_pem
from buildnet.errors import InvalidRequest, StateCorrupt
from buildnet.files import sync_directory

_SECRET_BYTES: Final = 32
K = TypeVar("K")


def key_path(state: Path) -> Path:
    """Where a state directory keeps the key that signs its tokens."""
    return state / "keys" / "token.key"


def revoked_path(state: Path) -> Path:
    """Where it keeps the list of revoked tokens; it need not be there."""
    return state / "keys" / "revoked"


def load_or_create(state: Path) -> SigningKey:
    """The key that signs tokens, made at first use with mode 0600.

    Raises:
        StateCorrupt: the file cannot be read or does not hold a key.
    """
    return load_or_create_at(key_path(state))


def load_or_create_at(path: Path) -> SigningKey:
    """The Ed25519 key in this file, PKCS 8 PEM, made at first use with mode 0600.

    Raises:
        StateCorrupt: the file cannot be read or does not hold a key.
    """
    return _kept(path, lambda: SigningKey.generate().pem(), SigningKey.of_pem)


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """What a node proves itself with in sessions: raw secrets of its Ed25519 and X25519 keys, 32 bytes each, and its
    name, the Ed25519 public key in 64 hexadecimal digits.
    """

    name: str
    node_seed: bytes = field(repr=False)
    session_secret: bytes = field(repr=False)


def node_keys(state: Path) -> NodeKeys:
    """The keys of the node whose state directory this is: `keys/node.key` and `keys/session.key`, made at first use.

    Raises:
        StateCorrupt: a file cannot be read or does not hold its key.
    """
    node = load_or_create_at(state / "keys" / "node.key")
    secret = _kept(
        state / "keys" / "session.key",
        lambda: session_pem(secrets.token_bytes(_SECRET_BYTES)),
        session_secret_of_pem,
    )
    return NodeKeys(node.public.hex(), node.seed, secret)


def _kept(path: Path, generate: Callable[[], str], parse: Callable[[str], K]) -> K:
    """The key in this file, which is generated when there is none; of two processes at once the first one's stays."""
    try:
        with suppress(FileNotFoundError):
            return _parsed(path, parse)
        # Each for itself: `parents` would leave the state directory open to others.
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        pem = generate()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, leaves the key of another process that was first.
            with suppress(FileExistsError):
                os.link(temporary, path)
            for directory in (path.parent, path.parent.parent):
                sync_directory(directory)
        finally:
            temporary.unlink()
        return _parsed(path, parse)
    except OSError as error:
        raise StateCorrupt(f"cannot use {path}: {error.strerror}; check who may read it", path=str(path)) from error


def _parsed(path: Path, parse: Callable[[str], K]) -> K:
    try:
        return parse(path.read_text())
    except ValueError as error:
        raise StateCorrupt(f"{path} does not hold its key: {error}; restore it from a copy", path=str(path)) from error


def load_public(path: Path) -> bytes:
    """A public key to trust, from PEM; 32 bytes.

    Raises:
        InvalidRequest: the file cannot be read or does not hold an Ed25519 public key.
    """
    remedy = "write there what `buildnet token key` prints on the server that signs"
    try:
        return public_of_pem(path.read_text())
    except OSError as error:
        raise InvalidRequest(f"cannot read the key {path}: {error.strerror}; {remedy}", field="trusted_key") from error
    except ValueError as error:
        message = f"{path} does not hold a public key of Ed25519: {error}; {remedy}"
        raise InvalidRequest(message, field="trusted_key") from error


def revoke(state: Path, token_id: str, expires_unix_s: int) -> bool:
    """Put a token on the list, which the door reads again; whether it was not there yet.

    Args:
        state: the state directory of the controller.
        token_id: the token's id.
        expires_unix_s: when it ends anyway, for whoever tidies the list; 0 when that is not known.
    """
    if not token_id or len(token_id) > 255 or any(c.isspace() or not c.isprintable() for c in token_id):
        raise InvalidRequest(f"{token_id!r} is not a token's id; `buildnet token show` tells it", field="id")
    path = revoked_path(state)
    if token_id in revoked(state):
        return False
    # One write of one line, so that two at once do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{token_id} {expires_unix_s}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)
    return True


def revoked(state: Path) -> frozenset[str]:
    """Ids on the list."""

    def ids() -> Iterator[str]:
        with suppress(FileNotFoundError), revoked_path(state).open() as file:
            yield from (line.split()[0] for line in file if line.strip())

    return frozenset(ids())
