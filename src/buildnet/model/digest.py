"""A digest names content: function, hash and size together. It never says where the bytes are."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from buildnet.errors import InvalidRequest
from buildnet.model.quick import quick

_HASH = re.compile(r"[0-9a-f]{64}")
_TEXT = re.compile(rf"({_HASH.pattern})/(0|[1-9][0-9]{{0,18}})")


@quick
@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A REAPI Digest (build.bazel.remote.execution.v2.Digest) under SHA-256.

    Shapes: `hash` 64 lower-case hex digits; `size_bytes` >= 0.
    Size is part of the identity: right hash with wrong size is another digest (REAPI section Digest).
    """

    hash: str
    size_bytes: int

    @property
    def text(self) -> str:
        """`hash/size`, the form that crosses the native boundary and the command line."""
        return f"{self.hash}/{self.size_bytes}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `hash/size`.

        Raises:
            InvalidRequest: the text is anything else.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InvalidRequest(
                f"{text!r} is not a digest; write HASH/SIZE with 64 lower-case hex digits",
                field="digest",
            )
        return cls(match[1], int(match[2]))

    @classmethod
    def checked(cls, digest_hash: str, size_bytes: int) -> Digest:
        """As `parse`, of the two parts of a message.

        Raises:
            InvalidRequest: they are no digest.
        """
        if size_bytes < 0 or _HASH.fullmatch(digest_hash) is None:
            return cls.parse(f"{digest_hash}/{size_bytes}")
        return cls(digest_hash, size_bytes)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of bytes in memory."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))

    def __str__(self) -> str:
        return self.text

    def __hash__(self) -> int:
        # A text remembers its own hash: a tuple of both fields would be made and hashed at every look into a map.
        return hash(self.hash)


EMPTY = Digest.of(b"")

UNKNOWN = Digest("", 0)
"""Stands where a digest will be: it is none, and no content has it."""
