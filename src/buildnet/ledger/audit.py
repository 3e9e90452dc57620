"""Verify a ledger from its files alone, trusting nothing but the verifier's key. Reads a copy; changes nothing.

Balances are made anew from the entries and compared, row by row. Beyond what the entries, the tree and the signatures
say, it requires that no byte of the database is without a meaning: rows are in their one encoding and unused space is
zero, so that an altered byte is found wherever it is. It cannot find a whole directory that was replaced by an older
copy of itself: keep a checkpoint elsewhere and pass it as `known`.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buildnet.errors import BadSignature, InvalidRequest, LedgerCorrupt, NotFound, TransferRefused
from buildnet.ledger import book, files, leaf, proof_file, tail, tree
from buildnet.ledger.checkpoint import Checkpoint, Verifier
from buildnet.ledger.pages import check_pages
from buildnet.ledger.proof_file import Proven
from buildnet.model.posting import LINES_MAX


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified: `root` in hex, `kinds` how many entries of each kind, those under no checkpoint yet included.

    `waiting` entries beyond `size` are acknowledged and in the tail; a server that runs commits them within moments.
    `accounts` is how many balances were made anew and found to be as they are kept.
    """

    size: int
    root: str
    key: str
    kinds: dict[str, int]
    waiting: int
    accounts: int
    seconds: float


def verify(state: Path, known: str | None = None) -> Report:
    """Verify the ledger of a state directory (or a ledger's own directory), also while a server runs.

    Args:
        state: the state directory.
        known: a checkpoint that was kept elsewhere; the ledger must be its continuation.

    Raises:
        NotFound: there is no ledger.
        LedgerCorrupt: it is not what it was; `where` says where.
    """
    started = time.perf_counter()
    directory = state / "ledger" if (state / "ledger").is_dir() else state
    if not (directory / files.DATABASE).exists():
        raise NotFound(f"there is no ledger in {directory}", kind="ledger", name=str(directory))
    with tempfile.TemporaryDirectory(prefix="buildnet-audit-") as scratch:
        copy = Path(scratch)
        # The notes first: the database may grow meanwhile, and must then be their continuation.
        note = _text(directory / files.CHECKPOINT)
        key = _text(directory / files.VERIFIER_KEY)
        with _held_still(directory / files.DATABASE):
            for name in (files.DATABASE, files.DATABASE + "-journal", *tail.FILES):
                source = directory / name
                if source.exists():
                    shutil.copyfile(source, copy / source.name)
        report = _verify_copy(copy, key, note, known)
    return Report(*report, seconds=time.perf_counter() - started)


@contextmanager
def _held_still(database: Path) -> Iterator[None]:
    """Keep a running server from writing while its file is copied.

    A database that cannot be locked (damaged, or left by a killed server with its journal) is copied as it lies.
    """
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, isolation_level=None, timeout=10)
    try:
        with suppress(sqlite3.DatabaseError, UnicodeDecodeError):
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield
    finally:
        connection.close()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise LedgerCorrupt(f"{path} is absent", where=path.name) from None
    except UnicodeDecodeError as error:
        raise LedgerCorrupt(f"{path} is not text", where=path.name) from error


def _verify_copy(copy: Path, key: str, note: str, known: str | None) -> tuple[int, str, str, dict[str, int], int, int]:
    try:
        verifier = Verifier.parse(key.removesuffix("\n"))
        if verifier.text + "\n" != key:
            raise InvalidRequest("the key's file is not in its one form", field="key")
    except InvalidRequest as error:
        raise LedgerCorrupt(f"{files.VERIFIER_KEY}: {error}", where=files.VERIFIER_KEY) from error
    head = _open(verifier, note, files.CHECKPOINT)
    if head.size == 0:
        _same(head, tree.Frontier())
    try:
        connection = sqlite3.connect(copy / files.DATABASE, isolation_level=None)
        try:
            version = _check_database(connection)
            writer = _check_writers(connection)
            accounts = book.Book(keep_ended=True)
            kinds = _check_rows(connection, verifier, head, known, accounts)
            _check_balances(connection, accounts, version)
            size = sum(kinds.values())
            root = _root(connection, size)
        finally:
            connection.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise LedgerCorrupt(f"the database is damaged: {error}", where=files.DATABASE) from error
    check_pages((copy / files.DATABASE).read_bytes(), writer, version)
    waiting = tail.read(copy, size)
    compared = sum(1 for _ in accounts.accounts.all())
    kinds.update(_account_for(index, body, accounts) for index, body in enumerate(waiting, size))
    return size, root.hex(), verifier.text, dict(kinds), len(waiting), compared


def _open(verifier: Verifier, note: str, where: str, *, alone: bool = True) -> Checkpoint:
    try:
        checkpoint = verifier.open(note)
    except BadSignature as error:
        raise LedgerCorrupt(f"{where}: {error}", where=where) from error
    if alone and note.partition("\n\n")[2].count("\n") != 1:
        raise LedgerCorrupt(f"{where}: the note is not in its one form", where=where)
    return checkpoint


def _check_database(connection: sqlite3.Connection) -> int:
    found = connection.execute("PRAGMA integrity_check").fetchall()
    if found != [("ok",)]:
        raise LedgerCorrupt(f"the database is damaged: {found[0][0]}", where=files.DATABASE)
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version not in files.STATEMENTS:
        raise LedgerCorrupt(f"the database says that it is of version {version}, which is none", where="header")
    with_reference = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with_reference.execute(f"PRAGMA page_size = {files.PAGE_BYTES}")
        files.create(with_reference, version=version)
        query = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY rowid"
        expected = [_placed(row) for row in with_reference.execute(query)]
    finally:
        with_reference.close()
    if [_placed(row) for row in connection.execute(query)] != expected:
        raise LedgerCorrupt("the database's schema is not the ledger's", where="schema")
    return version


def _placed(row: tuple[Any, ...]) -> tuple[Any, ...]:
    # Tables of accounts begin on whatever page was next when they were made; the integrity check has been there.
    kind, name, table, page, sql = row
    return (kind, name, table, isinstance(page, int) if kind == "table" and name in files.SUMS else page, sql)


def _check_writers(connection: sqlite3.Connection) -> str:
    versions = [row[0] for row in connection.execute("SELECT sqlite_version FROM writer ORDER BY number")]
    if not versions or not all(isinstance(version, bytes) for version in versions):
        raise LedgerCorrupt("nobody is named who wrote the database", where="writer")
    return bytes(versions[-1]).decode(errors="replace")


def _check_rows(
    connection: sqlite3.Connection, verifier: Verifier, head: Checkpoint, known: str | None, accounts: book.Book
) -> Counter[str]:
    """Walk leaves, nodes and checkpoints side by side, in bounded memory."""
    frontier = tree.Frontier()
    nodes = connection.execute("SELECT position, hash FROM node ORDER BY position")
    notes = connection.execute("SELECT size, note FROM checkpoint ORDER BY size")
    kept = None if known is None else _open(verifier, known, "known checkpoint", alone=False)
    kinds: Counter[str] = Counter()
    place, signed = 0, 0
    next_note = notes.fetchone()
    for seq, body in connection.execute("SELECT seq, body FROM leaf ORDER BY seq"):
        where = f"entry {frontier.size}"
        if seq != frontier.size or not isinstance(body, bytes):
            raise LedgerCorrupt(f"{where} is absent or not in its place", where=where)
        kinds[_account_for(seq, body, accounts)] += 1
        for complete in frontier.append(tree.leaf_hash(body)):
            if nodes.fetchone() != (place, complete):
                raise LedgerCorrupt(f"{where} is not what the tree says", where=where)
            place += 1
        if next_note is not None and next_note[0] == frontier.size:
            if not isinstance(next_note[1], bytes):
                raise LedgerCorrupt(f"the checkpoint of {next_note[0]} is not a note", where="checkpoint")
            _same(_open(verifier, next_note[1].decode(errors="replace"), f"checkpoint {frontier.size}"), frontier)
            signed = frontier.size
            next_note = notes.fetchone()
        for expected in (head, kept):
            if expected is not None and expected.size == frontier.size:
                _same(expected, frontier)
    if next_note is not None or nodes.fetchone() is not None:
        raise LedgerCorrupt("the tree or its checkpoints go on after the last entry", where="tail")
    if signed != frontier.size:
        raise LedgerCorrupt("the last entries are under no checkpoint", where="tail")
    for expected in (head, kept):
        if expected is not None and expected.size > frontier.size:
            raise LedgerCorrupt(
                f"the ledger holds {frontier.size} entries, a checkpoint says {expected.size}: its tail is lost",
                where="tail",
            )
    return kinds


def _same(checkpoint: Checkpoint, frontier: tree.Frontier) -> None:
    if checkpoint.root != frontier.root() or checkpoint.size != frontier.size:
        raise LedgerCorrupt(
            f"the entries do not have the root that the checkpoint of {frontier.size} signs",
            where=f"checkpoint {frontier.size}",
        )


def _account_for(index: int, body: bytes, accounts: book.Book) -> str:
    """Do in the accounts what an entry says; return its kind."""
    where = f"entry {index}"
    value = _event(body, where)
    try:
        postings = book.postings_of(value)
        if postings is not None:
            accounts.apply(index, value["at_unix_ms"], postings)
            accounts.settle()
    except (InvalidRequest, TransferRefused, KeyError, TypeError) as error:
        raise LedgerCorrupt(f"{where} accounts for what cannot be: {error}", where=where) from error
    kind: str = value["kind"]
    return kind


def verify_proof(file: Path, key: str, witnesses: Sequence[str] = ()) -> Proven:
    """Check a proof file by itself.

    Args:
        file: the proof of an entry, a receipt for one.
        key: the ledger's verifier key, from somewhere else than the file.
        witnesses: keys of those who must have cosigned.

    Raises:
        InvalidRequest: it is no proof, or a key is none.
        LedgerCorrupt: it does not hold.
    """
    with file.open("rb") as opened:
        data = opened.read(proof_file.PROOF_BYTES_MAX + 1)
    try:
        proven = proof_file.verify(data.decode(), key, witnesses)
    except UnicodeDecodeError as error:
        raise InvalidRequest("this is not a proof: it is not text", field="proof") from error
    except BadSignature as error:
        raise LedgerCorrupt(f"the proof does not hold: {error}", where="proof") from error
    _event(proven.body, f"entry {proven.index}")
    return proven


def _check_balances(connection: sqlite3.Connection, accounts: book.Book, version: int) -> None:
    """Compare every row that sums entries up with what they say."""
    balances = [book.account_row(account, account.sums) for account in accounts.accounts.all()]
    names = [f"{account.name} {account.unit}" for account in accounts.accounts.all()]
    pendings = [book.pending_row(pending, pending.status) for pending in accounts.accounts.pendings()]
    holds = [f"{number // LINES_MAX}.{number % LINES_MAX}" for number, _ in pendings]
    if version == 1:
        if balances:
            raise LedgerCorrupt("the ledger keeps no balances of what its entries say", where=f"account {names[0]}")
        return
    for table, what, expected, called in (
        ("balance", "account", balances, names),
        ("pending", "hold", pendings, holds),
    ):
        rows = connection.execute(f"SELECT number, record FROM {table} ORDER BY number")
        for row, name in zip(expected, called, strict=True):
            found = rows.fetchone()
            if found != row:
                said = _said(found, row[0]) if table == "balance" else ""
                raise LedgerCorrupt(f"{what} {name} is not kept as the entries say{said}", where=f"{what} {name}")
        if rows.fetchone() is not None:
            raise LedgerCorrupt(f"a row of the table {table} is of no {what}", where=f"{what}s")


def _said(found: tuple[int, bytes] | None, number: int) -> str:
    if found is None:
        return ": it is absent"
    account = book.decode_account(number, found[1]) if isinstance(found[1], bytes) else None
    return "" if account is None else f": kept are {account.sums}"


def _event(body: bytes, where: str) -> dict[str, Any]:
    try:
        return leaf.decode(body)
    except ValueError as error:
        raise LedgerCorrupt(f"{where}: {error}", where=where) from error


def _root(connection: sqlite3.Connection, size: int) -> bytes:
    def node(level: int, index: int) -> bytes:
        place = (tree.position(level, index),)
        return bytes(connection.execute("SELECT hash FROM node WHERE position = ?", place).fetchone()[0])

    return tree.Frontier.load(size, node).root()


def iterate(state: Path) -> Iterator[tuple[int, bytes]]:
    """Entries of a ledger in order, whether its server runs or not."""
    path = (state / "ledger" if (state / "ledger").is_dir() else state) / files.DATABASE
    if not path.exists():
        raise NotFound(f"there is no ledger in {path.parent}", kind="ledger", name=str(path.parent))
    # The tail first: what leaves it meanwhile is in the database.
    waiting = tail.held(path.parent)
    size = 0
    with tempfile.TemporaryDirectory(prefix="buildnet-ledger-") as scratch:
        connection = _readable(path, Path(scratch))
        try:
            for seq, body in connection.execute("SELECT seq, body FROM leaf ORDER BY seq"):
                size = seq + 1
                yield seq, bytes(body)
        finally:
            connection.close()
    yield from enumerate(tail.beyond(waiting, size), size)


def _readable(path: Path, scratch: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        # A killed server left a transaction half written. Whoever only reads undoes it in a copy.
        connection.close()
        for source in (path, path.with_name(path.name + "-journal")):
            shutil.copyfile(source, scratch / source.name)
        return sqlite3.connect(scratch / path.name)
    return connection
