"""The catalog beside a naive model: any history, any reader, any constraint."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildnet.catalog.catalog import Catalog, NodeChange
from buildnet.catalog.constraint import parse
from buildnet.model.resource import Key, Resource, attributes_of

NODES = ("a", "b", "c")
KEYS = [("tool", "gcc"), ("tool", "clang"), ("toolchain", "c"), ("gpu", "0")]
RESOURCES = st.builds(
    lambda key, version, memory: Resource(*key, version, attributes_of(memory_bytes=memory)),
    st.sampled_from(KEYS),
    st.sampled_from(["", "11.1", "12.2"]),
    st.sampled_from([None, 1 << 30, 8 << 30]),
)
PRESENT = st.lists(RESOURCES, max_size=4, unique_by=lambda resource: resource.key)
GONE = st.lists(st.sampled_from(KEYS), max_size=2, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("replace"), st.sampled_from(NODES), PRESENT),
        st.tuples(st.just("update"), st.sampled_from(NODES), PRESENT, GONE),
        st.tuples(st.just("withdraw"), st.sampled_from(NODES)),
        st.tuples(st.just("read")),
    ),
    max_size=12,
)
CONSTRAINTS = ["gcc>=12", "gcc", "tool:clang", "gpu.memory_bytes>=8GiB", "gpu", "gcc,clang", "c=11"]

Model = dict[str, dict[Key, Resource]]


class Reader:
    """A watcher that applies what it is told, and begins anew when the journal has forgotten where it stood."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.known: Model = {}
        self.at = 0

    def read(self) -> None:
        catalog = self.catalog
        if not catalog.reaches_back_to(self.at):
            self.known = {}
            changes = list(catalog.snapshot())
        else:
            changes = list(catalog.changes(self.at))
        self.at = catalog.revision
        for change in changes:
            self.apply(change)

    def apply(self, change: NodeChange) -> None:
        node = {} if change.whole else self.known.get(change.node, {})
        for key in change.gone:
            node.pop(key, None)
        self.known[change.node] = node | {resource.key: resource for resource in change.present}


def step(catalog: Catalog, model: Model, call: tuple[object, ...]) -> None:
    match call:
        case ("replace", str(node), list(present)):
            catalog.replace(node, present)
            model[node] = {resource.key: resource for resource in present}
        case ("update", str(node), list(present), list(gone)):
            gone = [key for key in gone if key not in {resource.key for resource in present}]
            catalog.update(node, present, gone)
            kept = {key: resource for key, resource in model.get(node, {}).items() if key not in gone}
            model[node] = kept | {resource.key: resource for resource in present}
        case ("withdraw", str(node)):
            assert catalog.withdraw(node) == len(model.pop(node, {}))


@given(STEPS, st.sampled_from([1, 3, 1000]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_readers_and_constraints_see_what_a_naive_model_sees(
    steps: list[tuple[object, ...]], journal_keys_max: int
) -> None:
    catalog, model = Catalog(journal_keys_max=journal_keys_max), Model()
    slow, quick = Reader(catalog), Reader(catalog)
    for call in steps:
        if call[0] == "read":
            slow.read()
        else:
            step(catalog, model, call)
        quick.read()
        told = {node: known for node, known in quick.known.items() if known}
        assert told == {node: known for node, known in model.items() if known}
    slow.read()
    assert {n: k for n, k in slow.known.items() if k} == {n: k for n, k in model.items() if k}
    assert catalog.nodes() == sorted(model)
    for text in CONSTRAINTS:
        terms = parse([text])
        meeting = [
            node
            for node in sorted(model)
            if all(any(term.holds(resource) for resource in model[node].values()) for term in terms)
        ]
        assert catalog.meeting((text,)) == meeting
        assert [node for node in sorted(model) if catalog.meets(node, (text,))] == meeting
        assert [node for node in sorted(model) if not catalog.explain(node, terms)] == meeting


def test_equal_resources_of_many_nodes_are_one() -> None:
    catalog = Catalog()
    for number in range(100):
        catalog.replace(f"n{number}", [Resource("tool", "gcc", "12.2"), Resource("tool", "make", "4.3")])
    held = {id(resource) for number in range(100) for resource in catalog.resources(f"n{number}")}
    assert len(held) == 2


def test_what_did_not_change_is_no_revision() -> None:
    catalog = Catalog()
    catalog.replace("a", [Resource("tool", "gcc", "12.2")])
    before = catalog.revision
    assert catalog.replace("a", [Resource("tool", "gcc", "12.2")]).announced == 0
    assert catalog.update("a", [Resource("tool", "gcc", "12.2")], [("tool", "clang")]).withdrawn == 0
    assert catalog.revision == before


def test_a_slow_reader_is_told_the_newest_state_once() -> None:
    catalog = Catalog()
    catalog.replace("a", [Resource("tool", "gcc", "1")])
    at = catalog.revision
    for version in range(2, 50):
        catalog.update("a", [Resource("tool", "gcc", str(version))], [])
    assert list(catalog.changes(at)) == [NodeChange("a", False, (Resource("tool", "gcc", "49"),))]


def test_the_journal_is_bounded_and_says_so() -> None:
    catalog = Catalog(journal_keys_max=10)
    catalog.replace("a", [])
    at = catalog.revision
    for version in range(20):
        catalog.update("a", [Resource("tool", "gcc", str(version))], [])
    assert not catalog.reaches_back_to(at)
    assert catalog.reaches_back_to(catalog.revision - 2)
    assert not catalog.reaches_back_to(catalog.revision + 1)


def test_no_constraint_is_met_by_every_node_and_none_by_nobody() -> None:
    catalog = Catalog()
    assert catalog.meeting(()) == []
    for node in NODES:
        catalog.replace(node, [])
    catalog.withdraw("b")
    assert catalog.meeting(()) == ["a", "c"]
    assert not catalog.meets("b", ())
