"""GetTree: everything that is there below a root, in pages that fit, and nothing but the root may be missing."""

from __future__ import annotations

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import UNKNOWN_FIELD, Code, Server, allowed, fresh, refused

WHERE = "ContentAddressableStorage.GetTree"


def leaf(text: str = "") -> re.Directory:
    """A new Directory without children."""
    found = re.Directory()
    found.symlinks.add(name=text or "link", target=fresh(8).hex())
    return found


def parent(server: Server, *children: re.Directory) -> re.Directory:
    """A Directory of stored children."""
    found = leaf()
    for n, child in enumerate(children):
        found.directories.add(name=f"d{n:05}", digest=server.put_message(child))
    return found


def names(directories: object) -> list[bytes]:
    """Directories in an order of their own, to compare as sets that count."""
    return sorted(d.SerializeToString(deterministic=True) for d in directories)  # type: ignore[attr-defined]


def read(server: Server, root: re.Digest, **fields: object) -> list[re.Directory]:
    """The whole tree, page after page as a client follows the tokens."""
    found: list[re.Directory] = []
    token = ""
    for _ in range(100):
        token_before, token = token, ""
        for page in server.tree(root, page_token=token_before, **fields):
            found.extend(page.directories)
            token = page.next_page_token
        if not token:
            return found
    raise AssertionError("the pages never end")


def small(server: Server) -> tuple[re.Digest, list[re.Directory]]:
    """A stored tree of three levels and six Directories, no two alike."""
    leaves = [leaf() for _ in range(3)]
    middle = [parent(server, *leaves[:2]), parent(server, leaves[2])]
    root = parent(server, *middle)
    return server.put_message(root), [root, *middle, *leaves]


@rule(MUST, WHERE, "Every Directory below the root is returned, and the root with them.")
def test_the_whole_tree_is_read(server: Server) -> None:
    root, expected = small(server)
    assert names(read(server, root)) == names(expected)


@rule(MUST, WHERE, "A root without children is a tree.")
def test_a_root_alone_is_a_tree(server: Server) -> None:
    root = leaf()
    assert read(server, server.put_message(root)) == [root]


@rule(MUST, "ContentAddressableStorage", "Empty blobs are always available: the empty Directory is a tree.")
def test_the_empty_directory_is_a_tree(server: Server) -> None:
    assert all(d == re.Directory() for d in read(server, server.digest(b"")))


@rule(MUST, WHERE, "A root that is not in the CAS is NOT_FOUND.")
def test_an_absent_root_is_not_found(server: Server) -> None:
    root = server.digest(leaf().SerializeToString())
    refused(lambda: list(server.tree(root)), Code.NOT_FOUND)


@rule(MUST, WHERE, "Where part of the tree is missing, the rest is returned without error.")
def test_an_absent_child_is_left_out(server: Server) -> None:
    here = leaf()
    root = parent(server, here)
    root.directories.add(name="x", digest=server.digest(leaf().SerializeToString()))
    assert names(read(server, server.put_message(root))) == names([root, here])


@rule(MUST, "Digest", "A message is known by its exact bytes: a Directory with a field nobody knows is found by them.")
def test_exact_bytes_are_what_counts(server: Server) -> None:
    child, root = leaf(), leaf()
    root.directories.add(name="x", digest=server.put(child.SerializeToString() + UNKNOWN_FIELD))
    read_names = [[link.target for link in found.symlinks] for found in read(server, server.put_message(root))]
    assert sorted(read_names) == sorted([[root.symlinks[0].target], [child.symlinks[0].target]])


@rule(MUST, "Digest", "Size is part of a digest: the root's hash with another size is not the root.")
def test_a_root_of_wrong_size(server: Server) -> None:
    root = server.put_message(leaf())
    wrong = re.Digest(hash=root.hash, size_bytes=root.size_bytes + 1)
    refused(lambda: list(server.tree(wrong)), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(MUST, "GetTreeRequest.page_size", "No page holds more Directories than were asked for.")
@pytest.mark.parametrize("size", [1, 2, 5])
def test_pages_are_no_larger_than_asked(server: Server, size: int) -> None:
    root, _ = small(server)
    assert max(len(page.directories) for page in server.tree(root, page_size=size)) <= size


@rule(MUST, "GetTreeRequest.page_size", "The pages together are the whole tree.")
@pytest.mark.parametrize("size", [1, 2, 100])
def test_pages_together_are_the_tree(server: Server, size: int) -> None:
    root, expected = small(server)
    assert names(read(server, root, page_size=size)) == names(expected)


@rule(MUST, "GetTreeRequest.page_token", "A token skips ahead: what follows its page is returned, and only that.")
def test_a_token_skips_ahead(server: Server) -> None:
    root, expected = small(server)
    first = next(iter(server.tree(root, page_size=2)))
    if not first.next_page_token:
        assert len(first.directories) == len(expected)
        pytest.skip("the whole tree came in one page")
    rest = [d for page in server.tree(root, page_size=2, page_token=first.next_page_token) for d in page.directories]
    assert names([*first.directories, *rest]) == names(expected)


@rule(MUST, "GetTreeResponse.next_page_token", "It is empty in the last page.")
def test_the_last_page_has_no_token(server: Server) -> None:
    root, _ = small(server)
    assert list(server.tree(root))[-1].next_page_token == ""


@rule(SHOULD, "GetTreeRequest.page_token", "A token that no response held is refused by a code that blames the client.")
def test_a_foreign_token_is_refused(server: Server) -> None:
    root, _ = small(server)
    refused(lambda: list(server.tree(root, page_size=2, page_token="no token of yours")))


@rule(
    SHOULD, "GetTreeRequest.page_token", "A token from beyond the end of a tree is refused: nothing is no page of it."
)
def test_a_token_of_a_larger_tree_is_refused(server: Server) -> None:
    large, _ = small(server)
    tokens = [page.next_page_token for page in server.tree(large, page_size=1) if page.next_page_token]
    if not tokens:
        pytest.skip("the whole tree came in one page")
    lonely = server.put_message(leaf())
    refused(lambda: list(server.tree(lonely, page_size=1, page_token=tokens[-1])))


@rule(SHOULD, "GetTreeRequest.page_size", "A negative size is refused or ignored, never an INTERNAL error.")
def test_a_negative_page_size(server: Server) -> None:
    root, _ = small(server)
    allowed(lambda: list(server.tree(root, page_size=-1)), Code.INVALID_ARGUMENT)


@rule(SHOULD, "GetTreeRequest.root_digest", "A root that is no Directory is refused by a code that blames the client.")
def test_a_root_that_is_no_directory(server: Server) -> None:
    root = server.put(b"\xff" * 20 + fresh())
    refused(lambda: list(server.tree(root)))


@rule(MUST, WHERE, "A tree of more than 4 MiB comes in messages that a stock client takes.")
def test_a_large_tree_comes_in_small_messages(server: Server) -> None:
    children = []
    for _ in range(6):
        child = leaf()
        for n in range(900):
            child.symlinks.add(name=f"{n:04}", target="x" * 1000)
        children.append(child)
    root = parent(server, *children)
    assert len(read(server, server.put_message(root))) == 7


@rule(SHOULD, WHERE, "A Directory that is in many places is returned once.")
def test_a_shared_directory_comes_once(server: Server) -> None:
    shared = leaf()
    root = parent(server, parent(server, shared), parent(server, shared), shared)
    assert names(read(server, server.put_message(root))).count(names([shared])[0]) == 1


@rule(SHOULD, WHERE, "A small tree that unfolds into a million paths is returned in a moment.")
def test_a_tree_that_unfolds(server: Server) -> None:
    directory = leaf()
    for _ in range(20):
        digest = server.put_message(directory)
        directory = re.Directory()
        for name in ("a", "b"):
            directory.directories.add(name=name, digest=digest)
    seen = 0
    for page in server.tree(server.put_message(directory)):
        seen += len(page.directories)
        assert seen <= 1000, "a Directory was returned again and again"
    assert seen >= 21


@rule(MAY, WHERE, "A tree of two hundred levels is returned.")
def test_a_deep_tree(server: Server) -> None:
    directory = leaf()
    for _ in range(200):
        directory = parent(server, directory)
    assert len(read(server, server.put_message(directory))) == 201
