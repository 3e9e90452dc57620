"""The fault campaign of the engine: its controller is killed in the middle of a graph; its workers are killed, stopped
and resumed late, or cut off by their network and let back.

It counts as lost what was accepted and never ended, or was forgotten; as twice what was published twice, and as stale
what was published under a fence that was not its action's newest. Every log is compared byte for byte, as it was
followed and as it is stored. The ledger must verify.
Run in full: `python -m tests.faults.engine_campaign --kills 100 --actions 2000 --partitions 20` (`make crash`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from buildnet.access import keys, tokens
from buildnet.client import Client, Credentials
from buildnet.edge.fleet import LEASE_DURATION_S
from buildnet.errors import BuildNetError, NotFound
from buildnet.ledger import audit
from buildnet.wire.request_metadata import Manner
from tests.conftest import House, Role
from tests.faults import networks
from tests.faults.graph_load import GraphLoad, graph_of

WORKERS: Final = ("v", "w", "x")
# Beside the graph, through the other face: actions each of which needs what the one before it printed.
RUNS: Final = 2
RUN_SCRIPT: Final = "echo $STEP; cat before"
AWAY_S: Final = 240.0
# Shorter than a lease, and longer: what such a worker ran is given to another before it comes back.
SHORT_S: Final = (0.2, 0.6 * LEASE_DURATION_S)
LONG_S: Final = (1.5 * LEASE_DURATION_S, 2.5 * LEASE_DURATION_S)


class WatchingClient(Client):
    """Knows which operations it was told of, and which of these its server forgot."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        super().__init__(url, credentials=credentials, away_s=AWAY_S)
        self.accepted: set[str] = set()
        self.forgotten: list[str] = []

    async def _operations(self, request: Any, name: str, manner: Manner) -> AsyncIterator[Any]:
        try:
            async for operation in super()._operations(request, name, manner):
                self.accepted.add(operation.name)
                yield operation
        except NotFound:
            if name:
                self.forgotten.append(name)
            raise


@dataclass
class Seen:
    """What a campaign counts."""

    kills: int = 0
    partitions: list[float] = field(default_factory=list)
    workers_killed: int = 0
    workers_stopped: int = 0
    runs: int = 0
    operations: int = 0
    adopted: int = 0
    # Actions that were given to a second worker, or to the same one again.
    reassigned: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Everything that must not be."""
        return [*self.lost, *self.twice, *self.stale, *self.wrong]


class EngineCampaign:
    """One campaign over one state directory.

    Args:
        directory: for the state of everybody.
        seed: of the faults.
        actions: of the graph.
        hub: makes workers reach the controller by links that can be cut; None: all of it over loopback.
    """

    def __init__(self, directory: Path, seed: int, actions: int, hub: networks.Hub | None = None) -> None:
        self.directory = directory
        self.seed = seed
        self.actions = actions
        self.hub = hub
        self.seen = Seen()
        self.random = random.Random(seed)
        self.house = House(directory)
        self.roles: dict[str, Role] = {}
        self.controller: Role
        self.graph: GraphLoad
        self._progress = asyncio.Event()
        self._over = False

    def run(self, kills: int, partitions: int = 0) -> None:
        """Have the graph done while so many faults come, and judge what is left."""
        try:
            asyncio.run(self._run(kills, partitions))
        finally:
            # Workers first: without a controller they would try again before they leave.
            for name, role in self.roles.items():
                self._heal(name)
                role.process.send_signal(signal.SIGCONT)
                role.stop()
            self.house.close()
            if self.hub is not None:
                self.hub.close()
        self._judge()

    async def _run(self, kills: int, partitions: int) -> None:
        await self._up("127.0.0.1:0" if self.hub is None else f"{networks.HUB}:0")
        watching = WatchingClient(self.controller.url, Credentials(token=self._token))
        async with watching as client:
            for name in WORKERS:
                _, line = await client.fleet.new_token(self.controller.ready["listen"], lifetime_s=600)
                await self._join(name, line.text)
            begin = await client.upload(f"{self.seed}\n".encode())
            specs = graph_of(self.actions, self.seed, begin)
            self.graph = GraphLoad(client, self.seed, specs, AWAY_S, self._progress.set)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._graph())
                for number in range(RUNS):
                    tasks.create_task(self._runs(client, number))
                await self._faults(tasks, kills, partitions)
            self.seen.operations = len(watching.accepted)
            self.seen.lost += watching.forgotten

    async def _graph(self) -> None:
        try:
            await self.graph.run()
        finally:
            self._over = True
            self._progress.set()

    async def _runs(self, client: Client, number: int) -> None:
        """A chain of actions that goes on as long as the graph does."""
        before = f"{self.seed} {number}\n"
        for step in itertools.count():
            if self._over:
                return
            try:
                result = await client.run(
                    ["/bin/sh", "-c", RUN_SCRIPT],
                    inputs={"before": before.encode()},
                    env={"PATH": "/usr/bin:/bin", "STEP": f"{number}.{step}"},
                )
            except BuildNetError as error:
                self.seen.lost.append(f"run {number}.{step}: {error}")
                return
            if result.exit_code != 0 or result.stdout_digest is None:
                self.seen.wrong.append(f"run {number}.{step} ended with {result.exit_code}")
                return
            before = result.stdout_digest.text
            self.seen.runs += 1

    # Faults.

    async def _faults(self, tasks: asyncio.TaskGroup, kills: int, partitions: int) -> None:
        """Kills and partitions, mixed over the graph's course; a worker is hurt after each kill."""
        faults = ["kill"] * kills + ["cut"] * partitions
        self.random.shuffle(faults)
        hurts = itertools.cycle(["nobody", "kill", "stop", "stop long"])
        cuts = itertools.cycle([LONG_S, SHORT_S])
        for number, fault in enumerate(faults):
            await self._until(self.actions * (number + 1) // (len(faults) + 1))
            # Anywhere in what one action takes.
            await asyncio.sleep(self.random.random() * 0.3)
            if fault == "cut":
                self._cut(tasks, self.random.uniform(*next(cuts)))
                continue
            await self._kill_controller()
            await self._hurt(tasks, next(hurts))
            if self.seen.kills % 10 == 0:
                print(self.line(), flush=True)

    async def _until(self, ended: int) -> None:
        async with asyncio.timeout(AWAY_S):
            while len(self.graph.ended) < ended and not self._over:
                self._progress.clear()
                await self._progress.wait()

    async def _kill_controller(self) -> None:
        listen = self.controller.ready["listen"]
        await asyncio.to_thread(self.controller.kill)
        self.seen.kills += 1
        await self._up(listen)

    async def _hurt(self, tasks: asyncio.TaskGroup, how: str) -> None:
        name = self.random.choice(WORKERS)
        role = self.roles[name]
        if how == "kill":
            self.seen.workers_killed += 1
            # What is cut off could not join again.
            self._heal(name)
            await asyncio.to_thread(role.kill)
            await self._join(name)
        elif how != "nobody":
            self.seen.workers_stopped += 1
            role.process.send_signal(signal.SIGSTOP)
            tasks.create_task(self._resume(role, self.random.uniform(*(LONG_S if how == "stop long" else SHORT_S))))

    async def _resume(self, role: Role, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if role.process.poll() is None:
            role.process.send_signal(signal.SIGCONT)

    def _cut(self, tasks: asyncio.TaskGroup, for_s: float) -> None:
        """Cut off a worker for a while."""
        assert self.hub is not None, "only links of our own can be cut"
        name = self.random.choice(WORKERS)
        self.hub.link(name).cut()
        self.seen.partitions.append(for_s)
        tasks.create_task(self._heal_after(name, for_s))

    async def _heal_after(self, name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._heal(name)

    def _heal(self, name: str) -> None:
        if self.hub is not None:
            self.hub.link(name).heal()

    # Roles.

    async def _up(self, listen: str) -> None:
        arguments = ["--no-worker", "--anonymous", "none", *(() if self.hub is None else ("--insecure-plaintext",))]
        self.controller = await asyncio.to_thread(lambda: self.house.up(*arguments, listen=listen))

    async def _join(self, name: str, line: str = "") -> None:
        within = () if self.hub is None else self.hub.link(name).within
        self.roles[name] = await asyncio.to_thread(
            lambda: self.house.join(line, "--slots", "2", name=name, within=within)
        )

    def _token(self) -> str:
        now = int(time.time())
        says = tokens.Token("campaign", ("admin",), now + 3600, "campaign", issued_unix_s=now)
        return tokens.sign(keys.load_or_create(self.directory / "controller"), says)

    # The end.

    def _judge(self) -> None:
        """What the ledger says of it all, from its files."""
        seen, state = self.seen, self.directory / "controller"
        seen.wrong += self.graph.wrong
        seen.lost += sorted(self.graph.specs.keys() - self.graph.ended)
        if self.graph.forgotten:
            seen.wrong.append(f"{self.graph.forgotten} operations of the graph were forgotten")
        try:
            audit.verify(state)
            bodies = [json.loads(body) for _, body in audit.iterate(state)]
        except BuildNetError as error:
            seen.wrong.append(str(error))
            return
        published: Counter[str] = Counter()
        assigned: Counter[str] = Counter()
        newest: dict[str, int] = {}
        for body in bodies:
            if body["kind"] == "action.assigned":
                newest[body["action"]] = body["fence"]
                assigned[body["action"]] += 1
            elif body["kind"] == "action.adopted":
                seen.adopted += 1
            elif body["kind"] == "action.published":
                published[body["action"]] += 1
                if body["fence"] < newest.get(body["action"], 0):
                    seen.stale.append(body["action"])
        seen.reassigned = sum(1 for count in assigned.values() if count > 1)
        seen.twice += [action for action, count in published.items() if count > 1]
        ended = len(self.graph.ended) + seen.runs
        if len(published) < ended:
            seen.wrong.append(f"{ended} actions ended, {len(published)} were published")

    def line(self) -> str:
        """The line of the log."""
        seen, graph = self.seen, self.graph
        long = sum(1 for for_s in seen.partitions if for_s > LEASE_DURATION_S)
        return (
            f"{seen.kills} kills, {len(seen.partitions)} partitions ({long} longer than a lease), "
            f"{seen.workers_killed} workers killed, {seen.workers_stopped} stopped; "
            f"{len(graph.ended)} actions of a graph and {seen.runs} others ended: {len(seen.lost)} lost, "
            f"{len(seen.twice)} twice, {len(seen.stale)} stale, {len(seen.wrong)} wrong "
            f"({graph.submissions} submissions, {graph.forgotten} forgotten, {seen.operations} operations, "
            f"{seen.adopted} attempts adopted, "
            f"{seen.reassigned} actions reassigned, "
            f"{len(graph.followed)} logs followed, {graph.log_bytes} bytes of logs compared)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="Of the controller.")
    parser.add_argument("--actions", type=int, default=2000)
    parser.add_argument("--partitions", type=int, default=0, help="Of a worker's network; needs network namespaces.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    asked = parser.parse_args()
    if asked.partitions and not networks.is_hub():
        if why := networks.refusal():
            parser.error(f"--partitions: {why}")
        command = networks.in_hub(["tests.faults.engine_campaign", *sys.argv[1:], "--seed", str(asked.seed)])
        os.execvp(command[0], command)
    # Workers that say that their controller is away would hide the line.
    os.environ.setdefault("BUILDNET_LOG", "error")
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        hub = networks.Hub() if asked.partitions else None
        campaign = EngineCampaign(Path(directory), asked.seed, asked.actions, hub)
        campaign.run(asked.kills, asked.partitions)
    print(campaign.line())
    for line in campaign.seen.failures[:20]:
        print(line)
    raise SystemExit(1 if campaign.seen.failures else 0)


if __name__ == "__main__":
    main()
