"""The first key that a node shows is its key. The file only grows; a torn last line is as if it had not been written.

Trust on first use says nothing of who the node is: it says that it is the same one as before.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from buildnet.errors import BadSignature, InvalidRequest, Overloaded, StateCorrupt
from buildnet.model.resource import speakable

PINS_MAX: Final = 100_000
_KEY: Final = re.compile(r"[0-9a-f]{64}")


class Pins:
    """Keys by node, in one file: a line `NODE HEX`."""

    def __init__(self, path: Path) -> None:
        """Read the file if it is there.

        Raises:
            StateCorrupt: it cannot be read.
        """
        self.path = path
        self._keys: dict[str, str] = {}
        self._read()

    def pin(self, node: str, public_key: bytes) -> None:
        """Remember the node's key, durably, or check that it is the one remembered.

        Raises:
            BadSignature: another one is.
            InvalidRequest: the node's id cannot stand in a line.
            Overloaded: no more can be remembered.
            StateCorrupt: the file cannot be written.
        """
        if not node or not speakable(node) or " " in node:
            raise InvalidRequest(
                "the node's id is empty, too long, or holds a blank or what cannot be printed", field="node_id"
            )
        shown = public_key.hex()
        known = self._keys.get(node)
        if known is not None and known != shown:
            # Somebody may have taken the line away since.
            self._read()
            known = self._keys.get(node)
        if known == shown:
            return
        if known is not None:
            raise BadSignature(
                f"node {node} is known by another key ({known[:16]}); "
                f"if its key was lost, delete its line in {self.path}"
            )
        if len(self._keys) >= PINS_MAX:
            raise Overloaded(f"{PINS_MAX} nodes are known already; delete lines of old ones in {self.path}")
        self._append(node, shown)
        self._keys[node] = shown

    def _read(self) -> None:
        try:
            text = self.path.read_text(errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise StateCorrupt(f"cannot read {self.path}: {error.strerror}", path=str(self.path)) from error
        self._keys = {}
        for line in text.splitlines(keepends=True):
            words = line.split()
            if len(words) == 2 and line.endswith("\n") and _KEY.fullmatch(words[1]):
                self._keys.setdefault(words[0], words[1])

    def _append(self, node: str, shown: str) -> None:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, (("\n" if torn else "") + f"{node} {shown}\n").encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateCorrupt(f"cannot write {self.path}: {error.strerror}", path=str(self.path)) from error
