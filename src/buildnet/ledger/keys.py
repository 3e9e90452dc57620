"""A private key is made at first use, with mode 0600, and is never logged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from buildnet.errors import StateCorrupt
from buildnet.files import replace_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key at `path`, 32 bytes in hex.

    Raises:
        StateCorrupt: the file does not hold a key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        replace_file(path, key.private_bytes_raw().hex() + "\n", synced=True, mode=0o600)
        return key
    except ValueError as error:
        raise StateCorrupt(f"{path} does not hold a key; restore it from a copy", path=str(path)) from error
