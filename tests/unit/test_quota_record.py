"""Quotas are told when they differ from those on record, and only then; an entry never outgrows its bound."""

from __future__ import annotations

import json
from pathlib import Path

from buildnet.app.quota_record import configured, rules_sha256, tell
from buildnet.errors import NotFound
from buildnet.model.entry import Entry
from buildnet.scheduler.limits import Limits, Quota, Quotas
from buildnet.testing.memory_ledger import MemoryLedger

ACME = Limits(quotas=Quotas({"acme": Quota(weight=2, actions_max=3)}, {"acme/ann": Quota(queued_max=5)}))


class Read(MemoryLedger):
    """A ledger in memory that is read too."""

    async def get(self, index: int) -> bytes:
        if index >= len(self.bodies):
            raise NotFound("there is none", kind="entry", name=str(index))
        return self.bodies[index]


async def test_what_was_never_set_is_not_told(tmp_path: Path) -> None:
    ledger = Read()
    await tell(tmp_path, ledger, Limits(), 7)
    assert ledger.bodies == []


async def test_each_change_is_told_once(tmp_path: Path) -> None:
    ledger = Read()
    for limits in (ACME, ACME, Limits(), Limits(), ACME):
        await tell(tmp_path / "views", ledger, limits, 7)
    told = [json.loads(body) for body in ledger.bodies]
    assert [entry["kind"] for entry in told] == ["quota.configured"] * 3
    assert told[0]["shares"] == ["organisation acme weight=2 actions_max=3", "user acme/ann weight=1 queued_max=5"]
    assert "shares" not in told[1], "the defaults bound nobody by name"
    assert told[0]["rules_sha256"] == told[2]["rules_sha256"] == rules_sha256(ACME)


async def test_a_file_that_names_another_entry_is_not_believed(tmp_path: Path) -> None:
    ledger = Read()
    await ledger.append([Entry("controller.started", 1)])
    for text in ('{"entry": 0}', '{"entry": 99}', '{"entry": "0"}', "{}", "[]", "garbage"):
        size = len(ledger.bodies)
        (tmp_path / "quotas.json").write_text(text)
        await tell(tmp_path, ledger, ACME, 7)
        assert len(ledger.bodies) == size + 1, text


def test_names_that_no_line_can_hold_are_told_by_their_hash() -> None:
    hostile = Limits(quotas=Quotas({"a b\nc": Quota(), "x" * 65: Quota(), 'q"\\': Quota()}))
    shares = configured(hostile)["shares"]
    assert isinstance(shares, list)
    assert all(len(line.split(" ")) == 3 and line.isascii() and line.isprintable() for line in shares)


def test_thousands_of_shares_fit_an_entry() -> None:
    many = Limits(quotas=Quotas(users={f'{number:05d}{chr(92) * 50}"': Quota() for number in range(5000)}))
    facts = configured(many)
    assert isinstance(facts["shares"], list)
    assert isinstance(facts["left_out"], int)
    assert len(facts["shares"]) + facts["left_out"] == 5000
    assert 6 << 10 < len(Entry("quota.configured", 1 << 42, facts).encode()) <= 8 << 10


def test_every_limit_is_under_the_hash() -> None:
    others = (Limits(queue_length_max=5), Limits(age_s=1.0), Limits(quotas=Quotas(users={"a": Quota(weight=2)})), ACME)
    assert len({rules_sha256(limits) for limits in (Limits(), *others)}) == 5
