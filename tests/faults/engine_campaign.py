"""The fault campaign of the engine: its controller is killed, its workers killed, or stopped and resumed late.

It counts as lost what was accepted and never ended, or was forgotten; as twice what was published twice, and as stale
what was published under a fence that was not its action's newest. The ledger must verify.
Run in full: `python -m tests.faults.engine_campaign --kills 100 --actions 2000` (`make crash`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildnet.client import Client
from buildnet.errors import BuildNetError, NotFound
from buildnet.ledger import audit
from buildnet.wire.request_metadata import Manner
from tests.conftest import House, Role

CHAINS = 24
WORKERS = ("v", "w", "x")
SCRIPT = "echo $STEP; cat before"
AWAY_S = 240.0
# Longer than a lease: what a stopped worker ran is given to another before it is resumed.
STOPPED_S = (0.2, 9.0)


class WatchingClient(Client):
    """Knows which operations it was told of, and which of these its server forgot."""

    def __init__(self, url: str) -> None:
        super().__init__(url, away_s=AWAY_S)
        self.accepted: set[str] = set()
        self.forgotten: list[str] = []

    async def _operations(self, request: Any, name: str, manner: Manner) -> AsyncIterator[Any]:  # type: ignore[override]
        try:
            async for operation in super()._operations(request, name, manner):
                self.accepted.add(operation.name)
                yield operation
        except NotFound:
            if name:
                self.forgotten.append(name)
            raise


@dataclass
class EngineCampaign:
    """What a campaign does and what it saw."""

    directory: Path
    seed: int
    actions: int = 2000
    kills: int = 0
    workers_killed: int = 0
    workers_stopped: int = 0
    ended: int = 0
    accepted: int = 0
    adopted: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.house = House(self.directory)
        self.roles: dict[str, Role] = {}
        self.controller: Role
        self._progress = asyncio.Event()
        self._chains: list[asyncio.Task[None]] = []

    def run(self, kills: int) -> None:
        try:
            asyncio.run(self._run(kills))
        finally:
            for role in self.roles.values():
                role.process.send_signal(signal.SIGCONT)
            self.house.close()
        self._judge()

    async def _run(self, kills: int) -> None:
        self.controller = await asyncio.to_thread(self.house.up, "--no-worker")
        for name in WORKERS:
            await self._join(name)
        per_chain = -(-self.actions // CHAINS)
        async with WatchingClient(self.controller.url) as client:
            chains = [asyncio.ensure_future(self._chain(client, number, per_chain)) for number in range(CHAINS)]
            for chain in chains:
                # One that breaks ends the wait for progress.
                chain.add_done_callback(lambda _: self._progress.set())
            self._chains = chains
            resumed: list[asyncio.Task[None]] = []
            for number in range(kills):
                await self._until(self.actions * (number + 1) // (kills + 1))
                # Anywhere in what one action takes.
                await asyncio.sleep(self.random.random() * 0.3)
                await self._kill_controller()
                resumed += await self._hurt_a_worker()
                if number % 10 == 9:
                    print(self.line(), flush=True)
            await asyncio.gather(*resumed)
            await asyncio.gather(*chains)
            self.accepted = len(client.accepted)
            self.lost += client.forgotten

    async def _chain(self, client: Client, chain: int, length: int) -> None:
        """Actions each of which needs what the one before it printed."""
        before = f"{self.seed} {chain}\n"
        for step in range(length):
            try:
                result = await client.run(
                    ["/bin/sh", "-c", SCRIPT],
                    inputs={"before": before.encode()},
                    env={"PATH": "/usr/bin:/bin", "STEP": f"{chain}.{step}"},
                )
            except BuildNetError as error:
                self.lost.append(f"{chain}.{step}: {error}")
                return
            if result.exit_code != 0 or result.stdout_digest is None:
                self.wrong.append(f"{chain}.{step} ended with {result.exit_code}")
                return
            before = result.stdout_digest.text
            self.ended += 1
            self._progress.set()

    async def _until(self, ended: int) -> None:
        async with asyncio.timeout(AWAY_S):
            while self.ended < ended and not self.lost:
                for chain in self._chains:
                    if chain.done():
                        chain.result()
                self._progress.clear()
                await self._progress.wait()

    async def _kill_controller(self) -> None:
        listen = self.controller.ready["listen"]
        await asyncio.to_thread(self.controller.kill)
        self.kills += 1
        self.controller = await asyncio.to_thread(lambda: self.house.up("--no-worker", listen=listen))

    async def _hurt_a_worker(self) -> list[asyncio.Task[None]]:
        dice, name = self.random.random(), self.random.choice(WORKERS)
        role = self.roles[name]
        if role.process.poll() is not None or dice < 0.4:
            return []
        if dice < 0.6:
            self.workers_killed += 1
            await asyncio.to_thread(role.kill)
            await self._join(name)
            return []
        self.workers_stopped += 1
        role.process.send_signal(signal.SIGSTOP)
        return [asyncio.ensure_future(self._resume(role, self.random.uniform(*STOPPED_S)))]

    async def _resume(self, role: Role, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if role.process.poll() is None:
            role.process.send_signal(signal.SIGCONT)

    async def _join(self, name: str) -> None:
        url = self.controller.url
        self.roles[name] = await asyncio.to_thread(lambda: self.house.join(url, "--slots", "2", name=name))

    def _judge(self) -> None:
        """What the ledger says of it all, from its files."""
        state = self.directory / "controller"
        try:
            audit.verify(state)
            bodies = [json.loads(body) for _, body in audit.iterate(state)]
        except BuildNetError as error:
            self.wrong.append(str(error))
            return
        published: Counter[str] = Counter()
        newest: dict[str, int] = {}
        for body in bodies:
            if body["kind"] == "action.assigned":
                newest[body["action"]] = body["fence"]
            elif body["kind"] == "action.adopted":
                self.adopted += 1
            elif body["kind"] == "action.published":
                published[body["action"]] += 1
                if body["fence"] < newest.get(body["action"], 0):
                    self.stale.append(body["action"])
        self.twice += [action for action, count in published.items() if count > 1]
        if len(published) < self.ended:
            self.wrong.append(f"{self.ended} actions ended, {len(published)} were published")

    def line(self) -> str:
        """The line of the log."""
        return (
            f"{self.kills} kills, {self.ended} actions, {len(self.lost)} lost, {len(self.twice)} twice, "
            f"{len(self.stale)} stale ({self.accepted} operations, {self.adopted} attempts adopted, "
            f"{self.workers_killed} workers killed, {self.workers_stopped} stopped; {len(self.wrong)} wrong)"
        )

    @property
    def failures(self) -> list[str]:
        """Everything that must not be."""
        return [*self.lost, *self.twice, *self.stale, *self.wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="Of the controller.")
    parser.add_argument("--actions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        campaign = EngineCampaign(Path(directory), asked.seed, asked.actions)
        campaign.run(asked.kills)
    print(campaign.line())
    for line in campaign.failures[:20]:
        print(line)
    raise SystemExit(1 if campaign.failures else 0)


if __name__ == "__main__":
    main()
