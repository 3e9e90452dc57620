"""A worker whose process stands still for longer than a lease: its action runs elsewhere, and what it says late counts
for nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from pathlib import Path

from buildnet.client import Client
from buildnet.ledger import audit
from tests.conftest import House

ENV = {"PATH": "/usr/bin:/bin"}


async def test_a_worker_that_is_stopped_and_resumed_late_publishes_nothing(house: House) -> None:
    server = house.up("--no-worker")
    for name in ("one", "two"):
        house.join(server.url, "--slots", "1", name=name)
    workers = {
        (house.directory / name / "id").read_text().strip(): role
        for name, role in zip(("one", "two"), house.roles[1:], strict=True)
    }
    with tempfile.TemporaryDirectory(dir=Path.home()) as gates:
        gate = Path(gates, "gate")
        script = f"echo begun; while ! test -e {gate}; do sleep 0.02; done; cat /proc/sys/kernel/random/uuid"
        async with Client(server.url) as client, asyncio.timeout(300):
            printed: asyncio.Queue[bytes] = asyncio.Queue()
            asked = asyncio.ensure_future(
                client.run(
                    ["/bin/sh", "-c", script],
                    env=ENV,
                    effects={"read": "ambient"},
                    on_log=lambda piece: printed.put_nowait(piece.data),
                )
            )
            assert await printed.get() == b"begun\n"
            (stopped,) = [info.worker for info in await client.actions() if info.state == "executing"]
            os.kill(workers[stopped].process.pid, signal.SIGSTOP)
            try:
                (other,) = workers.keys() - {stopped}
                while not any(info.worker == other for info in await client.actions() if info.state == "executing"):
                    await asyncio.sleep(0.05)
                # Both attempts end now; that of the stopped worker is told when it can speak again.
                gate.touch()
                result = await asked
            finally:
                os.kill(workers[stopped].process.pid, signal.SIGCONT)
            assert (result.exit_code, result.worker) == (0, other)
            # It is in its place again, and has nothing left to say: what it is given now it runs.
            again = await client.rerun(result.action, worker=stopped)
            assert again.worker == stopped
            assert again.stdout() != result.stdout()
            assert [node.running for node in await client.fleet.nodes()] == [0, 0]
    bodies = [json.loads(body) for _, body in audit.iterate(Path(server.ready["state"]))]
    told = [body["worker"] for body in bodies if body["kind"] == "action.published"]
    assert told == [other, stopped]
    assert [body["worker"] for body in bodies if body["kind"] == "action.assigned"] == [stopped, other, stopped]
