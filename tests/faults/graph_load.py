"""One graph of chained actions, submitted and followed by a client that bears its controller's deaths.

It knows beforehand what every action prints, byte for byte, and finds what a follower or the stored log has otherwise.
It decides nothing about faults.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from buildnet.client import ActionInfo, Client, Digest, SubmittedGraph
from buildnet.client.actions import ENDED
from buildnet.errors import NodeDown, NotFound, Overloaded
from buildnet.model.action_spec import ActionSpec, FileInput, OutputInput, spec_of

T = TypeVar("T")
CHAINS = 24
LINES = 40
# So many lines more, where a log is long: over 1 MiB, so that the one of record is made of what came live.
LONG_LINES = 200_000
LONG_EVERY = 10
# Half of the lines, then what a fault may fall into, then the others; each in a write of its own.
SCRIPT = f"""
i=0
while [ $i -lt {LINES} ]; do
  echo "$STEP line $i"; echo "$STEP error $i" >&2
  i=$((i + 1))
  [ $i -ne {LINES // 2} ] || sleep 0.05
done
[ -z "$LONG" ] || seq {LONG_LINES}
cat before > after; echo $STEP >> after
"""


def is_long(name: str) -> bool:
    """Whether the action of this name, CHAIN.STEP, prints a long log."""
    return int(name.rpartition(".")[2]) % LONG_EVERY == 2


def printed(step: str) -> tuple[bytes, bytes]:
    """What an action prints to both streams."""
    long = LONG_LINES if is_long(step) else 0
    return (
        "".join([*(f"{step} line {i}\n" for i in range(LINES)), *(f"{i}\n" for i in range(1, long + 1))]).encode(),
        "".join(f"{step} error {i}\n" for i in range(LINES)).encode(),
    )


def graph_of(actions: int, seed: int, begin: Digest) -> dict[str, ActionSpec]:
    """Chains of actions, each of which takes what the one before it left. `begin` is the first input."""
    per_chain = -(-actions // CHAINS)
    specs: dict[str, ActionSpec] = {}
    for number in range(actions):
        chain, step = divmod(number, per_chain)
        name = f"{chain}.{step}"
        before = OutputInput("before", f"{chain}.{step - 1}", "after") if step else FileInput("before", begin)
        specs[name] = spec_of(
            ["/bin/sh", "-c", SCRIPT],
            inputs=[before],
            outputs=["after"],
            variables={"PATH": "/usr/bin:/bin", "STEP": f"{seed}-{name}", "LONG": "1" if is_long(name) else ""},
        )
    return specs


@dataclass
class GraphLoad:
    """What was submitted and what was seen of it. `changed` is called whenever another action has ended.

    Args:
        client: of the controller that is killed.
        seed: makes this graph's actions its own.
        specs: the graph.
        away_s: for how long at a time the controller may be away.
        changed: hears of each end.
    """

    client: Client
    seed: int
    specs: dict[str, ActionSpec]
    away_s: float
    changed: Callable[[], None]
    ended: set[str] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    # Operations that had ended, or executed, and of which a later controller knew nothing.
    forgotten: int = 0
    submissions: int = 0
    log_bytes: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Results are compared a few at a time: the campaign is about the server, not about this process.
        self._comparing = asyncio.Semaphore(8)
        self._tasks: asyncio.TaskGroup
        self._looks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Have the whole graph done, and every log looked at.

        Raises:
            BuildNetError: the controller refused what it must accept, or stayed away.
        """
        async with asyncio.TaskGroup() as self._tasks:
            while len(self.stored) < len(self.specs):
                graph = await self._borne(self._submit)
                # What nobody knows any more is submitted again, under the same id.
                with suppress(NotFound):
                    await self._borne(partial(self.client.submissions.follow_graph, graph, on_change=self._told))
                if self._looks:
                    await asyncio.wait(self._looks)
                if self.forgotten > len(self.specs):
                    self.wrong.append(f"{self.forgotten} operations were forgotten")
                    return

    async def _submit(self) -> SubmittedGraph:
        graph = await self.client.submissions.start_graph(self.specs, client_id=f"campaign-{self.seed}")
        self.submissions += 1
        return graph

    async def _borne(self, call: Callable[[], Awaitable[T]]) -> T:
        """Do what may be repeated, again while the controller is away."""
        began_s = time.monotonic()
        while True:
            try:
                return await call()
            # Only so many read long stored logs at once, and after a death all do.
            except (NodeDown, Overloaded):
                if time.monotonic() - began_s > self.away_s:
                    raise
                await asyncio.sleep(0.1)

    def _told(self, info: ActionInfo) -> None:
        name = info.graph_name
        if info.state == "executing" and name not in self.followed:
            self._look(self.followed, name, self._follow(info.id, name))
        if info.state in ENDED and name not in self.ended:
            self.ended.add(name)
            self.changed()
            if info.state != "completed" or info.exit_code:
                self.wrong.append(f"{name} ended {info.state}, exit code {info.exit_code}: {info.message}")
        if info.state in ENDED and name not in self.stored:
            self._look(self.stored, name, self._stored(info.id))

    def _look(self, done: set[str], name: str, log: Awaitable[tuple[str, list[bytes]]]) -> None:
        """Compare one log with what was printed, once."""

        async def compare() -> None:
            try:
                whose, streams = await log
            except NotFound:
                self.forgotten += 1
                done.discard(name)
                return
            wanted = printed(f"{self.seed}-{name}")
            for said, expected, stream in zip(streams, wanted, ("stdout", "stderr"), strict=True):
                self.log_bytes += len(said)
                if said != expected:
                    self.wrong.append(f"{name}: the {whose} {stream} has {len(said)} bytes, not these {len(expected)}")

        done.add(name)
        task = self._tasks.create_task(compare())
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _follow(self, operation_id: str, name: str) -> tuple[str, list[bytes]]:
        """What a follower has seen at the end: of the last attempt, however many there were."""
        fence, streams = 0, [bytearray(), bytearray()]

        async def read_on() -> None:
            nonlocal fence, streams
            offsets = (len(streams[0]), len(streams[1]))
            async for piece in self.client.logs(operation_id, follow=True, offsets=offsets, fence=fence):
                if piece.fence != fence:
                    fence, streams = piece.fence, [bytearray(), bytearray()]
                stream = streams[piece.stream - 1]
                if piece.gap or piece.offset != len(stream):
                    self.wrong.append(f"{name}: a follower came from byte {len(stream)} to byte {piece.offset}")
                stream += piece.data

        # The client tries again by itself, but counts what it hears: several deaths may pass before an action speaks.
        await self._borne(read_on)
        return "followed", [bytes(stream) for stream in streams]

    async def _stored(self, operation_id: str) -> tuple[str, list[bytes]]:
        async def read() -> list[bytes]:
            result = await self.client.submissions.result(operation_id)
            return [await asyncio.to_thread(result.stdout), await asyncio.to_thread(result.stderr)]

        async with self._comparing:
            return "stored", await self._borne(read)
