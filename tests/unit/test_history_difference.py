"""Two actions differ if and only if a difference is named, and every part that differs is named for what it is."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.history.difference import CHANGES_MAX, difference, part_changes, similarity
from buildnet.history.secrets import TEXT_CHARACTERS_MAX
from buildnet.history.trees import NOT_KEPT, TOO_MANY, tree_changes
from buildnet.model.digest import EMPTY, Digest
from buildnet.model.history import Change, Difference, Parts, TreeDirectory, TreeNode
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from buildnet.wire.history import ActionMessages, parts_of

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
NAMES = st.text("abcXYZ_", min_size=1, max_size=4)


def digest(number: int) -> Digest:
    return Digest(f"{number:064x}", number)


PARTS = st.builds(
    Parts,
    arguments=st.lists(WORDS, max_size=5).map(tuple),
    variables=st.dictionaries(NAMES, WORDS, max_size=3).map(lambda d: tuple(sorted(d.items()))),
    properties=st.sets(st.tuples(NAMES | st.sampled_from(["effect:network", "require"]), WORDS), max_size=3).map(
        lambda pairs: tuple(sorted(pairs))
    ),
    outputs=st.sets(NAMES, max_size=3).map(lambda paths: tuple(sorted(paths))),
    working_directory=NAMES,
    timeout_ns=st.none() | st.integers(0, 2**40),
    do_not_cache=st.booleans(),
    salt=st.binary(max_size=3),
    output_format=st.sampled_from(["", "DIRECTORY_ONLY", "TREE_AND_DIRECTORY"]),
    output_properties=st.sets(NAMES, max_size=2).map(lambda names: tuple(sorted(names))),
    root=st.integers(1, 3).map(digest),
)


def messages_of(parts: Parts) -> tuple[bytes, bytes]:
    """The Action and the Command with these parts, as a client encodes them."""
    command = re.Command(
        arguments=parts.arguments,
        output_paths=parts.outputs,
        working_directory=parts.working_directory,
        output_node_properties=parts.output_properties,
        output_directory_format=parts.output_format or None,  # type: ignore[arg-type]
    )
    for name, value in parts.variables:
        command.environment_variables.add(name=name, value=value)
    command_bytes = command.SerializeToString(deterministic=True)
    assert parts.root is not None
    action = re.Action(
        command_digest=digest_message(Digest.of(command_bytes)),
        input_root_digest=digest_message(parts.root),
        do_not_cache=parts.do_not_cache,
        salt=parts.salt,
    )
    for name, value in parts.properties:
        action.platform.properties.add(name=name, value=value)
    if parts.timeout_ns is not None:
        action.timeout.SetInParent()
        action.timeout.FromNanoseconds(parts.timeout_ns)
    return action.SerializeToString(deterministic=True), command_bytes


def nothing(_: Digest) -> TreeDirectory | None:
    return None


@given(PARTS, PARTS | st.none())
def test_a_difference_is_empty_if_and_only_if_the_digests_are_equal(one: Parts, other: Parts | None) -> None:
    other = other or one
    mine, theirs = messages_of(one), messages_of(other)
    assert ActionMessages(lambda _: b"").parts(*mine) == one, "what is read apart is all that there is"
    same = Digest.of(mine[0]) == Digest.of(theirs[0])
    found = difference(one, other, nothing, same_action=same)
    assert (found == Difference()) == same
    assert (list(part_changes(one, other)) == [] and one.root == other.root) == same


ONE = Parts(
    arguments=("cc", "-c", "a.c"),
    variables=(("LANG", "C"),),
    properties=(("OSFamily", "linux"), ("effect:network", "none"), ("require", "gcc>=12")),
    outputs=("a.o",),
    working_directory="src",
    timeout_ns=10**9,
    root=digest(1),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arguments": ("cc", "-O2", "-c", "a.c")}, Change("argument", "1", None, "-O2")),
        ({"arguments": ("cc", "-c", "b.c")}, Change("argument", "2", "a.c", "b.c")),
        ({"arguments": ("cc", "a.c")}, Change("argument", "1", "-c", None)),
        ({"variables": (("LANG", "D"),)}, Change("variable", "LANG", "C", "D")),
        ({"variables": ()}, Change("variable", "LANG", "C", None)),
        ({"variables": (("CC", "gcc"), ("LANG", "C"))}, Change("variable", "CC", None, "gcc")),
        (
            {"properties": (("OSFamily", "bsd"), ("effect:network", "none"), ("require", "gcc>=12"))},
            Change("property", "OSFamily", "linux", "bsd"),
        ),
        (
            {"properties": (("OSFamily", "linux"), ("effect:network", "ambient"), ("require", "gcc>=12"))},
            Change("effect", "effect:network", "none", "ambient"),
        ),
        (
            {"properties": (("OSFamily", "linux"), ("effect:network", "none"), ("require", "gcc>=13"))},
            Change("constraint", "require", "gcc>=12", "gcc>=13"),
        ),
        ({"outputs": ("a.d", "a.o")}, Change("output", "a.d", None, "any kind")),
        ({"working_directory": ""}, Change("working_directory", "", "src", ".")),
        ({"timeout_ns": 1_500_000_000}, Change("timeout", "", "1 s", "1.5 s")),
        ({"timeout_ns": None}, Change("timeout", "", "1 s", None)),
        ({"do_not_cache": True}, Change("do_not_cache", "", "false", "true")),
        ({"salt": b"\x01"}, Change("salt", "", None, "01")),
        ({"output_format": "DIRECTORY_ONLY"}, Change("output_format", "", None, "DIRECTORY_ONLY")),
        ({"output_properties": ("mtime",)}, Change("output_format", "mtime", None, "mtime")),
        ({"root": digest(2)}, Change("input", ".", digest(1).text, digest(2).text, NOT_KEPT)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_every_part_is_named(changes: dict[str, object], expected: Change) -> None:
    found = difference(ONE, replace(ONE, **changes), nothing, same_action=False)  # type: ignore[arg-type]
    assert found == Difference((expected,))


def test_every_field_of_an_action_is_compared() -> None:
    other = Parts(
        arguments=("x",),
        variables=(("X", "x"),),
        properties=(("x", "x"),),
        outputs=("x",),
        output_kinds=("directory",),
        working_directory="x",
        timeout_ns=1,
        do_not_cache=True,
        salt=b"x",
        output_format="DIRECTORY_ONLY",
        output_properties=("x",),
        root=digest(9),
    )
    for field in fields(Parts):
        changed = replace(ONE, **{field.name: getattr(other, field.name)})
        found = difference(ONE, changed, nothing, same_action=False)
        assert found.changes, field.name
        assert found.changes[0].part != "encoding", field.name


def test_what_no_part_tells_is_the_encoding() -> None:
    turned = replace(ONE, properties=ONE.properties[::-1])
    assert difference(ONE, turned, nothing, same_action=False).changes[0].part == "encoding"
    action, command = messages_of(ONE)
    # A field that this version does not know: number 99, a varint.
    strange = re.Action.FromString(action + b"\x98\x06\x01")
    found = difference(ONE, parts_of(strange, re.Command.FromString(command)), nothing, same_action=False)
    assert [change.part for change in found.changes] == ["encoding"]


def test_a_secret_is_named_and_not_shown() -> None:
    one = replace(ONE, variables=(("API_TOKEN", "hunter2"),), arguments=("curl", "--password", "hunter2"))
    other = replace(one, variables=(("API_TOKEN", "hunter3"),), arguments=("curl", "--password", "hunter3"))
    found = difference(one, other, nothing, same_action=False)
    assert [(change.part, change.name) for change in found.changes] == [("argument", "2"), ("variable", "API_TOKEN")]
    assert "hunter" not in repr(found)


def test_many_and_long_changes_are_bounded() -> None:
    words = tuple(f"{i}" for i in range(CHANGES_MAX + 500))
    found = difference(replace(ONE, arguments=words), replace(ONE, arguments=words[::-1]), nothing, same_action=False)
    assert len(found.changes) == CHANGES_MAX
    assert found.left_out == 500
    long = difference(ONE, replace(ONE, variables=(("LANG", "x" * 5000),)), nothing, same_action=False).changes[0]
    assert long.after is not None
    assert long.after.startswith("x" * TEXT_CHARACTERS_MAX + "… (3000 more")


# Trees, as nested mappings from names to numbers of contents.

TREES = st.recursive(st.integers(0, 3), lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3))


class Forest:
    """Directories by digest, as a store has them."""

    def __init__(self) -> None:
        self.known: dict[Digest, TreeDirectory] = {}

    def plant(self, tree: dict[str, object]) -> Digest:
        nodes = tuple(
            TreeNode(name, "directory", self.plant(value))
            if isinstance(value, dict)
            else TreeNode(name, "file", digest(100 + value))  # type: ignore[operator]
            for name, value in sorted(tree.items())
        )
        directory = TreeDirectory(nodes)
        key = EMPTY if not nodes else Digest.of(repr(directory).encode())
        self.known[key] = directory
        return key


def flat(tree: dict[str, object], above: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found[f"{above}{name}/"] = "directory"
            found |= flat(value, f"{above}{name}/")
        else:
            found[f"{above}{name}"] = value
    return found


@given(st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES))
def test_every_path_that_differs_is_named_or_below_one_that_is(
    one: dict[str, object], other: dict[str, object]
) -> None:
    forest = Forest()
    before, after = forest.plant(one), forest.plant(other)
    named = {change.name for change in tree_changes(before, after, forest.known.get)}
    mine, theirs = flat(one), flat(other)
    differing = {path for path in mine.keys() | theirs.keys() if mine.get(path) != theirs.get(path)}
    # A file that became a directory goes by its name alone.
    kinds = {path.rstrip("/") for path in differing}
    for path in differing:
        parents = {path, path.rstrip("/")} | {path[: i + 1] for i, c in enumerate(path) if c == "/"}
        assert parents & named or {parent.rstrip("/") for parent in parents} & named, path
    assert {path.rstrip("/") for path in named} <= kinds
    assert bool(named) == (before != after)


def test_equal_subtrees_are_never_opened() -> None:
    forest = Forest()
    same = {f"d{i}": {"x": 1} for i in range(50)}
    before, after = forest.plant({"same": same, "h": 1}), forest.plant({"same": same, "h": 2})
    opened: list[Digest] = []

    def load(key: Digest) -> TreeDirectory | None:
        opened.append(key)
        return forest.known[key]

    assert [change.name for change in tree_changes(before, after, load)] == ["h"]
    assert sorted(opened) == sorted([before, after])


def test_a_tree_that_unfolds_without_end_is_cut() -> None:
    forest = Forest()

    def tower(content: int, levels: int) -> Digest:
        below = forest.plant({"x": content})
        for _ in range(levels):
            directory = TreeDirectory((TreeNode("l", "directory", below), TreeNode("r", "directory", below)))
            below = Digest.of(repr(directory).encode())
            forest.known[below] = directory
        return below

    found = list(tree_changes(tower(1, 40), tower(2, 40), forest.known.get))
    assert found[-1].note == TOO_MANY


def test_what_is_alike_is_between_nothing_and_all() -> None:
    assert similarity(ONE, ONE) == 1.0
    assert similarity(ONE, Parts(("other",))) == 0.0
    assert 0.5 < similarity(ONE, replace(ONE, arguments=("cc", "-c", "b.c"))) < 1.0
