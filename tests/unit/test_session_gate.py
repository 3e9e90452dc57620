"""The gate of sessions: the ledger first, each refusal told once, an id bound to one key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from buildnet.access.members import Members, TokenRefused
from buildnet.catalog.pins import Pins
from buildnet.edge.bridge import Greeted
from buildnet.edge.sessions import Facts, Sessions
from buildnet.errors import BadSignature, BuildNetError, Forbidden, StorageFull
from buildnet.model.caller import Caller
from buildnet.testing.scheduler_fakes import ManualClock

ONE, TWO = "1" * 64, "2" * 64
SECRET = bytes(20)


class Bench:
    """A gate whose ledger does as a test says."""

    def __init__(self, directory: Path) -> None:
        self.members = Members(directory / "members.sqlite")
        self.pins = Pins(directory / "pins")
        self.told: list[tuple[str, Facts]] = []
        self.ended: list[tuple[str, str]] = []
        self.removed: dict[str, BuildNetError] = {}
        self.ledger_fails = False
        clock = ManualClock()
        self.gate = Sessions(
            self.members,
            self.pins,
            clock,
            record=lambda kind, facts: self.told.append((kind, facts)),
            append=self._append,
            removed=self.removed.get,
        )
        self.gate.over(self)
        self.now_unix_ms = clock.now_unix_ms()

    async def _append(self, kind: str, facts: Facts) -> None:
        if self.ledger_fails:
            raise StorageFull("no room")
        self.told.append((kind, facts))

    def end_sessions(self, key: str, error: BuildNetError) -> int:
        self.ended.append((key, error.message))
        return 1

    def kinds(self) -> list[str]:
        kinds = [kind for kind, _ in self.told]
        self.told.clear()
        return kinds

    def token(self, secret: bytes = SECRET) -> None:
        self.members.make(secret, now_unix_ms=self.now_unix_ms, lifetime_s=60)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.members.close()


def greeted(key: str = ONE, token: bytes | None = None, session: int = 1) -> Greeted:
    return Greeted(session, key, token, "XX", "127.0.0.1:1")


async def test_the_ledger_says_how_a_node_joined_before_it_is_let_in(bench: Bench) -> None:
    bench.token()
    bench.ledger_fails = True
    with pytest.raises(StorageFull):
        await bench.gate.admit(greeted(token=SECRET))
    assert bench.kinds() == []
    # It is known now, and what was not written is written when it dials again, without the token.
    bench.ledger_fails = False
    await bench.gate.admit(greeted())
    assert bench.kinds() == ["join_token.used", "session.opened"]
    await bench.gate.admit(greeted())
    bench.gate.rekeyed(1, ONE, 2)
    assert bench.told[-1] == ("session.rekeyed", {"session": 1, "key": ONE, "rekeys": 2})
    bench.gate.ended(1, ONE, "", 3)
    assert bench.told[-1] == ("session.closed", {"session": 1, "key": ONE, "reason": "", "rekeys": 3})
    assert bench.kinds() == ["session.opened", "session.rekeyed", "session.closed"]


async def test_a_token_that_is_of_no_use_is_told_once_and_counted(bench: Bench) -> None:
    bench.token()
    await bench.gate.admit(greeted(token=SECRET))
    bench.kinds()
    for key in (TWO, "3" * 64, "4" * 64):
        with pytest.raises(TokenRefused):
            await bench.gate.admit(greeted(key, SECRET))
    with pytest.raises(TokenRefused):
        await bench.gate.admit(greeted(TWO))
    assert bench.kinds() == ["join_token.refused"]
    assert bench.gate.tokens_refused == 4


async def test_a_removed_node_is_told_so_and_put_out(bench: Bench) -> None:
    bench.token()
    await bench.gate.admit(greeted(token=SECRET))
    await bench.gate.check_hello("a", Caller(node=ONE))
    bench.removed["a"] = Forbidden("a was removed")
    bench.gate.put_out("a", bench.removed["a"])
    assert bench.ended == [(ONE, "a was removed")]
    bench.kinds()
    for _ in range(3):
        with pytest.raises(Forbidden):
            await bench.gate.admit(greeted())
    assert bench.kinds() == ["session.refused"]
    # By its key, where it never said an id.
    bench.removed[TWO] = Forbidden("removed")
    with pytest.raises(Forbidden):
        await bench.gate.admit(greeted(TWO, SECRET))
    bench.gate.put_out("never-seen", Forbidden("removed"))
    assert len(bench.ended) == 1


async def test_an_id_belongs_to_the_first_key_that_says_it(bench: Bench) -> None:
    for key, secret in ((ONE, SECRET), (TWO, b"1" * 20)):
        bench.token(secret)
        await bench.gate.admit(greeted(key, secret))
    bench.kinds()
    for _ in range(2):
        await bench.gate.check_hello("a", Caller(node=ONE))
    assert bench.kinds() == ["node.key_bound"]
    assert bench.gate.key_of("a") == ONE
    for node, caller in (("a", Caller(node=TWO)), ("a", Caller("rack")), ("b", Caller(node=ONE))):
        with pytest.raises(Forbidden):
            await bench.gate.check_hello(node, caller)
    # One that was refused has taken nothing.
    await bench.gate.check_hello("b", Caller(node=TWO))
    # A node that announced under a key keeps it.
    bench.pins.pin("c", bytes.fromhex("3" * 64))
    bench.token(b"2" * 20)
    await bench.gate.admit(greeted("4" * 64, b"2" * 20))
    with pytest.raises(BadSignature):
        await bench.gate.check_hello("c", Caller(node="4" * 64))
    await bench.gate.check_hello("d", Caller("rack"))
