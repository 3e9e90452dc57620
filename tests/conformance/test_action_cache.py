"""ActionCache: a hit is whole, nothing is inlined unasked, and what was stored comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import UNKNOWN_FIELD, Code, Server, allowed, fresh, refused

GET = "ActionCache.GetActionResult"
UPDATE = "ActionCache.UpdateActionResult"
WHOLE = "ActionCache.GetActionResult, completeness"
# Refusing a result whose blobs are absent protects readers just as well as not answering with it.
REFUSALS = (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)


Lay = Callable[[Server, re.ActionResult, re.Digest], None]


@pytest.fixture
def writable(server: Server) -> Server:
    """A server whose action cache takes results of clients."""
    server.need_updates()
    return server


def marked(**fields: object) -> re.ActionResult:
    """A result that is not empty."""
    metadata = re.ExecutedActionMetadata(worker="conformance")
    return re.ActionResult(execution_metadata=metadata, **fields)  # type: ignore[arg-type]


@rule(MUST, GET, "A result that is not in the cache is NOT_FOUND.")
def test_an_unknown_action_is_not_found(server: Server) -> None:
    action = server.action()
    refused(lambda: server.result(action), Code.NOT_FOUND)


@rule(MUST, "ActionCacheUpdateCapabilities.update_enabled", "Where it is unset, results are not taken.")
def test_updates_are_refused_where_they_are_not_enabled(server: Server) -> None:
    if server.cache.action_cache_update_capabilities.update_enabled:
        pytest.skip("writing results is advertised")
    action = server.action()
    denials = (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED, *REFUSALS)
    refused(lambda: server.store_result(action, marked()), *denials)


@rule(MUST, UPDATE, "What was stored is found, with an equivalent value.")
def test_a_result_comes_back(writable: Server) -> None:
    action, log = writable.action(), fresh()
    result = marked(stdout_digest=writable.put(log), stderr_digest=writable.put(fresh()))
    result.output_files.add(path="a/b", digest=writable.put(fresh()), is_executable=True)
    result.output_symlinks.add(path="link", target="a/b")
    writable.store_result(action, result)
    found = writable.result(action)
    assert found.output_files == result.output_files
    assert found.output_symlinks == result.output_symlinks
    assert (found.stdout_digest, found.stderr_digest) == (result.stdout_digest, result.stderr_digest)
    assert found.execution_metadata.worker == "conformance"


@rule(MUST, UPDATE, "Every field of a stored result comes back, with node properties and what is told of its making.")
def test_every_field_comes_back(writable: Server) -> None:
    action, file, root = writable.action(), writable.put(fresh()), re.Directory()
    properties = re.NodeProperties(mtime={"seconds": 1, "nanos": 2}, unix_mode={"value": 0o640})  # type: ignore[arg-type]
    properties.properties.add(name="color", value="blue")
    root.files.add(name="f", digest=file, node_properties=properties)
    result = marked(stdout_digest=writable.put(fresh()), stderr_digest=writable.put(fresh()))
    result.output_files.add(path="f", digest=file, is_executable=True, node_properties=properties)
    result.output_directories.add(
        path="d",
        tree_digest=writable.put_message(re.Tree(root=root)),
        root_directory_digest=writable.put_message(root),
        is_topologically_sorted=True,
    )
    for links in (result.output_symlinks, result.output_file_symlinks, result.output_directory_symlinks):
        links.add(path="l", target="f", node_properties=properties)
    made = result.execution_metadata
    made.virtual_execution_duration.FromNanoseconds(1_500_000_001)
    made.auxiliary_metadata.add(type_url="type.googleapis.com/conformance.Anything", value=fresh())
    times = [field.name for field in made.DESCRIPTOR.fields if field.name.endswith("_timestamp")]
    for number, name in enumerate(times):
        getattr(made, name).FromNanoseconds(10**18 + number)
    writable.store_result(action, result)
    found = writable.result(action)
    for field, value in result.ListFields():
        if field.name != "execution_metadata":
            assert getattr(found, field.name) == value
    for field, value in made.ListFields():
        assert getattr(found.execution_metadata, field.name) == value


@rule(MAY, UPDATE, "A field that nobody knows yet comes back with the result.")
def test_an_unknown_field_comes_back(writable: Server) -> None:
    action = writable.action()
    result = re.ActionResult.FromString(marked().SerializeToString() + UNKNOWN_FIELD)
    writable.store_result(action, result)
    assert UNKNOWN_FIELD in writable.result(action).SerializeToString()


@rule(SHOULD, "UpdateActionResultRequest.results_cache_policy", "A result is taken whatever its priority in the cache.")
@pytest.mark.parametrize("priority", [-1, 0, 1])
def test_a_result_may_have_a_priority(writable: Server, priority: int) -> None:
    action = writable.action()
    writable.store_result(action, marked(), results_cache_policy=re.ResultsCachePolicy(priority=priority))
    assert writable.result(action).execution_metadata.worker == "conformance"


@rule(MUST, UPDATE, "It returns the stored result or an equivalent one.")
def test_an_update_returns_the_result(writable: Server) -> None:
    result = marked()
    result.output_files.add(path="o", digest=writable.put(fresh()))
    assert writable.store_result(writable.action(), result).output_files == result.output_files


@rule(SHOULD, UPDATE, "A later result of the same action takes the place of the earlier.")
def test_a_later_result_replaces(writable: Server) -> None:
    action = writable.action()
    for target in ("first", "second"):
        result = marked()
        result.output_symlinks.add(path="link", target=target)
        writable.store_result(action, result)
    assert [link.target for link in writable.result(action).output_symlinks] == ["second"]


@rule(MAY, UPDATE, "A result with an exit code other than 0 is a result like any other.")
def test_a_failed_result_is_stored(writable: Server) -> None:
    action = writable.action()
    writable.store_result(action, marked(exit_code=3))
    assert writable.result(action).exit_code == 3


@rule(MUST, "Digest", "Size is part of a digest: an action's hash with another size is another action.")
def test_another_size_is_another_action(writable: Server) -> None:
    action = writable.action()
    writable.store_result(action, marked())
    other = re.Digest(hash=action.hash, size_bytes=action.size_bytes + 1)
    refused(lambda: writable.result(other), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(MAY, "ActionResult", "A result of no bytes at all is stored and found.")
def test_a_result_of_no_bytes(writable: Server) -> None:
    action = writable.action()
    writable.store_result(action, re.ActionResult())
    assert not writable.result(action).output_files


@rule(SHOULD, "ActionResult", "No result that is found is of no bytes: one field at least says that it is one.")
def test_no_result_is_of_no_bytes(writable: Server) -> None:
    action = writable.action()
    allowed(lambda: writable.store_result(action, re.ActionResult()), *REFUSALS)
    found = allowed(lambda: writable.result(action), Code.NOT_FOUND)
    assert found is None or found.ByteSize() > 0


@rule(SHOULD, UPDATE, "A result without an action is refused by a code that blames the client.")
def test_a_result_of_nothing_is_refused(writable: Server) -> None:
    refused(lambda: writable.store_result(re.Digest(), marked()))


# Completeness: a hit must not lead to an absent blob.


def directory(name: str, digest: re.Digest) -> re.Directory:
    found = re.Directory()
    found.files.add(name=name, digest=digest)
    return found


def _file(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    result.output_files.add(path="here", digest=server.put(fresh()))
    result.output_files.add(path="absent", digest=absent)


def _stdout(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    result.stdout_digest.CopyFrom(absent)


def _stderr(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    result.stderr_digest.CopyFrom(absent)


def _tree(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    result.output_directories.add(path="d", tree_digest=absent)


def _tree_root(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    tree = server.put_message(re.Tree(root=directory("f", absent)))
    result.output_directories.add(path="d", tree_digest=tree)


def _tree_child(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    child = directory("f", absent)
    root = re.Directory()
    root.directories.add(name="child", digest=server.digest(child.SerializeToString()))
    result.output_directories.add(path="d", tree_digest=server.put_message(re.Tree(root=root, children=[child])))


def _root_directory(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    result.output_directories.add(path="d", root_directory_digest=absent)


def _root_directory_file(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    root = server.put_message(directory("f", absent))
    result.output_directories.add(path="d", root_directory_digest=root)


def _root_directory_child(server: Server, result: re.ActionResult, absent: re.Digest) -> None:
    root = re.Directory()
    root.directories.add(name="child", digest=server.put_message(directory("f", absent)))
    result.output_directories.add(path="d", root_directory_digest=server.put_message(root))


def is_whole(server: Server, lay: Lay, data: bytes) -> None:
    """Lay a reference to `data`: no hit while it is absent, a hit once it is there."""
    action, result = server.action(), marked()
    lay(server, result, server.digest(data))
    allowed(lambda: server.store_result(action, result), *REFUSALS)
    refused(lambda: server.result(action), Code.NOT_FOUND)
    server.put(data)
    server.store_result(action, result)
    assert server.result(action).execution_metadata.worker == "conformance"


@rule(SHOULD, WHOLE, "Every output file of a hit is available.")
def test_output_files_are_there(writable: Server) -> None:
    is_whole(writable, _file, fresh())


@rule(SHOULD, WHOLE, "The standard output of a hit is available.")
def test_stdout_is_there(writable: Server) -> None:
    is_whole(writable, _stdout, fresh())


@rule(SHOULD, WHOLE, "The standard error of a hit is available.")
def test_stderr_is_there(writable: Server) -> None:
    is_whole(writable, _stderr, fresh())


@rule(SHOULD, WHOLE, "Every Tree of a hit is available.")
def test_trees_are_there(writable: Server) -> None:
    is_whole(writable, _tree, re.Tree(root=directory(fresh(8).hex(), writable.put(fresh()))).SerializeToString())


@rule(SHOULD, WHOLE, "Every file in a Tree of a hit is available, at its root and below.")
@pytest.mark.parametrize("lay", [_tree_root, _tree_child], ids=["root", "child"])
def test_files_of_trees_are_there(writable: Server, lay: Lay) -> None:
    is_whole(writable, lay, fresh())


@rule(SHOULD, WHOLE, "Every root Directory of a hit is available.")
def test_root_directories_are_there(writable: Server) -> None:
    is_whole(writable, _root_directory, directory(fresh(8).hex(), writable.put(fresh())).SerializeToString())


@rule(SHOULD, WHOLE, "Every file below a root Directory of a hit is available.")
@pytest.mark.parametrize("lay", [_root_directory_file, _root_directory_child], ids=["root", "child"])
def test_files_below_root_directories_are_there(writable: Server, lay: Lay) -> None:
    is_whole(writable, lay, fresh())


@rule(SHOULD, UPDATE, "A Tree that is no Tree is never a hit, and never an INTERNAL error.")
def test_a_tree_that_is_none(writable: Server) -> None:
    action, result = writable.action(), marked()
    result.output_directories.add(path="d", tree_digest=writable.put(b"\xff" * 20 + fresh()))
    allowed(lambda: writable.store_result(action, result), *REFUSALS)
    refused(lambda: writable.result(action))


@rule(SHOULD, UPDATE, "An output directory that names neither a Tree nor a root Directory is never a hit.")
def test_a_directory_without_contents(writable: Server) -> None:
    action, result = writable.action(), marked()
    result.output_directories.add(path="d")
    allowed(lambda: writable.store_result(action, result), *REFUSALS)
    refused(lambda: writable.result(action))


# Inlining.


def printed(server: Server, size: int = 100) -> tuple[re.Digest, dict[str, bytes]]:
    """A stored result with both outputs and a file, by digest only."""
    found = {"stdout": fresh(size), "stderr": fresh(size), "o": fresh(size)}
    result = marked(stdout_digest=server.put(found["stdout"]), stderr_digest=server.put(found["stderr"]))
    result.output_files.add(path="o", digest=server.put(found["o"]))
    action = server.action()
    server.store_result(action, result)
    return action, found


@rule(SHOULD, "ActionResult.stdout_raw", "Nothing is inlined unless the request asks for it.")
def test_nothing_is_inlined_unasked(writable: Server) -> None:
    action, _ = printed(writable)
    found = writable.result(action)
    assert (found.stdout_raw, found.stderr_raw, found.output_files[0].contents) == (b"", b"", b"")


@rule(SHOULD, "ActionResult.stdout_raw", "Nothing is inlined unasked even if the client stored it inline.")
def test_what_was_stored_inline_is_not_sent_unasked(writable: Server) -> None:
    data = fresh()
    action = writable.action()
    writable.store_result(action, marked(stdout_raw=data, stdout_digest=writable.put(data)))
    assert writable.result(action).stdout_raw == b""


@rule(MUST, "ActionResult.stdout_raw", "Output that a client stored inline, without a digest, is not lost.")
def test_what_was_stored_inline_is_not_lost(writable: Server) -> None:
    data = fresh()
    action = writable.action()
    writable.store_result(action, marked(stdout_raw=data))
    found = writable.result(action, inline_stdout=True)
    assert found.stdout_raw == data or writable.read(writable.name(found.stdout_digest)) == data


@rule(MUST, "GetActionResultRequest.inline_stdout", "What is inlined is what the digest beside it names.")
def test_what_is_inlined_is_right(writable: Server) -> None:
    action, data = printed(writable)
    found = writable.result(action, inline_stdout=True, inline_stderr=True, inline_output_files=["o"])
    assert found.stdout_raw in (b"", data["stdout"])
    assert found.stderr_raw in (b"", data["stderr"])
    assert found.output_files[0].contents in (b"", data["o"])
    assert found.stdout_digest == writable.digest(data["stdout"])


@rule(MAY, "GetActionResultRequest.inline_stdout", "Small outputs are inlined on request.")
def test_small_outputs_are_inlined_on_request(writable: Server) -> None:
    action, data = printed(writable)
    found = writable.result(action, inline_stdout=True, inline_stderr=True)
    assert (found.stdout_raw, found.stderr_raw) == (data["stdout"], data["stderr"])


@rule(MAY, "GetActionResultRequest.inline_output_files", "Small output files are inlined on request.")
def test_small_files_are_inlined_on_request(writable: Server) -> None:
    action, data = printed(writable)
    assert writable.result(action, inline_output_files=["o"]).output_files[0].contents == data["o"]


@rule(MUST, "ActionResult.stdout_raw", "Inlining is left out where the response would exceed the message limit.")
@pytest.mark.parametrize("size", [1_500_000, 5_000_000])
def test_inlining_stops_at_the_message_limit(writable: Server, size: int) -> None:
    action, _ = printed(writable, size)
    found = writable.result(action, inline_stdout=True, inline_stderr=True, inline_output_files=["o"])
    assert found.stdout_digest.size_bytes == size


@rule(SHOULD, GET, "A result over 4 MiB is answered or refused, and never by a code that means a sick server.")
def test_a_result_over_the_message_limit(writable: Server) -> None:
    action, result = writable.action(), marked()
    for n in range(5000):
        result.output_files.add(path=f"{n}/" + "x" * 900, digest=writable.digest(b""))
    codes = (*REFUSALS, Code.RESOURCE_EXHAUSTED)
    allowed(lambda: writable.store_result(action, result), *codes)
    allowed(lambda: writable.result(action), Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND)
