"""Errors of the native half become the error tree here, and only here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from buildnet._native import NativeError
from buildnet.errors import BuildNetError, InvariantBroken, NodeDown, from_code

# A connection that breaks in the middle of a call has no status of the server: tonic makes one of UNKNOWN or INTERNAL.
_BROKE_OFF: Final = ("transport error", "error reading a body from connection", "connection reset", "broken pipe")


@contextmanager
def translated() -> Iterator[None]:
    """Run native calls so that a NativeError leaves as the BuildNetError of its code.

    Raises:
        BuildNetError: the native call failed.
    """
    try:
        yield
    except NativeError as error:
        raise error_of(error) from error


def error_of(error: NativeError) -> BuildNetError:
    """The error that a native one stands for; a connection that broke off is a node that cannot be reached."""
    if error.code == InvariantBroken.code and any(text in error.message.lower() for text in _BROKE_OFF):
        return NodeDown(f"{error.message}: the connection broke off")
    return from_code(error.code, error.message, **error.fields)
