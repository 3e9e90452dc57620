"""The ledger as a foreign monitor reads it over HTTP: paths, headers, conditions, refusals."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette

from buildnet.edge.web.ledger import routes
from buildnet.errors import LedgerCorrupt
from buildnet.ledger import audit, tiles
from buildnet.ledger import note as notes
from buildnet.ledger.cosigned import COSIGNED, Cosigned
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.ledger.tiles import Tile
from buildnet.model.entry import Entry
from tests.ledgers import WITNESS

SIZE = 600


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[LedgerLog]:
    ledger = LedgerLog.open(tmp_path / "ledger", load_or_create_key(tmp_path / "key"), "process")
    await ledger.append([Entry("action.published", number, {"n": number}) for number in range(SIZE)])
    await ledger.checkpoint()
    yield ledger
    await ledger.close()


@pytest.fixture
async def cosigned(ledger: LedgerLog, tmp_path: Path) -> Cosigned:
    return Cosigned.open(tmp_path / "ledger", ledger.verifier, ledger.size)


@pytest.fixture
async def client(ledger: LedgerLog, cosigned: Cosigned) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(Starlette(routes=routes(ledger, cosigned)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://ledger") as client:
        yield client


async def fetched(client: httpx2.AsyncClient, size: int) -> Callable[[Tile], bytes]:
    found = {}
    for tile in tiles.tiles_of(size):
        answer = await client.get(f"/ledger/tile/{tile.path}")
        assert answer.status_code == 200, tile
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["cache-control"] == "max-age=31536000, immutable"
        found[tile] = answer.content
    return found.__getitem__


async def test_the_whole_ledger_is_read_and_verified(client: httpx2.AsyncClient, ledger: LedgerLog) -> None:
    answer = await client.get("/ledger/checkpoint")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.headers["cache-control"] == "no-cache"
    head = ledger.verifier.open(answer.text)
    assert head.size == SIZE
    tiles.verify(head, await fetched(client, SIZE))
    # An older tree's tiles are still there when it has grown.
    await ledger.append([Entry("action.published", 0)])
    newer = ledger.verifier.open((await client.get("/ledger/checkpoint")).text)
    assert newer.size == SIZE + 1
    tiles.verify(head, await fetched(client, SIZE))
    tiles.verify(newer, await fetched(client, SIZE + 1))


async def test_the_key_is_told(client: httpx2.AsyncClient, ledger: LedgerLog) -> None:
    assert (await client.get("/ledger/key")).text == ledger.verifier.text + "\n"


@pytest.mark.parametrize("path", ["tile/0/002", "tile/0/002.p/89", "tile/1/000", "tile/2/000.p/1", "tile/entries/003"])
async def test_what_is_not_complete_yet_is_absent(client: httpx2.AsyncClient, path: str) -> None:
    await client.get("/ledger/checkpoint")
    answer = await client.get(f"/ledger/{path}")
    assert answer.status_code == 404
    assert answer.text == f"the tree of {SIZE} entries has no tile {path.removeprefix('tile/')}\n"
    assert (answer.headers["buildnet-code"], answer.headers["cache-control"]) == ("not_found", "no-store")


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0",
        "tile/x/000",
        "tile/63/x999/x999/x999/x999/x999/x999/999",
        "tile/entries/x036/x028/x797/x018/x963/968",
    ],
)
async def test_what_is_no_tile_is_refused_with_the_reason(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(f"/ledger/{path}")
    assert (answer.status_code, answer.headers["buildnet-code"]) == (404, "invalid_request")
    assert "c2sp.org/tlog-tiles" in answer.text
    # The largest numbers that are tiles, and are not here.
    for far in ("tile/63/x036/x028/x797/x018/x963/967", "tile/entries/x036/x028/x797/x018/x963/967"):
        assert (await client.get(f"/ledger/{far}")).status_code == 404


async def test_heads_conditions_and_methods(client: httpx2.AsyncClient) -> None:
    for path in ("checkpoint", "tile/0/000", "tile/entries/000", "key"):
        got = await client.get(f"/ledger/{path}", headers={"accept-encoding": "identity"})
        head = await client.head(f"/ledger/{path}", headers={"accept-encoding": "identity"})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(got.content))
        assert head.headers["etag"] == got.headers["etag"]
        known = {"accept-encoding": "identity", "if-none-match": f'"other", {got.headers["etag"]}'}
        again = await client.get(f"/ledger/{path}", headers=known)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", got.headers["etag"])
        assert (await client.post(f"/ledger/{path}")).status_code == 405
    missing = await client.head("/ledger/tile/0/777")
    assert (missing.status_code, missing.content) == (404, b"")


async def test_bundles_are_compressed_for_those_who_take_it(client: httpx2.AsyncClient) -> None:
    plain = await client.get("/ledger/tile/entries/000", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "accept-encoding"
    for accepted in ("gzip", "br, gzip;q=0.5", "*"):
        async with client.stream("GET", "/ledger/tile/entries/000", headers={"accept-encoding": accepted}) as packed:
            raw = b"".join([part async for part in packed.aiter_raw()])
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(raw) == plain.content
        assert len(raw) < len(plain.content) // 2
        assert packed.headers["etag"] != plain.headers["etag"]
    for refusing in ("gzip;q=0", "br, gzip; q=0.000"):
        refused = await client.get("/ledger/tile/entries/000", headers={"accept-encoding": refusing})
        assert "content-encoding" not in refused.headers


async def test_witnesses_are_told(client: httpx2.AsyncClient) -> None:
    told = await client.get("/ledger/witnesses")
    assert (told.status_code, told.json()) == (200, {"cosigned_size": 0, "witnesses": []})
    assert told.headers["cache-control"] == "no-store"


async def test_the_cosigned_checkpoint_is_given_to_those_who_ask(
    client: httpx2.AsyncClient, ledger: LedgerLog, cosigned: Cosigned, tmp_path: Path
) -> None:
    absent = await client.get("/ledger/checkpoint?cosigned=1")
    assert (absent.status_code, absent.text) == (404, "no witness has cosigned a checkpoint yet\n")
    note = await ledger.checkpoint()
    text, _ = notes.split(note)
    cosigned.keep(note, SIZE, [WITNESS.cosign(text, 1_700_000_000)])
    whole = (await client.get("/ledger/checkpoint?cosigned=1")).text
    assert whole == (await client.get("/ledger/checkpoint")).text == (tmp_path / "ledger" / COSIGNED).read_text()
    assert ledger.verifier.open(whole).size == SIZE
    assert WITNESS.key.of(*notes.split(whole))
    await ledger.append([Entry("action.published", 0)])
    assert ledger.verifier.open((await client.get("/ledger/checkpoint")).text).size == SIZE + 1
    assert (await client.get("/ledger/checkpoint?cosigned=1")).text == whole
    # As somebody kept it elsewhere: the ledger is its continuation.
    assert (await asyncio.to_thread(audit.verify, tmp_path, whole)).size == SIZE + 1
    # It never goes back, and outlives a restart.
    cosigned.keep(note, SIZE - 1, [WITNESS.cosign(text, 1_700_000_000)])
    assert cosigned.size == SIZE
    assert Cosigned.open(tmp_path / "ledger", ledger.verifier, ledger.size).note == whole
    with pytest.raises(LedgerCorrupt, match="lost its tail"):
        Cosigned.open(tmp_path / "ledger", ledger.verifier, SIZE - 1)
    (tmp_path / "ledger" / COSIGNED).write_text(whole.replace("\n600\n", "\n601\n"))
    with pytest.raises(LedgerCorrupt, match="remove it"):
        Cosigned.open(tmp_path / "ledger", ledger.verifier, ledger.size)


async def test_many_readers_at_once_all_get_what_they_asked_for(client: httpx2.AsyncClient, ledger: LedgerLog) -> None:
    head = ledger.verifier.open((await client.get("/ledger/checkpoint")).text)
    wanted = list(tiles.tiles_of(head.size)) * 10
    answers = await asyncio.gather(*(client.get(f"/ledger/tile/{tile.path}") for tile in wanted))
    assert all(answer.status_code == 200 for answer in answers)
