"""Every byte of the ledger's database has one value it may have (https://www.sqlite.org/fileformat2.html).

SQLite ignores some bytes: unused space, and spare encodings of the same row. Here they must be what a plain
writer leaves: zero, and the shortest form. Pure: bytes in, an error or nothing out.
"""

from __future__ import annotations

from struct import unpack_from

from buildnet.errors import LedgerCorrupt
from buildnet.ledger.files import PAGE_BYTES, STATEMENTS

_HEADER_BYTES = 100
_LEAF, _INTERIOR = 0x0D, 0x05


def check_pages(database: bytes, sqlite_version: str, version: int) -> None:
    """Check the header and every page.

    Raises:
        LedgerCorrupt: a byte is not what it must be; `where` names the page.
    """
    if not database or len(database) % PAGE_BYTES:
        raise LedgerCorrupt("the database is not a whole number of pages", where="database")
    _check_header(database[:_HEADER_BYTES], len(database) // PAGE_BYTES, sqlite_version, version)
    split = _is_split(database)
    for number in range(1, len(database) // PAGE_BYTES + 1):
        _page(database, number).check(split=split)


def _page(database: bytes, number: int) -> _Page:
    return _Page(number, database[(number - 1) * PAGE_BYTES : number * PAGE_BYTES])


def _is_split(database: bytes) -> bool:
    """Whether pages of pointers stand above pages of pointers: some of them were split to make room."""
    kinds = database[_HEADER_BYTES : _HEADER_BYTES + 1] + database[PAGE_BYTES::PAGE_BYTES]
    children = (_page(database, number).first_child() for number, kind in enumerate(kinds, 1) if kind == _INTERIOR)
    return any(0 < child <= len(kinds) and kinds[child - 1] == _INTERIOR for child in children)


def _check_header(header: bytes, pages: int, sqlite_version: str, version: int) -> None:
    def number(offset: int, size: int = 4) -> int:
        return int.from_bytes(header[offset : offset + size], "big")

    major, minor, patch = (int(part) for part in sqlite_version.split(".")[:3]) if sqlite_version else (0, 0, 0)
    expected = {
        "magic": header[:16] == b"SQLite format 3\x00",
        "page size": number(16, 2) == PAGE_BYTES,
        "file format": header[18:24] == bytes([1, 1, 0, 64, 32, 32]),
        "change counter": number(24) == number(92),
        "page count": number(28) == pages,
        "free list": header[32:40] == bytes(8),
        "schema cookie": number(40) == len(STATEMENTS[version]),
        "schema format": number(44) == 4,
        "cache size": number(48) == 0,
        "vacuum": number(52) == 0 and number(64) == 0,
        "encoding": number(56) == 1,
        "user version": number(60) == version,
        "application id": number(68) == 0,
        "reserved": header[72:92] == bytes(20),
        "writer": number(96) == major * 1_000_000 + minor * 1000 + patch,
    }
    for name, holds in expected.items():
        if not holds:
            raise LedgerCorrupt(f"the database's header is not as it was written: {name}", where="header")


class _Page:
    """One b-tree page."""

    def __init__(self, number: int, page: bytes) -> None:
        self.number = number
        self.page = page
        self.start = _HEADER_BYTES if number == 1 else 0
        self.kind = page[self.start]

    def first_child(self) -> int:
        """The page that a page of pointers names first; 0 when it names none."""
        cell = int.from_bytes(self.page[self.start + 12 : self.start + 14], "big")
        return int.from_bytes(self.page[cell : cell + 4], "big")

    def fail(self, why: str) -> LedgerCorrupt:
        return LedgerCorrupt(f"page {self.number} of the database {why}", where=f"page {self.number}")

    def check(self, *, split: bool) -> None:
        """Check every byte. With `split`, pages of pointers have been split, and keep bytes of what they held then
        (btree.c, balance_nonroot): no row ever stood there, and what they point to is for the integrity check.
        """
        page, start, kind = self.page, self.start, self.kind
        if kind not in (_LEAF, _INTERIOR):
            raise self.fail("is not a page of a table")
        first_free, cells, content, fragments = (
            int.from_bytes(page[start + a : start + b], "big") for a, b in ((1, 3), (3, 5), (5, 7), (7, 8))
        )
        header = start + (8 if kind == _LEAF else 12)
        if kind == _INTERIOR and split:
            return
        if fragments or first_free:
            raise self.fail("has free fragments, which an append-only table never has")
        used = header + 2 * cells
        if used > PAGE_BYTES:
            raise self.fail("counts more rows than it can hold")
        pointers = unpack_from(f">{cells}H", page, header)
        if any(page[used : content or PAGE_BYTES]):
            raise self.fail("has bytes where nothing is stored")
        ends = content or PAGE_BYTES
        for pointer in sorted(pointers):
            if pointer != ends:
                raise self.fail("has a gap between its rows")
            ends = self._cell(pointer, kind)
        if ends != PAGE_BYTES:
            raise self.fail("has bytes after its last row")

    def _varint(self, at: int) -> tuple[int, int]:
        # Nearly all of them have one byte or two.
        first = self.page[at]
        if first < 0x80:
            return first, at + 1
        second = self.page[at + 1]
        if second < 0x80 and first != 0x80:
            return (first & 0x7F) << 7 | second, at + 2
        value = 0
        for i in range(9):
            byte = self.page[at + i]
            if i == 8:
                return value << 8 | byte, at + 9
            if i == 0 and byte == 0x80:
                raise self.fail("has a number that is not in its shortest form")
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value, at + i + 1
        raise self.fail("has a number that does not end")

    def _cell(self, at: int, kind: int) -> int:
        if kind == _INTERIOR:
            return self._varint(at + 4)[1]
        size, at = self._varint(at)
        _, at = self._varint(at)
        if self.number != 1:
            header, body = self._varint(at)
            alias, body = self._varint(body)
            column, body = self._varint(body)
            # The rowid's own column is NULL, the other a blob: any other type would be read as the same value.
            if alias != 0 or column < 12 or column % 2 or body != at + header:
                raise self.fail("has a row that is not in its one form")
            if header + (column - 12) // 2 != size:
                raise self.fail("has a row with bytes beyond its columns")
        return at + size
