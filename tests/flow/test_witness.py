"""A ledger and its witnesses as processes: cosigned over HTTP, remembered over restarts, alarmed by a rollback."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from buildnet.app import witness as app_witness
from buildnet.cli.main import cli
from buildnet.edge.web.witness import routes
from buildnet.edge.web.witnesses import Witnesses
from buildnet.errors import InvalidRequest
from buildnet.ledger import note as notes
from buildnet.ledger import proof_file
from buildnet.ledger.checkpoint import Verifier
from buildnet.ledger.cosignature import WitnessKey
from buildnet.ledger.cosigned import COSIGNED, Cosigned
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.ledger.witness import REQUEST_BYTES_MAX
from buildnet.ledger.witness_state import Witness
from buildnet.model.entry import Entry
from buildnet.wire._gen.buildnet.v1 import ledger_pb2
from tests.conftest import COMMAND, House, Role
from tests.engines import until
from tests.ledgers import SIGNER, WITNESS
from tests.served import served

NOW = 1_700_000_000


def open_log(directory: Path) -> LedgerLog:
    return LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[LedgerLog]:
    ledger = open_log(tmp_path)
    await ledger.append([Entry("action.published", number) for number in range(5)])
    yield ledger
    await ledger.close()


def kept(ledger: LedgerLog, tmp_path: Path) -> Cosigned:
    return Cosigned.open(tmp_path / "ledger", ledger.verifier, ledger.size)


def witness_role(house: House, verifier_key: str, name: str = "witness") -> Role:
    arguments = ("witness", "--state", str(house.directory / name), "--listen", "127.0.0.1:0", "--origin", verifier_key)
    return house._start(*arguments)


async def test_a_witness_process_cosigns_what_grows(ledger: LedgerLog, house: House, tmp_path: Path) -> None:
    role = witness_role(house, ledger.verifier.text)
    key = WitnessKey.parse(role.ready["key"])
    cosigned = kept(ledger, tmp_path)
    async with httpx2.AsyncClient() as client:
        asked = Witnesses(ledger, cosigned, [(role.url, key)], client, 10)
        for size in (5, 6, 9):
            if size > ledger.size:
                await ledger.append([Entry("action.published", 0) for _ in range(size - ledger.size)])
            await asked.ask()
            assert cosigned.note is not None
            assert ledger.verifier.open(cosigned.note).size == cosigned.size == size
            assert key.of(*notes.split(cosigned.note))
        await asked.ask()
        assert asked.counts() == {"witness_cosignatures": 3, "witness_failures": 0, "ledger_cosigned_entries": 9}
        # One that starts anew learns the size from the witness, also when that was restarted.
        assert role.stop() == 0
        role = witness_role(house, ledger.verifier.text)
        assert role.ready["key"] == key.text
        await ledger.append([Entry("action.published", 0)])
        again = Witnesses(ledger, kept(ledger, tmp_path), [(role.url, key)], client, 10)
        await again.ask()
        assert again.standings()[0] == {
            "name": key.name,
            "url": role.url,
            "size": 10,
            "cosigned": 1,
            "failed": 0,
            "error": "",
        }
        shown = await client.get(f"{role.url}/{hashed(ledger.verifier.name)}/checkpoint")
        assert ledger.verifier.open(shown.text).size == 10
        assert key.of(*notes.split(shown.text))
        assert (await client.get(f"{role.url}/{hashed('other')}/checkpoint")).status_code == 404


def hashed(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()


async def test_a_rollback_is_an_alarm(ledger: LedgerLog, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(tmp_path / "ledger", tmp_path / "older" / "ledger")
    shutil.copyfile(tmp_path / "key", tmp_path / "older" / "key")
    witness = Witness.open(tmp_path, WITNESS, [ledger.verifier])
    with served(Starlette(routes=routes(witness, lambda: NOW))) as url:
        async with httpx2.AsyncClient() as client:
            asked = Witnesses(ledger, kept(ledger, tmp_path), [(url, WITNESS.key)], client, 10)
            await ledger.append([Entry("action.published", 0)])
            await asked.ask()
            older = open_log(tmp_path / "older")
            rolled = Witnesses(older, kept(older, tmp_path / "older"), [(url, WITNESS.key)], client, 10)
            await rolled.ask()
            await rolled.ask()
            await older.close()
    (standing,) = rolled.standings()
    assert (standing["failed"], standing["cosigned"]) == (2, 0)
    assert "rolled back" in standing["error"]
    # Counted twice, said once.
    assert len([record for record in caplog.records if "rolled back" in record.getMessage()]) == 1
    assert not (tmp_path / "older" / "ledger" / COSIGNED).exists()
    witness.close()


async def test_a_fork_is_not_cosigned(tmp_path: Path) -> None:
    witness = Witness.open(tmp_path, WITNESS, [load_or_create_key(tmp_path / "key").verifier])
    standings = []
    with served(Starlette(routes=routes(witness, lambda: NOW))) as url:
        async with httpx2.AsyncClient() as client:
            for name, count in (("one", 5), ("two", 7)):
                (tmp_path / name).mkdir()
                shutil.copyfile(tmp_path / "key", tmp_path / name / "key")
                ledger = open_log(tmp_path / name)
                await ledger.append([Entry(f"fork.{name}", number) for number in range(count)])
                asked = Witnesses(ledger, kept(ledger, tmp_path / name), [(url, WITNESS.key)], client, 10)
                await asked.ask()
                standings += asked.standings()
                await ledger.close()
    assert [standing["cosigned"] for standing in standings] == [1, 0]
    assert "422" in standings[1]["error"]
    witness.close()


async def answering(ledger: LedgerLog, tmp_path: Path, answer: Response) -> str:
    """What becomes of a witness that gives this answer."""

    async def endpoint(request: Request) -> Response:
        return answer

    with served(Starlette(routes=[Route("/add-checkpoint", endpoint, methods=["POST"])])) as url:
        async with httpx2.AsyncClient() as client:
            cosigned = kept(ledger, tmp_path)
            asked = Witnesses(ledger, cosigned, [(url, WITNESS.key)], client, 10)
            await asked.ask()
    assert cosigned.note is None
    (standing,) = asked.standings()
    assert standing["failed"] == 1
    return str(standing["error"])


async def test_whatever_a_witness_answers_does_no_harm(ledger: LedgerLog, tmp_path: Path) -> None:
    stranger = SIGNER.verifier
    foreign = notes.Signature(stranger.name, stranger.key_hash, bytes(64)).line
    forged = notes.Signature(WITNESS.key.name, WITNESS.key.key_id, (7).to_bytes(8, "big") + bytes(64)).line
    size = "text/x.tlog.size"
    for answer, expected in [
        (PlainTextResponse("no", 500), "answers 500"),
        (PlainTextResponse(""), "no end"),
        (PlainTextResponse(foreign), "no cosignature"),
        (PlainTextResponse(forged), "not valid"),
        (PlainTextResponse("x" * (1 << 20)), "over"),
        (Response("4\n", 409, media_type=size), "answers 409"),
        (Response("-1\n", 409, media_type=size), "without a size"),
        (Response("99\n", 409, media_type=size), "rolled back"),
        (Response("", 307, {"location": "http://127.0.0.1:1/"}), "answers 307"),
    ]:
        assert expected in await answering(ledger, tmp_path, answer)


async def test_one_witness_that_is_down_leaves_the_others(ledger: LedgerLog, tmp_path: Path) -> None:
    witness = Witness.open(tmp_path, WITNESS, [ledger.verifier])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with served(Starlette(routes=routes(witness, lambda: NOW))) as url:
        async with httpx2.AsyncClient() as client:
            cosigned = kept(ledger, tmp_path)
            other = WitnessKey("other", WITNESS.key.public)
            asked = Witnesses(ledger, cosigned, [(nobody, other), (url, WITNESS.key)], client, 10)
            await asked.ask()
            assert (cosigned.size, asked.counts()["witness_failures"]) == (5, 1)
            # Whoever failed is asked again, although nothing is new.
            await asked.ask()
            assert asked.counts() == {
                "witness_cosignatures": 2,
                "witness_failures": 2,
                "ledger_cosigned_entries": 5,
            }
    witness.close()


async def test_requests_have_limits(tmp_path: Path) -> None:
    witness = Witness.open(tmp_path, WITNESS, [SIGNER.verifier])
    with served(Starlette(routes=routes(witness, lambda: NOW, body_s=0.2))) as url:
        async with httpx2.AsyncClient() as client:
            large = await client.post(f"{url}/add-checkpoint", content=b"x" * (REQUEST_BYTES_MAX + 1))
            assert (large.status_code, large.headers["connection"]) == (413, "close")

            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(REQUEST_BYTES_MAX // 4096 + 2):
                    yield bytes(4096)

            assert (await client.post(f"{url}/add-checkpoint", content=chunks())).status_code == 413

            async def slow() -> AsyncIterator[bytes]:
                yield b"old 0\n"
                await asyncio.sleep(5)

            assert (await client.post(f"{url}/add-checkpoint", content=slow())).status_code == 408
            assert (await client.post(f"{url}/add-checkpoint", content=b"nonsense")).status_code == 400
            assert (await client.get(f"{url}/add-checkpoint")).status_code == 405
    witness.close()


async def test_a_connection_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_witness, "SILENCE_S", 0.3)
    ready: asyncio.Future[app_witness.WitnessReady] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    config = app_witness.WitnessRunConfig(tmp_path / "w", "127.0.0.1:0", (SIGNER.verifier,), "w.example")
    running = asyncio.ensure_future(app_witness.run_witness(config, ready.set_result, stop))
    host, port = (await ready).listen.split(":")
    for said in (b"", b"POST /add-checkpoint HTTP/1.1\r\nhost:"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    # One request, then half of another.
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /x/checkpoint HTTP/1.1\r\nhost: w\r\n\r\nGET /")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 404")
    writer.close()
    stop.set()
    await running


def test_a_controller_has_its_ledger_cosigned(house: House) -> None:
    controller = house.up("--no-worker")
    state = Path(controller.ready["state"])
    verifier = Verifier.parse((state / "ledger" / "key.pub").read_text().strip())
    assert controller.stop() == 0
    role = witness_role(house, verifier.text)
    controller = house.up("--no-worker", "--witness", f"{role.url}={role.ready['key']}", "--witness-interval", "1s")
    note = cosigned_soon(state / "ledger" / COSIGNED)
    head = verifier.open(note)
    assert WitnessKey.parse(role.ready["key"]).of(*notes.split(note))
    # Over gRPC too, and under a proof of its size.
    with grpc.insecure_channel(controller.ready["listen"]) as channel:

        def call(name: str, request: Any, reply: Any) -> Any:
            path = f"/buildnet.v1.LedgerService/{name}"
            asked = channel.unary_unary(
                path, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
            )
            return asked(request, timeout=30)

        got = call("GetCheckpoint", ledger_pb2.GetCheckpointRequest(cosigned=True), ledger_pb2.Checkpoint)
        assert WitnessKey.parse(role.ready["key"]).of(*notes.split(got.note))
        size = verifier.open(got.note).size
        asked = ledger_pb2.ProveInclusionRequest(index=0, tree_size=size)
        given = call("ProveInclusion", asked, ledger_pb2.ProveInclusionResponse)
        whole = proof_file.to_text(0, list(given.hashes), given.checkpoint.note, given.entry.body)
        assert proof_file.verify(whole, verifier.text, [role.ready["key"]]).size == size
    # The door is told of it each second.
    until(lambda: f"buildnet_ledger_cosigned_entries {size}\n" in page(controller, "/metrics"), "the metric", 60)
    # As a reader keeps it, elsewhere: the ledger is its continuation.
    known = house.directory / "known"
    known.write_text(note)
    ended = run("ledger", "verify", "--state", str(state), "--known", str(known))
    assert ended.returncode == 0, ended.stderr
    # And a proof under it, offline.
    ended = run("ledger", "prove", "0", "--state", str(state), "--json")
    proof = json.loads(ended.stdout)
    hashes = [bytes.fromhex(one) for one in proof["hashes"]]
    text = proof_file.to_text(0, hashes, proof["checkpoint"], proof["body"].encode())
    assert proof_file.verify(text, verifier.text).size >= head.size


def page(role: Role, path: str) -> str:
    return str(httpx2.get(f"http://{role.ready['listen']}{path}").text)


def cosigned_soon(path: Path) -> str:
    until(path.exists, "a cosigned checkpoint", 60)
    return path.read_text()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def test_wrong_usage_is_told(tmp_path: Path) -> None:
    witness = ("witness", "--state", str(tmp_path / "w"))
    up = ("up", "--state", str(tmp_path / "s"), "--listen", "127.0.0.1:0")
    for arguments, expected in [
        (witness, "--origin"),
        ((*witness, "--origin", "nonsense"), "not a verifier key"),
        ((*witness, "--origin", WITNESS.key.text), "a witness's"),
        ((*witness, "--origin", SIGNER.verifier.text, "--name", "a b"), "name"),
        ((*witness, "--origin", SIGNER.verifier.text, "--listen", "nonsense"), "HOST:PORT"),
        ((*up, "--witness", "nonsense"), "http://"),
        ((*up, "--witness", f"ftp://host/={WITNESS.key.text}"), "http://"),
        ((*up, "--witness", f"http://host={SIGNER.verifier.text}"), "a log's"),
        ((*up, *(f"--witness=http://host={WITNESS.key.text}",) * 2), "each once"),
        ((*up, "--witness-interval", "0s"), "every 1 s"),
    ]:
        with pytest.raises(InvalidRequest, match=re.escape(expected)):
            cli.main(list(arguments), standalone_mode=False)
