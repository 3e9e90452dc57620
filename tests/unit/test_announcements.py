"""What is announced is believed once, and only from whom and by whom it should be."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildnet._native import SigningKey
from buildnet.catalog import announcement
from buildnet.catalog.catalog import Catalog
from buildnet.catalog.pins import Pins
from buildnet.edge.announcements import FIRST_WITHIN_S, Announcements
from buildnet.errors import BadSignature, InvalidRequest, Overloaded, TooLarge
from buildnet.model.resource import KINDS, Announcement, Resource
from buildnet.testing.nodes import AnnouncingNode
from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire import announcements as wire
from buildnet.wire._gen.buildnet.v1 import resource_pb2

GCC = Resource("tool", "gcc", "12.2.0", (("path", "/usr/bin/gcc"),))
CLANG = Resource("tool", "clang", "14.0.6")

NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
ATTRIBUTES = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True),
    st.integers(-(1 << 62), 1 << 62) | NAMES,
    max_size=4,
)
RESOURCES = st.builds(
    lambda kind, name, version, facts: Resource(kind, name, version, tuple(sorted(facts.items()))),
    st.sampled_from(KINDS),
    NAMES,
    NAMES | st.just(""),
    ATTRIBUTES,
)
SAID = st.builds(
    lambda present, sequence, base: Announcement(
        "n", "b", "c", sequence, base, 1, 2, tuple(sorted(present, key=lambda r: r.key)), left_out=sequence % 7
    ),
    st.lists(RESOURCES, max_size=5, unique_by=lambda resource: resource.key),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
)


@given(SAID)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_said_is_what_is_read(said: Announcement) -> None:
    packing, body = wire.body_of(said)
    assert wire.announcement_of(packing, body) == said
    assert wire.body_of(said) == (packing, body)


@given(st.integers(0, 3), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(packing: int, body: bytes) -> None:
    with suppress(InvalidRequest, TooLarge):
        wire.announcement_of(packing, body)


@given(SAID, st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_an_altered_announcement_is_refused(said: Announcement, data: st.DataObject) -> None:
    node = AnnouncingNode()
    message = node.signed(said)
    field = data.draw(st.sampled_from(["body", "public_key", "signature"]))
    value = bytearray(getattr(message, field))
    if not value:
        return
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    setattr(message, field, bytes(value))
    with pytest.raises(BadSignature):
        announcement.verify(message.public_key, message.packing, message.body, message.signature)


@pytest.mark.parametrize("packing", [-1, 256, 1 << 30])
def test_a_packing_that_is_none_is_a_signature_that_does_not_hold(packing: int) -> None:
    with pytest.raises(BadSignature):
        announcement.verify(bytes(32), packing, b"", bytes(64))


def _resource(**fields: object) -> resource_pb2.AnnouncementBody:
    shown = resource_pb2.Resource(kind="tool", name="gcc")
    for name, value in fields.items():
        if name == "attributes":
            for attribute, text in value:  # type: ignore[attr-defined]
                shown.attributes.add(name=attribute, text=text)
        else:
            setattr(shown, name, value)
    return resource_pb2.AnnouncementBody(present=[shown])


@pytest.mark.parametrize(
    "body",
    [
        _resource(kind="car"),
        _resource(name=""),
        _resource(name="a\nb"),
        _resource(name="\x1b[2J"),
        _resource(name="\u202etxt"),
        _resource(name="x" * 256),
        _resource(version="1\r2"),
        _resource(attributes=[("b", "1"), ("a", "1")]),
        _resource(attributes=[("a", "1"), ("a", "1")]),
        _resource(attributes=[("a b", "1")]),
        _resource(attributes=[("a", "\x07")]),
        _resource(attributes=[(f"a{i:04}", "1") for i in range(513)]),
        resource_pb2.AnnouncementBody(present=[resource_pb2.Resource(kind="tool", name=n) for n in "ba"]),
        resource_pb2.AnnouncementBody(present=[resource_pb2.Resource(kind="tool", name=n) for n in "aa"]),
        resource_pb2.AnnouncementBody(gone=[resource_pb2.ResourceName(kind="tool", name=n) for n in "aa"]),
        resource_pb2.AnnouncementBody(gone=[resource_pb2.ResourceName(kind="tool", name="\x00")]),
        resource_pb2.AnnouncementBody(
            present=[resource_pb2.Resource(kind="tool", name="a")],
            gone=[resource_pb2.ResourceName(kind="tool", name="a")],
        ),
    ],
)
def test_what_no_resource_may_be_is_refused(body: resource_pb2.AnnouncementBody) -> None:
    with pytest.raises(InvalidRequest):
        wire.announcement_of(wire.PLAIN, body.SerializeToString())


def test_a_body_that_unpacks_into_too_much_is_refused_before_it_has() -> None:
    bomb = zlib.compress(bytes(wire.UNPACKED_BYTES_MAX + 1))
    assert len(bomb) < 64 << 10
    with pytest.raises(TooLarge):
        wire.announcement_of(wire.ZLIB, bomb)
    with pytest.raises(InvalidRequest, match="cut off"):
        wire.announcement_of(wire.ZLIB, zlib.compress(b"x" * 100)[:-1])
    with pytest.raises(InvalidRequest, match="follows"):
        wire.announcement_of(wire.ZLIB, zlib.compress(b"") + b"more")
    with pytest.raises(TooLarge):
        wire.announcement_of(wire.PLAIN, bytes(wire.BODY_BYTES_MAX + 1))


class Controller:
    """The controller's end, with a clock of the test's own."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = ManualClock()
        self.entries: list[tuple[str, dict[str, str | int]]] = []
        self.catalog = Catalog()
        self.announcements = Announcements(
            self.catalog,
            Pins(tmp_path / "nodes"),
            self.clock,
            controller_id="c" * 32,
            record=lambda kind, facts: self.entries.append((kind, facts)),
        )
        self.changes = 0
        self.announcements.follow(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def join(self, node: AnnouncingNode) -> None:
        self.announcements.joined(node.node, node.boot)

    def hear(self, node: AnnouncingNode, said: Announcement) -> str:
        """The error's code, or nothing when it was believed."""
        answer = self.announcements.take(node.node, node.signed(said)).announced
        return answer.error_code

    def now(self) -> int:
        return self.clock.now_unix_ms()


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


@pytest.fixture
def node(controller: Controller) -> AnnouncingNode:
    node = AnnouncingNode()
    controller.join(node)
    return node


def test_a_snapshot_then_changes_are_believed_and_ledgered(controller: Controller, node: AnnouncingNode) -> None:
    assert controller.hear(node, node.say(controller.now(), [GCC])) == ""
    assert controller.hear(node, node.say(controller.now(), [CLANG], [GCC.key], base=1)) == ""
    assert controller.hear(node, node.say(controller.now(), base=2)) == ""
    assert controller.catalog.resources(node.node) == [CLANG]
    facts = {"node": node.node, "boot": node.boot}
    assert controller.entries == [
        ("resource.announced", {**facts, "sequence": 1, "count": 1}),
        ("resource.announced", {**facts, "sequence": 2, "count": 1}),
        ("resource.withdrawn", {**facts, "sequence": 2, "count": 1}),
    ]
    assert controller.changes == 2
    controller.announcements.lost(node.node)
    assert controller.catalog.nodes() == []
    assert controller.entries[-1][0] == "resource.withdrawn"


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        ("bad_signature", lambda said, now: replace(said, node="m" * 32)),
        ("bad_signature", lambda said, now: replace(said, boot="x" * 32)),
        ("bad_signature", lambda said, now: replace(said, controller="x" * 32)),
        ("replayed", lambda said, now: replace(said, sequence=1)),
        ("replayed", lambda said, now: replace(said, sequence=0)),
        ("invalid_request", lambda said, now: replace(said, base=5)),
        ("invalid_request", lambda said, now: replace(said, expires_at_unix_ms=now + announcement.VALID_MS_MAX + 1)),
        ("invalid_request", lambda said, now: replace(said, expires_at_unix_ms=now)),
        ("expired", lambda said, now: replace(said, made_at_unix_ms=now - 60_001, expires_at_unix_ms=now - 30_000)),
        ("expired", lambda said, now: replace(said, made_at_unix_ms=now + 31_000, expires_at_unix_ms=now + 60_000)),
        ("too_large", lambda said, now: replace(said, present=_many())),
    ],
)
def test_what_is_not_to_be_believed_changes_nothing(
    controller: Controller, node: AnnouncingNode, code: str, alter: Callable[[Announcement, int], Announcement]
) -> None:
    assert controller.hear(node, node.say(controller.now(), [GCC])) == ""
    assert controller.hear(node, alter(node.say(controller.now(), [CLANG]), controller.now())) == code
    assert controller.catalog.resources(node.node) == [GCC]
    assert controller.entries[-1][0] == "resource.refused"
    assert controller.entries[-1][1]["error"] == code


def _many() -> tuple[Resource, ...]:
    return tuple(Resource("tool", f"t{number:05}") for number in range(announcement.RESOURCES_MAX + 1))


def test_a_recorded_announcement_is_refused_whatever_session_repeats_it(
    controller: Controller, node: AnnouncingNode
) -> None:
    first = node.say(controller.now(), [GCC])
    assert controller.hear(node, first) == ""
    controller.announcements.lost(node.node)
    controller.join(node)
    assert controller.hear(node, first) == "replayed"
    controller.clock.now_s += 1
    again = node.reborn("d" * 32)
    controller.join(again)
    assert controller.hear(again, again.say(controller.now(), [CLANG])) == ""
    # A thief who joins as the earlier boot, with what it had recorded of it and never sent.
    controller.join(node)
    assert controller.hear(node, replace(first, sequence=2)) == "replayed"
    assert controller.catalog.nodes() == []


def test_a_change_is_of_the_state_that_this_session_left(controller: Controller, node: AnnouncingNode) -> None:
    assert controller.hear(node, node.say(controller.now(), [GCC])) == ""
    controller.announcements.lost(node.node)
    controller.join(node)
    assert controller.hear(node, node.say(controller.now(), [CLANG], base=1)) == "invalid_request"
    assert controller.hear(node, node.say(controller.now(), [CLANG])) == ""


def test_the_first_key_of_a_node_is_its_key_also_after_a_restart(tmp_path: Path) -> None:
    first = Controller(tmp_path)
    node = AnnouncingNode()
    first.join(node)
    assert first.hear(node, node.say(first.now(), [GCC])) == ""
    second = Controller(tmp_path)
    second.join(node)
    thief = replace(node, key=SigningKey(secrets.token_bytes(32)))
    assert second.hear(thief, thief.say(second.now(), [CLANG])) == "bad_signature"
    assert second.catalog.nodes() == []
    assert second.hear(node, node.say(second.now(), [GCC])) == ""
    # The operator deletes the line: the node may come with a new key.
    (tmp_path / "nodes").write_text("")
    assert second.hear(thief, replace(thief.say(second.now(), [CLANG]), sequence=9)) == ""


def test_a_session_with_too_many_refusals_ends(controller: Controller, node: AnnouncingNode) -> None:
    said = replace(node.say(controller.now()), controller="x")
    for _ in range(3):
        assert controller.hear(node, said) == "bad_signature"
    with pytest.raises(BadSignature):
        controller.hear(node, said)


async def test_what_is_not_renewed_is_withdrawn(controller: Controller, node: AnnouncingNode) -> None:
    assert controller.hear(node, node.say(controller.now(), [GCC])) == ""
    assert controller.announcements._sweep() == pytest.approx((announcement.VALID_MS + announcement.SKEW_MS) / 1000)
    controller.clock.now_s += (announcement.VALID_MS + announcement.SKEW_MS) / 1000
    assert controller.announcements._sweep() is None
    assert controller.catalog.nodes() == []
    assert controller.entries[-1][1]["message"] == "the announcement expired"
    assert controller.announcements.meets(node.node, ("gcc",)) is False
    # Its next one is of a state that is gone.
    assert controller.hear(node, node.say(controller.now(), base=1)) == "invalid_request"


def test_nobody_can_tell_what_a_silent_worker_offers_until_it_is_given_up(
    controller: Controller, node: AnnouncingNode
) -> None:
    announcements = controller.announcements
    assert announcements.meets(node.node, ("gcc",)) is None
    assert announcements.meets("absent", ("gcc",)) is None
    changes = controller.changes
    assert announcements._sweep() == pytest.approx(FIRST_WITHIN_S)
    controller.clock.now_s += FIRST_WITHIN_S
    assert announcements._sweep() is None
    assert controller.changes == changes + 1
    assert announcements.meets(node.node, ("gcc",)) is False
    assert announcements.verdicts(("gcc",)) == {node.node: ("it has not announced yet",)}
    assert controller.hear(node, node.say(controller.now(), [GCC])) == ""
    assert announcements.meets(node.node, ("gcc>=12",)) is True
    assert announcements.meets(node.node, ("gcc>=13",)) is False
    assert announcements.why_not(("gcc>=13",)) == f"{node.node[:12]}: gcc>=13: tool gcc is of version 12.2.0, not >=13"


@pytest.mark.parametrize("name", ["", "a b", "a\nb 00", "a\u2028b", "x" * 256])
def test_a_node_whose_id_could_write_a_line_of_another_is_not_pinned(tmp_path: Path, name: str) -> None:
    pins = Pins(tmp_path / "nodes")
    with pytest.raises(InvalidRequest):
        pins.pin(name, bytes(32))
    assert not (tmp_path / "nodes").exists()


def test_a_torn_line_of_the_pins_is_as_if_it_had_not_been_written(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    Pins(path).pin("a", bytes(32))
    path.write_bytes(path.read_bytes() + b"b 0000")
    pins = Pins(path)
    pins.pin("b", b"\1" * 32)
    pins.pin("a", bytes(32))
    assert path.read_text().splitlines() == [f"a {'00' * 32}", "b 0000", f"b {'01' * 32}"]
    assert path.stat().st_mode & 0o777 == 0o600
    Pins(path).pin("b", b"\1" * 32)
    with pytest.raises(BadSignature, match="delete its line"):
        Pins(path).pin("b", b"\2" * 32)


def test_there_are_not_more_pins_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.catalog.pins.PINS_MAX", 1)
    pins = Pins(tmp_path / "nodes")
    pins.pin("a", bytes(32))
    with pytest.raises(Overloaded):
        pins.pin("b", bytes(32))
    pins.pin("a", bytes(32))
