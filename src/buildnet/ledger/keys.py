"""A private key is made at first use, with mode 0600, and is never logged."""

from __future__ import annotations

from pathlib import Path

from buildnet._native import SigningKey
from buildnet.errors import StateCorrupt
from buildnet.files import replace_file


def load_or_create(path: Path) -> SigningKey:
    """The Ed25519 key at `path`, 32 bytes in hex.

    Raises:
        StateCorrupt: the file does not hold a key.
    """
    try:
        return SigningKey(bytes.fromhex(path.read_text().strip()))
    except FileNotFoundError:
        key = SigningKey.generate()
        replace_file(path, key.seed.hex() + "\n", synced=True, mode=0o600)
        return key
    except ValueError as error:
        raise StateCorrupt(f"{path} does not hold a key; restore it from a copy", path=str(path)) from error
