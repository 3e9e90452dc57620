"""Errors of the native half become the error tree here, and only here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from buildnet._native import NativeError
from buildnet.errors import from_code


@contextmanager
def translated() -> Iterator[None]:
    """Run native calls so that a NativeError leaves as the BuildNetError of its code.

    Raises:
        BuildNetError: the native call failed.
    """
    try:
        yield
    except NativeError as error:
        raise from_code(error.code, error.message, **error.fields) from error
