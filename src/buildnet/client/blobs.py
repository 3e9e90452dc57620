"""Blobs and trees that are stored and fetched, by the native link: their bytes pass no event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from buildnet._native import InputTree
from buildnet.client.connection import Connection
from buildnet.errors import InvalidRequest
from buildnet.model.action_spec import is_text
from buildnet.model.digest import Digest
from buildnet.wire.native import translated

Inputs = Mapping[str, str | Path | bytes] | Sequence[str | Path]

_BLOB_BYTES_MAX: Final = 64 << 20


class BlobCalls(Connection):
    """What a client does with content."""

    async def upload(self, source: Path | str | bytes) -> Digest:
        """Store a file, or bytes."""
        with translated():
            if isinstance(source, bytes):
                return Digest.parse(await asyncio.to_thread(self._link.put_bytes, source))
            return Digest.parse(await asyncio.to_thread(self._link.put_file, str(source)))

    async def download(self, digest: Digest, dest: Path | str, *, executable: bool = False) -> None:
        """Write a blob to a file, which is there only when it is whole.

        A pipe, a device and what a link leads to are written into and stay what they are: bytes go there as they come,
        and an error may come after some.

        Raises:
            BlobsMissing: the server lacks it.
        """
        with translated():
            await asyncio.to_thread(self._link.get_file, digest.text, str(dest), executable, follow=True)

    async def read(self, digest: Digest) -> bytes:
        """A blob of at most 64 MiB."""
        with translated():
            return await asyncio.to_thread(self._link.get_bytes, digest.text, _BLOB_BYTES_MAX)

    async def upload_tree(self, inputs: Inputs) -> Digest:
        """Store files and directories as one tree; return its root Directory's digest."""
        entries = entries_of(inputs)

        def push() -> str:
            tree = InputTree(entries)
            self._link.push_tree(tree)
            return tree.root

        with translated():
            return Digest.parse(await asyncio.to_thread(push))

    async def download_tree(self, root: Digest, dest: Path | str) -> None:
        """Write the Directory `root` and all below it to a directory."""
        with translated():
            await asyncio.to_thread(self._link.pull_directory, root.text, str(dest))


def entries_of(inputs: Inputs) -> list[tuple[str, str | bytes]]:
    """Where each input goes, and its local path or bytes.

    Raises:
        InvalidRequest: a path leads elsewhere than below the current directory, and is not said where it goes; or is
            not named in UTF-8.
    """
    for name in map(str, inputs):
        if not is_text(name):
            raise InvalidRequest(f"{name!r} is not named in UTF-8, which the protocol asks for", field="inputs")
    if isinstance(inputs, Mapping):
        return [(dest, source if isinstance(source, bytes) else str(source)) for dest, source in inputs.items()]
    entries: list[tuple[str, str | bytes]] = []
    for path in map(Path, inputs):
        if path.is_absolute() or ".." in path.parts:
            raise InvalidRequest(
                f"the input {path} is not below the current directory; say where it goes: {path}:NAME", field="inputs"
            )
        entries.append((str(path), str(path)))
    return entries
