"""Changes are told in pieces of bounded size, and the pieces are the change."""

from __future__ import annotations

from buildnet.catalog.catalog import NodeChange
from buildnet.edge.resources import _EVENT_BYTES_MAX, _events
from buildnet.model.resource import Resource
from buildnet.wire.announcements import resource_of


def test_a_change_comes_whole_in_pieces() -> None:
    large = tuple((f"a{number:03}", "x" * 1000) for number in range(100))
    present = tuple(Resource("tool", f"t{number}", attributes=large) for number in range(5))
    gone = tuple(("tool", f"g{number:0200}") for number in range(2000))
    events = list(_events([NodeChange("n", True, present, gone), NodeChange("m", False, (), ())]))
    of_n = [event for event in events if event.node_id == "n"]
    assert [event.replaced for event in of_n] == [True] + [False] * (len(of_n) - 1)
    assert tuple(resource_of(message) for event in of_n for message in event.present) == present
    assert tuple((name.kind, name.name) for event in of_n for name in event.gone) == gone
    assert all(event.ByteSize() < 1.1 * _EVENT_BYTES_MAX for event in events)
    assert [event.node_id for event in events[len(of_n) :]] == ["m"]
