"""The page's data is what the ledger says, live, after a restart and after a kill; the view it comes from is only a
cache of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildnet.client import Client, Credentials, connect
from buildnet.ledger.follower import FILE
from buildnet.model.action_spec import spec_of
from tests.conftest import COMMAND, House, Role
from tests.engines import until
from tests.flow.guarded import Guarded
from tests.flow.test_web_seam import Events
from tests.http_calls import Http

WAIT_S = 30


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    try:
        yield house
    finally:
        house.close()


def run(role: Role, *command: str) -> int:
    words = [*COMMAND, "run", "--state", role.ready["state"], "--", *command]
    return subprocess.run(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False
    ).returncode


def asked(role: Role, path: str) -> Any:
    answer = Http(role.ready["listen"])("GET", f"/api/v1/{path}")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def entry(role: Role, index: int) -> Any:
    return asked(role, f"ledger/entries/{index}")


def recent(role: Role) -> list[Any]:
    actions = asked(role, "actions")
    assert actions["behind"] == 0
    return list(actions["recent"])


def test_actions_are_as_the_ledger_says_over_restarts(house: House) -> None:
    role = house.up("--slots", "1")
    with Events(Http(role.ready["listen"])) as events:
        while not events.next("nodes")[1]["nodes"]:
            continue
        assert run(role, "echo", "one") == 0
        assert run(role, "sh", "-c", "exit 3") == 3
        seen = {}
        while len(seen) < 2:
            seen = {one["id"]: one for one in events.next("actions")[1]["recent"]}
    failed, done = recent(role)
    assert seen == {done["id"]: done, failed["id"]: failed}
    assert (done["arguments"], done["exit_code"], done["attempts"], done["cached"]) == (["echo", "one"], 0, 1, False)
    assert failed["exit_code"] == 3
    for one in (done, failed):
        published = entry(role, one["entry"])
        assert published["kind"] == "action.published"
        assert published["at_unix_ms"] == one["completed_at_unix_ms"]
        assert (published["fields"]["action"], published["fields"]["worker"]) == (one["action"], one["worker"])
        assert one["submitted_at_unix_ms"] <= one["assigned_at_unix_ms"] <= one["completed_at_unix_ms"]
    assert asked(role, f"actions/{done['id']}") == done
    listen = role.ready["listen"]

    role.stop()
    role = house.up("--no-worker", listen=listen)
    assert recent(role) == [failed, done]
    left = asked(role, "nodes")
    assert (left["nodes"], [node["node"] for node in left["absent"]]) == ([], [done["worker"]])

    role.kill()
    role = house.up("--no-worker", listen=listen)
    assert recent(role) == [failed, done]

    role.stop()
    view = house.directory / "controller" / "views" / FILE
    view.unlink()
    role = house.up("--no-worker", listen=listen)
    assert recent(role) == [failed, done]

    role.stop()
    text = view.read_bytes()
    view.write_bytes(text[: len(text) // 2])
    role = house.up("--no-worker", listen=listen)
    assert recent(role) == [failed, done]
    role.stop()
    assert view.read_bytes().startswith(b'["views",[1,'), "it is made anew, and kept"


def test_what_runs_is_told_with_its_node_and_ends_once(house: House) -> None:
    role = house.up("--slots", "1")
    words = [*COMMAND, "run", "--state", role.ready["state"], "--", "sh", "-c", "sleep 1; echo slow"]
    with Events(Http(role.ready["listen"])) as events:
        while not (nodes := events.next("nodes")[1]["nodes"]):
            continue
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            while not (going := [one for one in events.next("actions")[1]["running"] if one["state"] == "executing"]):
                continue
            assert [(one["worker"], one["entry"]) for one in going] == [(nodes[0]["node"], None)]
            while not (ended := events.next("actions")[1]["recent"]):
                continue
            assert [(one["id"], one["state"]) for one in ended] == [(going[0]["id"], "completed")]
            assert running.wait(WAIT_S) == 0
        finally:
            running.kill()
            running.wait()
    assert asked(role, "actions")["running"] == []


def test_a_node_is_as_the_ledger_says(house: House) -> None:
    role = house.up("--no-worker")
    worker = house.join(role.url, "--slots", "1")
    with Events(Http(role.ready["listen"])) as events:
        while not (nodes := events.next("nodes")[1]["nodes"]):
            continue
        (node,) = nodes
        name = node["node"]
        kinds = [one["kind"] for one in asked(role, "ledger/entries?from=0&count=200")["entries"]]
        assert "node.joined" in kinds
        fleet = [*COMMAND, "fleet"]
        state = ["--state", role.ready["state"]]
        subprocess.check_call([*fleet, "cordon", name, *state], stdout=subprocess.DEVNULL)
        while events.next("nodes")[1]["nodes"][0]["state"] != "cordoned":
            continue
        subprocess.check_call([*fleet, "uncordon", name, *state], stdout=subprocess.DEVNULL)
        subprocess.check_call([*fleet, "drain", name, *state], stdout=subprocess.DEVNULL)
        while (news := events.next("nodes")[1])["nodes"]:
            continue
        (absent,) = news["absent"]
        assert (absent["node"], absent["state"]) == (name, "left")
    until(lambda: asked(role, "nodes")["absent"][0]["drained"], "it left owing nothing", WAIT_S)
    worker.stop()


def test_what_nobody_waits_for_after_a_kill_is_not_open_for_ever(house: House) -> None:
    role = house.up("--no-worker")
    words = [*COMMAND, "run", "--state", role.ready["state"], "--", "echo", "never"]
    waits = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: len(asked(role, "actions")["running"]) == 1, "it is queued", WAIT_S)
        role.kill()
    finally:
        waits.kill()
        waits.wait()
    # As if it had ended there, and the entry had not been written.
    shutil.rmtree(house.directory / "controller" / "queue")
    role = house.up("--no-worker")
    until(lambda: asked(role, "actions")["running"] == [], "it is ended", WAIT_S)
    (ended,) = recent(role)
    assert (ended["state"], entry(role, ended["entry"])["kind"]) == ("cancelled", "action.cancelled")


def test_what_was_found_is_told_from_what_ran(house: House) -> None:
    role = house.up("--slots", "1")
    with connect(role.url) as net:
        spec = spec_of(["echo", "once"], variables={"PATH": "/usr/bin:/bin"})
        ids = [net.submit(spec).id]
        assert not net.result(ids[0]).cached
        ids.append(net.submit(spec).id)
        assert net.result(ids[1]).cached
    found, ran = recent(role)
    assert [one["id"] for one in (ran, found)] == ids
    assert [(one["cached"], one["state"], bool(one["worker"])) for one in (ran, found)] == [
        (False, "completed", True),
        (True, "completed", False),
    ]
    assert entry(role, found["entry"])["kind"] == "action.cached"
    assert found["action"] == ran["action"]


async def test_who_may_see_some_instances_sees_their_actions_over_a_restart(house: House) -> None:
    server = Guarded(house.up("--slots", "1", "--anonymous", "none"))
    everything = server.token("read", "cas-only", "execute")
    ids = {}
    for instance in ("team", "team/a", "other"):
        async with Client(
            server.role.url, instance=instance, credentials=Credentials(token=lambda: everything)
        ) as client:
            await client.run(["/bin/echo", instance])
    limited = server.token("read", instances=("team",))

    def seen(token: str) -> list[str]:
        status, _, body = server.caller(token).http("GET", "/api/v1/actions")
        assert status == 200
        ids.update({one["instance"]: one["id"] for one in json.loads(body)["recent"]})
        return [one["instance"] for one in json.loads(body)["recent"]]

    assert seen(everything) == ["other", "team/a", "team"]
    assert seen(limited) == ["team/a", "team"]
    server.role.stop()
    server = Guarded(house.up("--no-worker", "--anonymous", "none"))
    assert seen(limited) == ["team/a", "team"]
    for instance, status in (("team/a", 200), ("other", 404)):
        assert server.caller(limited).http("GET", f"/api/v1/actions/{ids[instance]}")[0] == status


def metrics(role: Role) -> dict[str, float]:
    rows = Http(role.ready["listen"])("GET", "/metrics").body.decode().splitlines()
    return {row.partition(" ")[0]: float(row.rpartition(" ")[2]) for row in rows if row.startswith("buildnet_ledger_")}


def test_the_metrics_are_the_ledgers_over_restarts(house: House) -> None:
    role = house.up("--slots", "1")
    assert run(role, "echo", "one") == 0
    call = Http(role.ready["listen"])
    assert call("PUT", "/ccache/x", b"value").status == 201

    def are_told() -> bool:
        told = metrics(role)
        names = ("actions_published", "actions_submitted", "nodes_joined", "results_updated")
        return [told.get(f"buildnet_ledger_{name}") for name in names] == [1, 1, 1, 1]

    until(are_told, "the door was told", WAIT_S)
    role.stop()
    role = house.up("--no-worker")
    until(are_told, "they go on where they were", WAIT_S)
