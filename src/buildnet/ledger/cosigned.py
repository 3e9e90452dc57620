"""The newest checkpoint that witnesses cosigned, in a file beside the ledger; it never goes back to a smaller one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from buildnet.errors import BadSignature, LedgerCorrupt
from buildnet.files import replace_file
from buildnet.ledger import note as notes
from buildnet.ledger.checkpoint import Verifier

COSIGNED: Final = "cosigned"


class Cosigned:
    """`note` is the checkpoint with the log's signature and cosignatures, and `size` its tree's; None and 0 before."""

    def __init__(self, path: Path, note: str | None, size: int) -> None:
        self._path = path
        self.note = note
        self.size = size

    @classmethod
    def open(cls, directory: Path, verifier: Verifier, size: int) -> Cosigned:
        """What a ledger's directory holds.

        Args:
            directory: the ledger's.
            verifier: its key.
            size: how many entries it holds.

        Raises:
            LedgerCorrupt: the file is damaged, or the ledger holds less than witnesses have seen.
        """
        path = directory / COSIGNED
        try:
            note = path.read_bytes().decode()
            head = verifier.open(note)
        except FileNotFoundError:
            return cls(path, None, 0)
        except (UnicodeDecodeError, BadSignature) as error:
            raise LedgerCorrupt(
                f"{path} is not a checkpoint of this ledger: {error}; remove it, and witnesses are asked anew",
                where=COSIGNED,
            ) from error
        if head.size > size:
            raise LedgerCorrupt(
                f"the ledger in {directory} holds {size} entries, and witnesses cosigned {head.size}: it lost its "
                "tail; restore it from a copy, or move the directory aside to begin a new ledger",
                where=COSIGNED,
            )
        return cls(path, note, head.size)

    def keep(self, note: str, size: int, cosignatures: Sequence[notes.Signature]) -> None:
        """Keep a checkpoint of `size` entries with cosignatures of it, unless a larger one is kept. Blocks on the disk.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        if size < self.size or not cosignatures:
            return
        text, signed = notes.split(note)
        whole = notes.join(text, [*signed, *cosignatures])
        replace_file(self._path, whole, synced=True)
        self.note, self.size = whole, size

    def over(self, note: str) -> str:
        """The note, with cosignatures when there are some of the same checkpoint."""
        if self.note is not None and self.note.partition("\n\n")[0] == note.partition("\n\n")[0]:
            return self.note
        return note
