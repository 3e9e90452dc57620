"""Zstandard by whichever module is here; without one the tests of compression are skipped, never guessed."""

from __future__ import annotations

import importlib
from typing import Any


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_STDLIB = _module("compression.zstd")
_PACKAGE = _module("zstandard")
AVAILABLE = _STDLIB is not None or _PACKAGE is not None


def compress(data: bytes) -> bytes:
    """One frame."""
    if _STDLIB is not None:
        return bytes(_STDLIB.compress(data))
    return bytes(_PACKAGE.ZstdCompressor().compress(data))


def compress_unsized(data: bytes) -> bytes:
    """One frame that does not say how much it holds."""
    stream = _STDLIB.ZstdCompressor() if _STDLIB is not None else _PACKAGE.ZstdCompressor().compressobj()
    return bytes(stream.compress(data) + stream.flush())


def decompress(data: bytes) -> bytes:
    """The content of every frame in `data`; a stream of no bytes at all holds none."""
    if _STDLIB is not None:
        return bytes(_STDLIB.decompress(data)) if data else b""
    reader = _PACKAGE.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    return bytes(reader.read())
