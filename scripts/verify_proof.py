#!/usr/bin/env python3
"""Verify a proof of BuildNET's ledger with nothing but this file, Python and the package `cryptography`.

    verify_proof.py FILE KEY [WITNESS_KEY ...]

FILE is a proof (c2sp.org/tlog-proof@v1), KEY the log's verifier key, which you have from somewhere else than FILE. Each
witness that you name must have cosigned. Prints the entry and exits with 0 when all of it holds, else with 1.
"""

import base64
import hashlib
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Invalid(Exception):
    """Why the proof proves nothing."""


def require(condition: bool, reason: str) -> None:
    """Stop unless it holds."""
    if not condition:
        raise Invalid(reason)


def decoded(text: str) -> bytes:
    """Base64 in its one form."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Invalid("a line is not base64") from error
    require(base64.b64encode(raw).decode() == text, "base64 is not in its one form")
    return raw


def signature_of(key: str, kind: int, lines: list[str]) -> tuple[bytes, Ed25519PublicKey]:
    """What the key `name+id+base64` signed among a note's signature lines (c2sp.org/signed-note)."""
    require(key.count("+") >= 2, "the key is not written as name+id+key")
    name, key_id, encoded = key.split("+", 2)
    raw = decoded(encoded)
    expected = hashlib.sha256(name.encode() + b"\n" + raw).hexdigest()[:8]
    require(len(raw) == 33 and raw[0] == kind and key_id == expected, f"{name} has no key of the kind that is needed")
    prefix = f"\u2014 {name} "
    found = [decoded(line[len(prefix) :]) for line in lines if line.startswith(prefix)]
    own = [signature[4:] for signature in found if signature[:4].hex() == key_id]
    require(len(own) == 1, f"{name} has not signed")
    return own[0], Ed25519PublicKey.from_public_bytes(raw[1:])


def root_of(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root to which an audit path leads (RFC 9162 section 2.1.3.2)."""
    require(0 <= index < size, "the tree has no such entry")
    here, last, result = index, size - 1, leaf
    for sibling in path:
        require(last > 0, "the path is too long")
        if here & 1 or here == last:
            result = hashlib.sha256(b"\x01" + sibling + result).digest()
            while here and not here & 1:
                here, last = here >> 1, last >> 1
        else:
            result = hashlib.sha256(b"\x01" + result + sibling).digest()
        here, last = here >> 1, last >> 1
    require(last == 0, "the path is too short")
    return result


def verify(proof: str, log_key: str, witness_keys: list[str]) -> tuple[int, bytes]:
    """Index and body of the entry that a proof proves."""
    head, _, note = proof.partition("\n\n")
    lines = head.split("\n")
    require(len(lines) > 2 and lines[0] == "c2sp.org/tlog-proof@v1", "this is not a proof")
    require(lines[1].startswith("extra ") and lines[2].startswith("index "), "the proof does not hold its entry")
    body, digits, path = decoded(lines[1][6:]), lines[2][6:], [decoded(line) for line in lines[3:]]
    require(digits.isdecimal() and str(int(digits)) == digits, "the index is not a number")
    text, _, signed = note.rpartition("\n\n")
    text, signatures = text + "\n", signed.split("\n")
    require(signatures.pop() == "", "the last line has no end")
    raw, public = signature_of(log_key, 1, signatures)
    public.verify(raw, text.encode())
    for key in witness_keys:
        raw, public = signature_of(key, 4, signatures)
        public.verify(raw[8:], b"cosignature/v1\ntime %d\n" % int.from_bytes(raw[:8], "big") + text.encode())
    origin, size, root = [*text.split("\n"), "", ""][:3]
    require(origin == log_key.split("+")[0] and size.isdecimal(), "the checkpoint is not this log's")
    leaf = hashlib.sha256(b"\x00" + body).digest()
    require(root_of(leaf, int(digits), int(size), path) == decoded(root), "the path does not lead to the signed root")
    return int(digits), body


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        with open(sys.argv[1], "rb") as file:
            proven_index, proven = verify(file.read(1 << 18).decode(), sys.argv[2], sys.argv[3:])
    except (Invalid, InvalidSignature, OSError, ValueError) as problem:
        sys.exit(f"not proven: {problem or 'a signature is not valid'}")
    print(f"proven: entry {proven_index} of {sys.argv[2].split('+')[0]}\n{proven.decode(errors='backslashreplace')}")
