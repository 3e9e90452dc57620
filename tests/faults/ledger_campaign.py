"""The ledger's crash campaign: kill -9 in the middle of appends, start again, and look for every acknowledged entry.

It counts as lost what was acknowledged and is absent or other, and as wrong a ledger that does not verify, or balances
that a recount of the entries' own lines does not give.
Run in full: `python -m tests.faults.ledger_campaign --kills 200` (`make crash`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildnet.errors import BuildNetError, TransferRefused
from buildnet.ledger import audit, queries
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry

ACKNOWLEDGED_PER_ROUND = 400
# Kills of one ledger: after each all of it is verified twice, so that a long one would take the time of many.
KILLS_PER_LEDGER = 25
NAMES = [f"{kind}:{number}" for kind in ("node", "caller") for number in range(12)]
Sums = dict[tuple[str, str], list[int]]


def open_log(directory: Path, durability: str) -> LedgerLog:
    return LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), durability)


def lines_of(chance: random.Random, holds: list[str]) -> list[str]:
    debit, credit = chance.sample(NAMES, 2)
    moved = f"{debit} {credit} actions 1 cpu_ms {chance.getrandbits(chance.choice([4, 40, 100]))}"
    return [
        chance.choice(
            [
                moved,
                moved,
                f"hold {chance.choice([0, 3, 40])} {debit} {credit} bytes {chance.getrandbits(8)}",
                f"post {chance.choice(holds)} {chance.getrandbits(6)}" if holds else moved,
                f"void {chance.choice(holds)}" if holds else moved,
            ]
        )
        for _ in range(chance.choice([1, 1, 2]))
    ]


async def appending(directory: Path, durability: str, seed: int) -> None:
    """Append until killed; print what is acknowledged, an entry a line."""
    chance = random.Random(seed)
    log = open_log(directory, durability)
    holds: list[str] = []

    async def one() -> None:
        group = [
            Entry("action.published", log.size + chance.randrange(3), {"n": chance.getrandbits(60), "transfers": lines})
            for lines in (lines_of(chance, holds) for _ in range(chance.choice([1, 1, 1, 5, 40])))
        ]
        try:
            first = await log.append(group)
        except TransferRefused:
            return
        told = []
        for index, entry in enumerate(group, first):
            lines: Any = entry.fields["transfers"]
            holds.extend(f"{index}.{place}" for place, line in enumerate(lines) if line.startswith("hold"))
            told.append(json.dumps({"index": index, "body": entry.encode().decode()}))
        print("\n".join(told), flush=True)

    print("ready", flush=True)
    while True:
        await asyncio.gather(*(one() for _ in range(chance.choice([1, 4, 16]))))
        if chance.random() < 0.1:
            await log.signed_size()
        await asyncio.sleep(0)


def recounted(bodies: list[bytes]) -> Sums:
    """What the lines come to, read here by themselves: debits and credits that are posted, then pending."""
    sums: Sums = {}
    holds: dict[str, tuple[str, str, str, int, int]] = {}

    def add(name: str, unit: str, place: int, amount: int) -> None:
        sums.setdefault((name, unit), [0, 0, 0, 0])[place] += amount

    def release(key: str, amount: int) -> None:
        debit, credit, unit, held, _ = holds.pop(key)
        for name, pending, posted in ((debit, 0, 1), (credit, 2, 3)):
            add(name, unit, pending, -held)
            add(name, unit, posted, amount)

    for index, body in enumerate(bodies):
        fields = json.loads(body)
        for key in [key for key, hold in holds.items() if 0 < hold[4] <= fields["at_unix_ms"]]:
            release(key, 0)
        for place, line in enumerate(fields["transfers"]):
            words = line.split(" ")
            if words[0] == "hold":
                _, timeout, debit, credit, unit, amount = words
                deadline = fields["at_unix_ms"] + int(timeout) if timeout != "0" else 0
                holds[f"{index}.{place}"] = (debit, credit, unit, int(amount), deadline)
                add(debit, unit, 0, int(amount))
                add(credit, unit, 2, int(amount))
            elif words[0] in ("post", "void"):
                release(words[1], int(words[2]) if words[0] == "post" else 0)
            else:
                for unit, amount in zip(words[2::2], words[3::2], strict=True):
                    add(words[0], unit, 1, int(amount))
                    add(words[1], unit, 3, int(amount))
    return sums


@dataclass
class LedgerCampaign:
    """What a campaign does and what it saw."""

    directory: Path
    seed: int
    durability: str = "process"
    kills: int = 0
    acknowledged: int = 0
    in_tail: int = 0
    known: dict[int, bytes] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.ledgers = self.directory

    def run(self, kills: int) -> None:
        for number in range(kills):
            if number % KILLS_PER_LEDGER == 0:
                self.directory = self.ledgers / str(number)
                self.directory.mkdir()
                self.known.clear()
            self._append_until_killed(number)
            self._look()
            if number % 20 == 19:
                print(self.line(), flush=True)

    def _append_until_killed(self, number: int) -> None:
        command = [sys.executable, "-m", "tests.faults.ledger_campaign", "--append", str(self.directory)]
        command += ["--durability", self.durability, "--seed", str(self.seed * 1000 + number)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        try:
            if child.stdout.readline() != "ready\n":
                raise AssertionError(f"the ledger ended with {child.wait()} before it was ready")
            for _ in range(self.random.randrange(1, ACKNOWLEDGED_PER_ROUND)):
                self._acknowledged(child.stdout.readline())
        finally:
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read()
            child.wait()
            child.stdout.close()
        # A line that broke off was not told to anybody.
        for line in rest.splitlines(keepends=True):
            if line.endswith("\n"):
                self._acknowledged(line)
        self.kills += 1

    def _acknowledged(self, line: str) -> None:
        told = json.loads(line)
        self.acknowledged += 1
        self.known[told["index"]] = told["body"].encode()

    def _look(self) -> None:
        """The files as the kill left them, and again after the next start."""
        try:
            before = audit.verify(self.directory)
            self.in_tail += before.waiting
            balances = asyncio.run(self._reopened())
            bodies = [body for _, body in audit.iterate(self.directory)]
            after = audit.verify(self.directory)
        except BuildNetError as error:
            self.wrong.append(f"after kill {self.kills}: {error}")
            return
        if (after.size, after.waiting) != (before.size + before.waiting, 0):
            self.wrong.append(f"after kill {self.kills}: {before} became {after}")
        for index, body in self.known.items():
            if index >= len(bodies) or bodies[index] != body:
                self.lost.append(f"entry {index}")
        expected = recounted(bodies)
        if balances != expected:
            self.wrong.append(f"after kill {self.kills}: balances are not what the lines come to")
        per_unit: Counter[tuple[str, int]] = Counter()
        for (_, unit), sums in balances.items():
            per_unit[unit, 0] += sums[0] - sums[2]
            per_unit[unit, 1] += sums[1] - sums[3]
        if any(per_unit.values()):
            self.wrong.append(f"after kill {self.kills}: debits are not credits")

    async def _reopened(self) -> Sums:
        log = open_log(self.directory, self.durability)
        try:
            return {(a.name, a.unit): list(a.sums) for a in await log.look(queries.accounts)}
        finally:
            await log.close()

    def line(self) -> str:
        """The line of the log."""
        return (
            f"{self.kills} kills, {self.acknowledged} entries acknowledged, {self.in_tail} found in the tail; "
            f"{len(self.lost)} lost, {len(self.wrong)} wrong"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    parser.add_argument("--append", type=Path, help="Be the process that is killed.")
    asked = parser.parse_args()
    if asked.append is not None:
        asyncio.run(appending(asked.append, asked.durability, asked.seed))
    with tempfile.TemporaryDirectory() as directory:
        campaign = LedgerCampaign(Path(directory), asked.seed, asked.durability)
        campaign.run(asked.kills)
    print(campaign.line())
    for line in (campaign.lost + campaign.wrong)[:20]:
        print(line)
    raise SystemExit(1 if campaign.lost or campaign.wrong else 0)


if __name__ == "__main__":
    main()
