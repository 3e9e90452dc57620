"""Digests under every function that a test here can compute; the others are named and skipped."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

SHA256 = re.DigestFunction.SHA256
BLAKE3 = re.DigestFunction.BLAKE3

# DigestFunction.Value: only these may be told by the length of the hash and are left out of resource names.
INFERRED = frozenset(
    {
        re.DigestFunction.MD5,
        re.DigestFunction.MURMUR3,
        re.DigestFunction.SHA1,
        re.DigestFunction.SHA256,
        re.DigestFunction.SHA384,
        re.DigestFunction.SHA512,
        re.DigestFunction.VSO,
    }
)


def _hashers() -> dict[int, Callable[[bytes], str]]:
    found: dict[int, Callable[[bytes], str]] = {
        re.DigestFunction.SHA256: lambda data: hashlib.sha256(data).hexdigest(),
        re.DigestFunction.SHA1: lambda data: hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        re.DigestFunction.SHA384: lambda data: hashlib.sha384(data).hexdigest(),
        re.DigestFunction.SHA512: lambda data: hashlib.sha512(data).hexdigest(),
        re.DigestFunction.MD5: lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    }
    try:
        blake3 = importlib.import_module("blake3").blake3
    except ImportError:
        return found
    found[BLAKE3] = lambda data: str(blake3(data).hexdigest())
    return found


HASHERS = _hashers()


def function_name(function: int) -> str:
    """SHA256, BLAKE3 and so on; the number of a function that has no name here."""
    if function in re.DigestFunction.Value.values():
        return str(re.DigestFunction.Value.Name(function))
    return str(function)


def digest_of(data: bytes, function: int = SHA256) -> re.Digest:
    """The digest of bytes in memory; `function` is one of HASHERS."""
    return re.Digest(hash=HASHERS[function](data), size_bytes=len(data))


def text_of(digest: re.Digest) -> str:
    """`hash/size`, which compares and prints better than a message."""
    return f"{digest.hash}/{digest.size_bytes}"
