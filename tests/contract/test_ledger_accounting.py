"""Balances on disk are what the entries come to, after every refusal, failure, restart and upgrade."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from buildnet.errors import InvalidRequest, LedgerCorrupt, StateNewer, StorageFull, TransferRefused
from buildnet.ledger import audit, book, files, queries
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry
from buildnet.model.posting import DEBIT_LIMIT

DURABILITIES = ["process", "power"]
USED = "node:n1 caller:dora actions 1 cpu_ms 20"


def entry(*lines: str, at_unix_ms: int = 5, accounts: tuple[str, ...] = ()) -> Entry:
    fields = {"transfers": list(lines)} if lines else {}
    return Entry("action.published", at_unix_ms, {**fields, **({"accounts": list(accounts)} if accounts else {})})


def open_log(directory: Path, durability: str = "process") -> LedgerLog:
    return LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), durability)


@pytest.fixture(params=DURABILITIES)
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerLog]:
    log = open_log(tmp_path, request.param)
    yield log
    await log.close()


async def sums(log: LedgerLog) -> dict[str, tuple[int, int, int, int]]:
    return {f"{account.name} {account.unit}": account.sums for account in await log.look(queries.accounts)}


async def test_what_is_posted_is_in_both_accounts(log: LedgerLog, tmp_path: Path) -> None:
    await log.append([entry(USED), entry(), entry(USED, "caller:dora node:n2 bytes 7")])
    assert await sums(log) == {
        "caller:dora actions": (0, 0, 0, 2),
        "caller:dora bytes": (0, 7, 0, 0),
        "caller:dora cpu_ms": (0, 0, 0, 40),
        "node:n1 actions": (0, 2, 0, 0),
        "node:n1 cpu_ms": (0, 40, 0, 0),
        "node:n2 bytes": (0, 0, 0, 7),
    }
    report = await asyncio.to_thread(audit.verify, tmp_path)
    assert (report.size, report.accounts) == (3, 6)


async def test_accounts_are_read_by_name_a_page_at_a_time_as_they_come(log: LedgerLog) -> None:
    index = queries.AccountIndex()

    async def page(prefix: str, after: tuple[str, str] = ("", ""), count: int = 3) -> list[str]:
        found = await log.look(index.page(prefix, after, count))
        assert {account.name: account.sums for account in found} == {
            account.name: (await sums(log))[f"{account.name} {account.unit}"] for account in found
        }
        return [f"{account.name} {account.unit}" for account in found]

    assert await page("") == []
    assert not await log.look(index.has("node:n1"))
    await log.append([entry("node:n1 caller:dora actions 1 cpu_ms 20"), entry("node:n0 caller:dorado actions 2")])
    assert await page("") == ["caller:dora actions", "caller:dora cpu_ms", "caller:dorado actions"]
    assert await page("", ("caller:dorado", "actions")) == ["node:n0 actions", "node:n1 actions", "node:n1 cpu_ms"]
    assert await page("node:n1") == ["node:n1 actions", "node:n1 cpu_ms"]
    assert await page("node:n1", ("node:n1", "actions")) == ["node:n1 cpu_ms"]
    assert await page("caller:z") == []
    # One that comes later is in its place, and balances are those of now.
    await log.append([entry("node:n1 caller:aya actions 5")])
    assert await page("caller:", count=2) == ["caller:aya actions", "caller:dora actions"]
    assert await page("node:n1") == ["node:n1 actions", "node:n1 cpu_ms"]
    assert await log.look(index.has("caller:aya"))


async def test_what_is_refused_is_in_no_entry_and_no_account(log: LedgerLog, tmp_path: Path) -> None:
    opening = f"caller:q cpu_ms {DEBIT_LIMIT}"
    await log.append([entry("grant:ops caller:q cpu_ms 10", accounts=(opening,))])
    before = await sums(log)
    over = [entry("caller:q node:n cpu_ms 6"), entry("caller:q node:n cpu_ms 6")]
    appends = [
        log.append(over),
        log.append([entry("post 0.0 1")]),
        log.append([entry("caller:q caller:q cpu_ms 1")]),
    ]
    for result in await asyncio.gather(*appends, return_exceptions=True):
        assert isinstance(result, TransferRefused)
    for lines in (["nonsense"], ["a b c"]):
        with pytest.raises(InvalidRequest):
            await log.append([entry(*lines)])
    assert log.size == 1
    assert await sums(log) == before
    # Those that hold go on, whoever was refused beside them.
    fine, refused = await asyncio.gather(
        log.append([entry("caller:q node:n cpu_ms 10")]), log.append(over), return_exceptions=True
    )
    assert fine == 1
    assert isinstance(refused, TransferRefused)
    assert refused.fields["result"] == "exceeds_credits"
    assert await log.signed_size() == 2
    assert (await asyncio.to_thread(audit.verify, tmp_path)).size == 2


async def test_a_tail_that_cannot_be_written_leaves_the_accounts(
    log: LedgerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append([entry(USED)])

    def full(first: int, bodies: list[bytes]) -> None:
        raise OSError(28, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(log._tail, "append", full)
        with pytest.raises(StorageFull):
            await log.append([entry(USED, "hold 9 node:new caller:new bytes 5")])
    await log.append([entry(USED)])
    assert (await sums(log))["node:n1 actions"] == (0, 2, 0, 0)
    assert "node:new bytes" not in await sums(log)
    assert await log.signed_size() == 2
    assert (await asyncio.to_thread(audit.verify, tmp_path)).size == 2


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_holds_outlive_a_restart_and_end_once(tmp_path: Path, durability: str) -> None:
    log = open_log(tmp_path, durability)
    await log.append([entry("hold 0 a:x b:y bytes 9", "hold 50 a:x b:y bytes 3", "hold 500 a:x b:y bytes 1")])
    await log.close()
    log = open_log(tmp_path, durability)
    await log.append([entry("post 0.0 4", at_unix_ms=54)])
    assert (await sums(log))["a:x bytes"] == (4, 4, 0, 0)
    with pytest.raises(TransferRefused):
        await log.append([entry("post 0.0 4", at_unix_ms=54)])
    await log.close()
    log = open_log(tmp_path, durability)
    # What ran out is given back by the next entry that has transfers.
    for refused in ("post 0.0 4", "void 0.1"):
        with pytest.raises(TransferRefused):
            await log.append([entry(refused, at_unix_ms=55)])
    await log.append([entry("void 0.2", at_unix_ms=55)])
    assert await sums(log) == {"a:x bytes": (0, 4, 0, 0), "b:y bytes": (0, 0, 0, 4)}
    await log.close()
    assert audit.verify(tmp_path).accounts == 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
async def test_random_histories_verify_after_every_restart(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"node:{n}" for n in range(40)] + [f"caller:{n}" for n in range(40)]
    holds: list[str] = []
    for round_number in range(4):
        log = open_log(tmp_path, chance.choice(DURABILITIES))
        for step in range(60):
            at_unix_ms = round_number * 1000 + step
            debit, credit = chance.sample(names, 2)
            line = chance.choice(
                [
                    f"{debit} {credit} cpu_ms {chance.getrandbits(chance.choice([3, 60, 126]))} actions 1",
                    f"hold {chance.choice([0, 5, 900])} {debit} {credit} bytes {chance.getrandbits(9)}",
                    f"post {chance.choice(holds or ['0.0'])} {chance.getrandbits(7)}",
                    f"void {chance.choice(holds or ['0.0'])}",
                ]
            )
            try:
                index = await log.append([entry(line, at_unix_ms=at_unix_ms)])
            except TransferRefused:
                continue
            if line.startswith("hold"):
                holds.append(f"{index}.0")
        for unit in ("cpu_ms", "actions", "bytes"):
            per_unit = [found for name, found in (await sums(log)).items() if name.endswith(unit)]
            assert sum(s[0] for s in per_unit) == sum(s[2] for s in per_unit)
            assert sum(s[1] for s in per_unit) == sum(s[3] for s in per_unit)
        await log.close()
        assert audit.verify(tmp_path).accounts > 0


def rewrite(directory: Path, statement: str, *values: object) -> None:
    """Change what the triggers allow, as somebody with the file would."""
    connection = sqlite3.connect(directory / "ledger" / files.DATABASE, isolation_level=None)
    connection.execute(statement, values)
    connection.close()


async def test_an_altered_balance_is_named(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    await log.append([entry(USED, "hold 0 node:n1 caller:dora bytes 5")])
    await log.close()
    path = tmp_path / "ledger" / files.DATABASE
    assert audit.verify(tmp_path).size == 1
    log = open_log(tmp_path)
    account = next(a for a in await log.look(queries.accounts) if (a.name, a.unit) == ("caller:dora", "cpu_ms"))
    await log.close()
    good = path.read_bytes()
    record = book.account_row(account, account.sums)[1]
    start = good.index(record)
    for place in range(start, start + len(record)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bad)
        with pytest.raises(LedgerCorrupt, match="account caller:dora cpu_ms is not kept as the entries say") as found:
            audit.verify(tmp_path)
        assert found.value.fields["where"] == "account caller:dora cpu_ms"
    hold = good.index((5).to_bytes(16, "big"), start)
    path.write_bytes(good[:hold] + b"\x01" + good[hold + 1 :])
    with pytest.raises(LedgerCorrupt, match=r"account .*|hold 0\.1"):
        audit.verify(tmp_path)
    path.write_bytes(good)
    for statement, named in (
        (
            "UPDATE balance SET record = CAST(substr(record, 1, 32) || x'07' || substr(record, 34) AS BLOB) "
            "WHERE number = 1",
            "account",
        ),
        ("UPDATE pending SET record = CAST(x'01' || substr(record, 2) AS BLOB)", "hold 0.1"),
        ("INSERT INTO balance (number, record) VALUES (99, x'00')", "accounts"),
    ):
        rewrite(tmp_path, statement)
        with pytest.raises(LedgerCorrupt) as found:
            audit.verify(tmp_path)
        assert found.value.fields["where"].startswith(named)
        path.write_bytes(good)


async def test_accounts_cannot_be_removed_or_resized(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    await log.append([entry(USED)])
    await log.checkpoint()
    for statement in ("DELETE FROM balance", "UPDATE balance SET record = x'00'", "UPDATE balance SET number = 77"):
        with pytest.raises(sqlite3.DatabaseError, match="an account stays"):
            log._connection.execute(statement)
    await log.close()


async def test_a_ledger_of_the_first_format_is_verified_as_it_is_and_then_goes_on(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    await log.close()
    path = tmp_path / "ledger" / files.DATABASE
    path.unlink()
    connection = sqlite3.connect(path, isolation_level=None)
    files.configure(connection, "process")
    files.create(connection, version=1)
    connection.close()
    # As the version that knew no accounts wrote it.
    older = sqlite3.connect(path, isolation_level=None)
    older.execute("INSERT INTO writer (sqlite_version) VALUES (?)", (sqlite3.sqlite_version.encode(),))
    older.close()
    assert audit.verify(tmp_path).accounts == 0
    log = open_log(tmp_path)
    await log.append([entry(USED)] * 300)
    await log.close()
    report = audit.verify(tmp_path)
    assert (report.size, report.accounts) == (300, 4)
    version = sqlite3.connect(path).execute("PRAGMA user_version").fetchone()[0]
    assert version == files.SCHEMA_VERSION == 2
    rewrite(tmp_path, "PRAGMA user_version = 3")
    with pytest.raises(StateNewer):
        open_log(tmp_path)


async def test_an_entry_in_the_tail_that_cannot_be_is_corruption(tmp_path: Path) -> None:
    from buildnet.ledger import tail

    log = open_log(tmp_path)
    await log.append([entry(USED)])
    await log.close()
    for body in (entry("post 0.0 1").encode(), b'{"at_unix_ms":1,"kind":"x","transfers":["?"],"v":1}', b"[]"):
        writer = tail.Tail(tmp_path / "ledger", power=False)
        writer.append(1, [body])
        with pytest.raises(LedgerCorrupt):
            open_log(tmp_path)
        with pytest.raises(LedgerCorrupt):
            audit.verify(tmp_path)
        writer.empty()
        writer.close()
    log = open_log(tmp_path)
    assert log.size == 1
    await log.close()


async def test_times_and_receipts_find_their_entries(log: LedgerLog) -> None:
    digest = f"{1:064x}/5"
    await log.append(
        [
            Entry("controller.started", 10, {}),
            Entry("action.published", 20, {"action": digest, "instance": "", "transfers": [USED]}),
            Entry("x", 30, {"action": digest, "transfers": ["hold 0 caller:dora node:n1 bytes 8"]}),
            Entry("x", 40, {"transfers": ["post 2.0 3"]}),
            Entry("results.updated", 50, {"results": [f"team {digest} 00", f" {digest}9 00"]}),
            Entry("x", 60, {"transfers": ["hold 0 caller:dora node:n1 bytes 8", "void 5.0"]}),
        ]
    )
    for moment, first in ((0, 0), (20, 1), (21, 2), (60, 5), (61, 6)):
        assert await log.look(lambda c, at=moment: queries.first_since(c, at)) == first
    assert await log.look(queries.result_entry(digest, "", 0, 9)) == 1
    assert await log.look(queries.result_entry(digest, "team", 0, 9)) == 4
    assert await log.look(queries.result_entry(digest, "team", 0, 4)) is None
