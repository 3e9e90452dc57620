"""Execution, WaitExecution and Operations: actions run as they are described, and what goes wrong is said there."""

from __future__ import annotations

import time

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2 as op
from tests.conformance.digests import text_of
from tests.conformance.execution import Executor, Stage, metadata_of, missing_of, response_of, status_of
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import Code, Server, allowed, fresh, refused

INVALID, DEADLINE, ABSENT = (c.value[0] for c in (Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED, Code.NOT_FOUND))
PRECONDITION, CANCELLED = (c.value[0] for c in (Code.FAILED_PRECONDITION, Code.CANCELLED))
# Codes that a client must not take for a passing trouble of the server, and repeat.
PERMANENT = (INVALID, ABSENT, PRECONDITION, Code.UNIMPLEMENTED.value[0], Code.OUT_OF_RANGE.value[0])


# The stream of operations.


@rule(
    MUST, "ExecuteOperationMetadata.stage", "`done` is set if and only if the stage is COMPLETED; then the stream ends."
)
def test_done_is_completed(executor: Executor) -> None:
    told = list(executor.execute(executor.action("true")))
    assert [operation.done for operation in told] == [False] * (len(told) - 1) + [True]
    assert [metadata_of(o).stage == Stage.COMPLETED for o in told] == [o.done for o in told]


@rule(MUST, "ExecutionStage", "An action that nobody disturbs goes through its stages in their order, never back.")
def test_stages_are_in_order(executor: Executor) -> None:
    told = [metadata_of(operation).stage for operation in executor.execute(executor.action("sleep 1; echo a"))]
    order = [Stage.UNKNOWN, Stage.CACHE_CHECK, Stage.QUEUED, Stage.EXECUTING, Stage.COMPLETED]
    places = [order.index(stage) for stage in told]
    assert places == sorted(places)
    assert told[-1] == Stage.COMPLETED


@rule(MUST, "Execute", "The metadata is ExecuteOperationMetadata, and the response ExecuteResponse.")
def test_metadata_names_the_action(executor: Executor) -> None:
    action = executor.action("true")
    told = list(executor.execute(action))
    assert all(metadata_of(operation).action_digest == action for operation in told)
    assert len({operation.name for operation in told}) == 1
    assert told[0].name
    response_of(told[-1])


@rule(MUST, "ExecuteResponse.status", "A command's exit code other than zero is a result: the status is OK.")
def test_an_exit_code_is_a_result(executor: Executor) -> None:
    response = executor.response(executor.action("echo why >&2; exit 7"))
    assert (response.status.code, response.result.exit_code) == (0, 7)
    assert executor.bytes_of(response.result.stderr_digest, response.result.stderr_raw) == b"why\n"


@rule(MUST, "Execute", "Errors of execution are in ExecuteResponse.status; Operation.error is not set.")
def test_errors_are_in_the_response(executor: Executor) -> None:
    told = allowed(lambda: list(executor.execute(executor.action("/no/such/program", "x"))))
    if told is None:
        # While the operation is made an error may be the status of the call.
        return
    assert not any(operation.HasField("error") for operation in told)
    response = response_of(told[-1])
    assert response.status.code or response.result.exit_code


# What runs.


@rule(MUST, "Command.arguments", "The arguments reach the command as they are, empty ones too.")
def test_arguments_are_kept(executor: Executor) -> None:
    script = 'for word; do printf "<%s>" "$word"; done'
    result = executor.run("/bin/sh", "-c", script, "sh", "a b", "", "*", "é", "$HOME")
    assert executor.stdout(result) == "<a b><><*><é><$HOME>".encode()


@rule(MUST, "Command.environment_variables", "The command finds the variables that it names.")
def test_variables_are_set(executor: Executor) -> None:
    result = executor.run('printf "%s|%s" "$A" "$B"', env={"PATH": "/usr/bin:/bin", "A": "1 2", "B": ""})
    assert executor.stdout(result) == b"1 2|"


@rule(SHOULD, "Command.environment_variables", "Nothing else of the worker's own environment leaks in.")
def test_no_other_variables_are_set(executor: Executor) -> None:
    names = {line.split(b"=")[0] for line in executor.stdout(executor.run("/usr/bin/env", "-u", "X")).splitlines()}
    assert names <= {b"PATH", b"PWD", b"HOME", b"TMPDIR", b"USER", b"LOGNAME", b"SHLVL", b"_"}


@rule(MUST, "Command.arguments", "A program without a slash is looked up along the PATH of its variables (2.3).")
def test_a_bare_name_is_looked_up(executor: Executor) -> None:
    assert executor.stdout(executor.run("echo", "found")) == b"found\n"


@rule(MUST, "Command.working_directory", "It is where the command runs, and what output paths are relative to.")
def test_the_working_directory(executor: Executor) -> None:
    inner = executor.folder({"in": b"deep"})
    root = executor.folder(directories=[re.DirectoryNode(name="w", digest=inner)])
    result = executor.run(
        "cat in > out; cat ../w/in", root=root, command={"working_directory": "w", "output_paths": ["out"]}
    )
    assert executor.stdout(result) == b"deep"
    assert executor.files(result) == {"out": b"deep"}


@rule(MUST, "Action.input_root_digest", "Files, their executable bits, symlinks and empty directories are there.")
def test_inputs_are_there(executor: Executor) -> None:
    script = executor.server.put(b"#!/bin/sh\necho ran\n")
    root = executor.folder(
        {"data": b"text", "tool": re.FileNode(digest=script, is_executable=True)},
        directories=[re.DirectoryNode(name="empty", digest=executor.folder())],
        symlinks=[re.SymlinkNode(name="link", target="data")],
    )
    result = executor.run("cat link; ./tool; ls -A empty; test -d empty; readlink link; test ! -x data", root=root)
    assert (result.exit_code, executor.stdout(result)) == (0, b"textran\ndata\n")


@rule(SHOULD, "Execute", "An action that writes to an input alters no blob: another action gets what was uploaded.")
def test_an_input_cannot_be_altered(executor: Executor) -> None:
    data = fresh(32).hex().encode()
    root = executor.folder({"data": data})
    executor.run("chmod u+w data; echo more >> data || true", root=root)
    assert executor.stdout(executor.run("cat data", root=root)) == data


# Outputs.


@rule(MUST, "Command.output_paths", "A file is an output file with its bytes and its executable bit.")
def test_output_files(executor: Executor) -> None:
    result = executor.run("echo a > a; echo b > b; chmod +x b", command={"output_paths": ["a", "b"]})
    assert executor.files(result) == {"a": b"a\n", "b": b"b\n"}
    assert {file.path: file.is_executable for file in result.output_files} == {"a": False, "b": True}


@rule(SHOULD, "Command.output_paths", "Paths are relative to the working directory; one may lead beside it.")
def test_an_output_beside_the_working_directory(executor: Executor) -> None:
    inside = {"working_directory": "w/v", "output_paths": ["../o/a", "./b"]}
    result = executor.run("echo a > ../o/a; echo b > b", command=inside)
    assert executor.files(result) == {"../o/a": b"a\n", "./b": b"b\n"}


@rule(MUST, "Command.output_paths", "Directories above an output are there before the command runs.")
def test_parents_are_made(executor: Executor) -> None:
    result = executor.run("echo x > p/q/r", command={"output_paths": ["p/q/r"]})
    assert executor.files(result) == {"p/q/r": b"x\n"}


@rule(
    MUST,
    "Command.output_paths",
    "Only the directories above an output are made before the command runs, not the output.",
)
@pytest.mark.parametrize("field", ["output_paths", "output_directories", "output_files"])
def test_parents_alone_are_made(executor: Executor, field: str) -> None:
    result = executor.run("test -d p/q && test ! -e p/q/r && echo so", command={field: ["p/q/r"]})
    assert executor.stdout(result) == b"so\n"


@rule(SHOULD, "Command.output_paths", "They are to be distinct: one that is named twice is told once, or refused.")
def test_an_output_that_is_named_twice(executor: Executor) -> None:
    response = executor.response(executor.action("echo a > a", command={"output_paths": ["a", "a"]}))
    assert response.status.code in PERMANENT or executor.files(response.result) == {"a": b"a\n"}
    assert len(response.result.output_files) <= 1


@rule(MUST, "ActionResult.output_files", "An output that the command did not leave is left out, and that is no error.")
def test_an_absent_output_is_left_out(executor: Executor) -> None:
    result = executor.run("echo a > a", command={"output_paths": ["a", "b"]})
    assert executor.files(result) == {"a": b"a\n"}


@rule(MUST, "OutputDirectory.tree_digest", "A directory is a Tree whose root and children are what the command left.")
def test_output_directories(executor: Executor) -> None:
    result = executor.run("mkdir -p d/e; echo x > d/e/x; echo y > d/y", command={"output_paths": ["d"]})
    assert [directory.path for directory in result.output_directories] == ["d"]
    tree = re.Tree.FromString(executor.bytes_of(result.output_directories[0].tree_digest))
    assert [file.name for file in tree.root.files] == ["y"]
    assert [node.name for node in tree.root.directories] == ["e"]
    assert [[file.name for file in child.files] for child in tree.children] == [["x"]]
    child = executor.server.digest(tree.children[0].SerializeToString(deterministic=True))
    assert tree.root.directories[0].digest == child


@rule(SHOULD, "OutputDirectory.tree_digest", "Equal directories are equal Trees.")
def test_trees_are_deterministic(executor: Executor) -> None:
    script = "mkdir d; for i in {}; do echo $i > d/$i; done"
    digests = [
        executor.run(script.format(order), command={"output_paths": ["d"]}).output_directories[0].tree_digest
        for order in ("1 2 3", "3 1 2")
    ]
    assert text_of(digests[0]) == text_of(digests[1])


@rule(MUST, "OutputDirectory.is_topologically_sorted", "If it is set, parents come before children, each once.")
def test_sorted_trees_are_sorted(executor: Executor) -> None:
    script = "mkdir -p d/a/same d/b/same; echo x > d/a/same/x; echo x > d/b/same/x; echo y > d/b/y"
    directory = executor.run(script, command={"output_paths": ["d"]}).output_directories[0]
    if not directory.is_topologically_sorted:
        pytest.skip("trees are not said to be sorted")
    tree = re.Tree.FromString(executor.bytes_of(directory.tree_digest))
    messages = [tree.root, *tree.children]
    texts = [text_of(executor.server.digest(m.SerializeToString(deterministic=True))) for m in messages]
    assert len(set(texts)) == len(texts), "deduplicated"
    for place, message in enumerate(messages):
        assert all(texts.index(text_of(node.digest)) > place for node in message.directories)


def left_as(executor: Executor, form: int) -> re.OutputDirectory:
    """A directory of two levels that an action left, told as it asked."""
    command = {"output_paths": ["d"], "output_directory_format": form}
    return executor.run("mkdir -p d/e; echo x > d/e/x", command=command).output_directories[0]


@rule(
    MUST, "Command.output_directory_format", "A root directory that is asked for is told, and is stored with all below."
)
@pytest.mark.parametrize("name", ["DIRECTORY_ONLY", "TREE_AND_DIRECTORY"])
def test_root_directories(executor: Executor, name: str) -> None:
    directory = left_as(executor, re.Command.OutputDirectoryFormat.Value(name))
    if not directory.HasField("root_directory_digest"):
        pytest.skip("the output directory format is not known to the worker")
    pages = list(executor.server.tree(directory.root_directory_digest))
    assert sum(len(page.directories) for page in pages) == 2


@rule(MUST, "OutputDirectory.root_directory_digest", "Beside a Tree, it is the digest of that Tree's root.")
def test_the_root_directory_is_the_trees(executor: Executor) -> None:
    directory = left_as(executor, re.Command.OutputDirectoryFormat.TREE_AND_DIRECTORY)
    if not directory.HasField("root_directory_digest"):
        pytest.skip("the output directory format is not known to the worker")
    tree = re.Tree.FromString(executor.bytes_of(directory.tree_digest))
    assert directory.root_directory_digest == executor.server.digest(tree.root.SerializeToString(deterministic=True))


@rule(SHOULD, "Command.output_directory_format", "A format that the worker does not know is read as TREE_ONLY.")
def test_an_unknown_directory_format(executor: Executor) -> None:
    directory = left_as(executor, 77)
    assert re.Tree.FromString(executor.bytes_of(directory.tree_digest)).root.directories[0].name == "e"


@rule(MUST, "ActionResult.output_symlinks", "With output_paths a symlink is an output symlink, not what it leads to.")
def test_output_symlinks(executor: Executor) -> None:
    result = executor.run("echo a > a; ln -s a l", command={"output_paths": ["a", "l"]})
    assert [(link.path, link.target) for link in result.output_symlinks] == [("l", "a")]
    assert [file.path for file in result.output_files] == ["a"]


@rule(MUST, "Command.output_files", "Outputs in the older fields are told too.")
def test_older_fields(executor: Executor) -> None:
    command = {"output_files": ["f"], "output_directories": ["d"]}
    result = executor.run("echo f > f; mkdir -p d; echo x > d/x", command=command)
    assert executor.files(result) == {"f": b"f\n"}
    assert [directory.path for directory in result.output_directories] == ["d"]


@rule(
    SHOULD,
    "ActionResult.output_file_symlinks",
    "Symlinks among outputs in the older fields are told in the older ones.",
)
def test_older_symlinks(executor: Executor) -> None:
    command = {"output_files": ["f", "fl"], "output_directories": ["d", "dl"]}
    result = executor.run("echo f > f; mkdir -p d; ln -s f fl; ln -s d dl", command=command)
    assert [(link.path, link.target) for link in result.output_file_symlinks] == [("fl", "f")]
    assert [(link.path, link.target) for link in result.output_directory_symlinks] == [("dl", "d")]
    assert not result.output_symlinks


@rule(
    MUST, "SymlinkAbsolutePathStrategy", "DISALLOWED: absolute in the input INVALID_ARGUMENT, FAILED_PRECONDITION left."
)
@pytest.mark.parametrize("where", ["input", "output", "output directory"])
def test_absolute_symlinks(executor: Executor, where: str) -> None:
    if executor.server.cache.symlink_absolute_path_strategy != re.SymlinkAbsolutePathStrategy.DISALLOWED:
        pytest.skip("absolute symlinks are allowed")
    if where == "input":
        root = executor.folder(symlinks=[re.SymlinkNode(name="l", target="/etc/passwd")])
        assert executor.failure(executor.action("true", root=root)).code == INVALID
        return
    script = "ln -s /etc/passwd l" if where == "output" else "mkdir l; ln -s /etc/passwd l/l"
    assert executor.failure(executor.action(script, command={"output_paths": ["l"]})).code == PRECONDITION


@rule(SHOULD, "OutputFile.node_properties", "Supported properties that the Command asks for are told, and no others.")
def test_node_properties_are_told(executor: Executor) -> None:
    supported = executor.server.capabilities.execution_capabilities.supported_node_properties
    wanted = [name for name in ("mtime", "unix_mode") if name in supported]
    if not wanted:
        pytest.skip("no node properties are supported")
    script = "echo a > a; chmod 640 a; touch -d @1000000000 a"
    command = {"output_paths": ["a"], "output_node_properties": wanted}
    found = executor.run(script, command=command).output_files[0].node_properties
    told = {"mtime": found.mtime.ToSeconds(), "unix_mode": found.unix_mode.value & 0o777}
    assert {name: told[name] for name in wanted} == {n: {"mtime": 10**9, "unix_mode": 0o640}[n] for n in wanted}
    unasked = executor.run(script, command={"output_paths": ["a"]}).output_files[0]
    assert not unasked.HasField("node_properties")


@rule(MAY, "FileNode.node_properties", "An input has the time of change that its node tells.")
def test_an_input_has_its_properties(executor: Executor) -> None:
    if "mtime" not in executor.server.capabilities.execution_capabilities.supported_node_properties:
        pytest.skip("mtime is no supported node property")
    properties = re.NodeProperties(mtime={"seconds": 10**9})  # type: ignore[arg-type]
    node = re.FileNode(digest=executor.server.put(b"a"), node_properties=properties)
    assert executor.stdout(executor.run("stat -c %Y a", root=executor.folder({"a": node}))) == b"1000000000\n"


@rule(MUST, "Command.output_paths", "If it is used, output_files and output_directories are ignored.")
def test_output_paths_win(executor: Executor) -> None:
    command = {"output_paths": ["a"], "output_files": ["b"]}
    assert executor.files(executor.run("echo a > a; echo b > b", command=command)) == {"a": b"a\n"}


@rule(MUST, "Command.output_files", "A directory where a file is declared in the older field is FAILED_PRECONDITION.")
def test_a_directory_is_no_output_file(executor: Executor) -> None:
    status = executor.failure(executor.action("mkdir f", command={"output_files": ["f"]}))
    assert status.code == PRECONDITION


@rule(SHOULD, "ActionResult.stdout_digest", "Much output is told by its digest, whole and in order.")
def test_much_output(executor: Executor) -> None:
    result = executor.run("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
    assert executor.stdout(result) == b"".join(b"line %d\n" % number for number in range(20_000))


@rule(MUST, "ExecuteRequest.inline_stdout", "What is inlined is what the digest stands for.")
def test_inlined_stdout(executor: Executor) -> None:
    result = executor.result(executor.action("echo inline"), inline_stdout=True)
    assert result.stdout_raw in (b"", b"inline\n")
    assert executor.stdout(result) == b"inline\n"


@rule(SHOULD, "ExecuteRequest.inline_stdout", "Outputs are inlined when that is asked for.")
def test_inlining_is_done(executor: Executor) -> None:
    action = executor.action("echo inline; echo o > o", command={"output_paths": ["o"]})
    result = executor.result(action, inline_stdout=True, inline_output_files=["o"])
    assert (result.stdout_raw, result.output_files[0].contents) == (b"inline\n", b"o\n")


@rule(
    MUST,
    "ActionResult.stdout_raw",
    "Inlining is left out where the response of Execute would exceed the message limit.",
)
@pytest.mark.parametrize("size", [2_500_000, 5_000_000])
def test_inlining_on_execute_stops_at_the_message_limit(executor: Executor, size: int) -> None:
    script = f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2; head -c {size} /dev/zero > o"
    action = executor.action(script, command={"output_paths": ["o"]})
    # Once executed and, where that is done, once from the cache.
    for _ in range(2):
        result = executor.result(action, inline_stdout=True, inline_stderr=True, inline_output_files=["o"])
        assert [result.stdout_digest.size_bytes, result.stderr_digest.size_bytes] == [size, size]
        assert result.output_files[0].digest.size_bytes == size


# What is asked of the worker, and what it tells.


@rule(SHOULD, "Action.platform", "It is preferred to the Command's, which counts where the Action has none.")
def test_the_actions_platform_is_preferred(executor: Executor) -> None:
    unknown = {"properties": [{"name": f"conformance-{fresh(4).hex()}", "value": "1"}]}
    if not executor.platform:
        # Of the lexicon, so that the Action has a platform at all.
        executor.platform = [("OSFamily", "linux")]
    if executor.failure(executor.action("true")).code:
        pytest.skip("OSFamily=linux is not offered; name a platform property by --exec-property")
    assert executor.run("true", command={"platform": unknown}).exit_code == 0
    executor.platform = []
    assert executor.failure(executor.action("true", command={"platform": unknown})).code in PERMANENT


@rule(SHOULD, "ExecutionPolicy.priority", "An action of any priority in the advertised ranges runs.")
def test_priorities_in_range_are_taken(executor: Executor) -> None:
    ranges = executor.server.capabilities.execution_capabilities.execution_priority_capabilities.priorities
    if not ranges:
        pytest.skip("no priorities are advertised")
    for priority in {bound for r in ranges for bound in (r.min_priority, r.max_priority)}:
        policy = {"execution_policy": {"priority": priority}, "results_cache_policy": {"priority": 1}}
        assert executor.result(executor.action("true"), **policy).exit_code == 0


@rule(MAY, "ExecuteOperationMetadata.partial_execution_metadata", "Of an action that runs it tells the worker.")
def test_partial_metadata_is_told(executor: Executor) -> None:
    stream, running = executor.started(executor.action("sleep 1"), Stage.EXECUTING)
    end = response_of(list(stream)[-1])
    assert metadata_of(running).partial_execution_metadata.worker == end.result.execution_metadata.worker


@rule(MAY, "ExecutedActionMetadata.auxiliary_metadata", "It tells what the action used, as a message that is named.")
def test_auxiliary_metadata_is_told(executor: Executor) -> None:
    told = executor.run("true").execution_metadata.auxiliary_metadata
    assert told
    assert all(detail.type_url.rpartition("/")[2] for detail in told)


@rule(MAY, "ExecuteResponse.message", "Something to show is said of an action that failed.")
@pytest.mark.parametrize("script", ["exit 3", "sleep 50"], ids=["exit code", "timeout"])
def test_a_message_is_told(executor: Executor, script: str) -> None:
    assert executor.response(executor.action(script, timeout={"seconds": 1})).message


# The cache.


@rule(MUST, "ExecuteResponse.cached_result", "The second time the result is the cache's, and says so.")
def test_a_result_is_cached(executor: Executor) -> None:
    action = executor.action("echo $$")
    first, second = executor.response(action), executor.response(action)
    assert (first.cached_result, second.cached_result) == (False, True)
    assert executor.stdout(first.result) == executor.stdout(second.result)
    assert executor.server.result(action).exit_code == 0


@rule(MUST, "ActionResult.execution_metadata", "A cached result tells of the execution that first produced it.")
def test_a_cached_result_tells_of_its_making(executor: Executor) -> None:
    action = executor.action("true")
    first = executor.result(action).execution_metadata
    assert executor.server.result(action).execution_metadata == first
    again = executor.response(action)
    assert not again.cached_result or again.result.execution_metadata == first


@rule(MUST, "ExecuteRequest.skip_cache_lookup", "The action runs although there is a result.")
def test_the_cache_is_skipped(executor: Executor) -> None:
    action = executor.action("cat /proc/sys/kernel/random/uuid")
    first = executor.stdout(executor.result(action))
    response = executor.response(action, skip_cache_lookup=True)
    assert not response.cached_result
    assert executor.stdout(response.result) != first


@rule(SHOULD, "ExecuteRequest.skip_cache_lookup", "The new result takes the older one's place.")
def test_the_cache_is_overwritten(executor: Executor) -> None:
    action = executor.action("cat /proc/sys/kernel/random/uuid")
    executor.result(action)
    second = executor.stdout(executor.result(action, skip_cache_lookup=True))
    assert executor.stdout(executor.result(action)) == second


@rule(MUST, "Action.do_not_cache", "The result is not cached: the action runs each time.")
def test_do_not_cache(executor: Executor) -> None:
    action = executor.action("cat /proc/sys/kernel/random/uuid", do_not_cache=True)
    responses = [executor.response(action) for _ in range(2)]
    assert not any(response.cached_result for response in responses)
    assert len({executor.stdout(response.result) for response in responses}) == 2
    refused(lambda: executor.server.result(action), Code.NOT_FOUND)


@rule(MUST, "Action.do_not_cache", "Requests in flight for the same action are not merged.")
def test_do_not_cache_is_not_merged(executor: Executor) -> None:
    action = executor.action("sleep 1; cat /proc/sys/kernel/random/uuid", do_not_cache=True)
    first, _ = executor.started(action, Stage.QUEUED)
    second, _ = executor.started(action, Stage.QUEUED)
    ends = [response_of(list(stream)[-1]) for stream in (first, second)]
    assert len({executor.stdout(end.result) for end in ends}) == 2


@rule(MAY, "Execute", "Requests in flight for the same action are merged.")
def test_equal_actions_are_merged(executor: Executor) -> None:
    action = executor.action("sleep 1; cat /proc/sys/kernel/random/uuid")
    first, _ = executor.started(action, Stage.QUEUED)
    second, _ = executor.started(action, Stage.QUEUED)
    ends = [response_of(list(stream)[-1]) for stream in (first, second)]
    assert len({executor.stdout(end.result) for end in ends}) == 1


@rule(SHOULD, "Action.salt", "Actions that differ in it alone are told apart.")
def test_salt(executor: Executor) -> None:
    script, root = f"cat /proc/sys/kernel/random/uuid # {fresh(8).hex()}", executor.folder()
    found = {executor.stdout(executor.run(script, root=root, salt=salt)) for salt in (b"1", b"2")}
    assert len(found) == 2


# Time.


@rule(MUST, "Action.timeout", "An action that takes longer is stopped: DEADLINE_EXCEEDED in ExecuteResponse.status.")
def test_a_timeout_is_enforced(executor: Executor) -> None:
    action = executor.action("echo begun; sleep 50", timeout={"seconds": 1})
    response = executor.response(action)
    assert response.status.code == DEADLINE
    assert not response.cached_result
    refused(lambda: executor.server.result(action), Code.NOT_FOUND)


@rule(MUST, "Action.timeout", "One that is over the server's maximum is rejected.")
def test_a_timeout_over_the_maximum(executor: Executor) -> None:
    status = executor.failure(executor.action("true", timeout={"seconds": 10 * 365 * 86400}))
    if not status.code:
        pytest.skip("the server has no maximum, or one over ten years")
    assert status.code == INVALID


@rule(SHOULD, "ExecutedActionMetadata", "The worker is named and the times are told, in their order.")
def test_times_are_told(executor: Executor) -> None:
    metadata = executor.run("true").execution_metadata
    assert metadata.worker
    names = (
        "queued_timestamp",
        "worker_start_timestamp",
        "input_fetch_start_timestamp",
        "input_fetch_completed_timestamp",
        "execution_start_timestamp",
        "execution_completed_timestamp",
        "output_upload_start_timestamp",
        "output_upload_completed_timestamp",
    )
    assert [name for name in names if not metadata.HasField(name)] == []
    moments = [getattr(metadata, name).ToNanoseconds() for name in names]
    assert moments == sorted(moments)
    assert metadata.worker_completed_timestamp.ToNanoseconds() >= moments[-1]


@rule(
    SHOULD,
    "ExecutedActionMetadata.virtual_execution_duration",
    "It is told, and is of the command, by the timeout's clock.",
)
def test_the_virtual_duration_is_told(executor: Executor) -> None:
    action = executor.action("sleep 1", timeout={"seconds": 20})
    begun = time.monotonic()
    duration = executor.result(action).execution_metadata.virtual_execution_duration
    assert 0.5 <= duration.ToNanoseconds() / 1e9 <= time.monotonic() - begun


# What is missing, and what is wrong.


@rule(MUST, "Execute", "Inputs that are absent are FAILED_PRECONDITION with a violation MISSING `blobs/HASH/SIZE`.")
def test_a_missing_input(executor: Executor) -> None:
    absent = executor.server.digest(fresh())
    root = executor.folder({"a": re.FileNode(digest=absent)})
    status = executor.failure(executor.action("cat a", root=root))
    assert status.code == PRECONDITION
    assert f"blobs/{text_of(absent)}" in missing_of(status)


@rule(SHOULD, "Execute", "Every input that is absent is named at once.")
def test_every_missing_input(executor: Executor) -> None:
    absent = [executor.server.digest(fresh()) for _ in range(3)]
    inner = executor.folder({"c": re.FileNode(digest=absent[2])})
    root = executor.folder(
        {"a": re.FileNode(digest=absent[0]), "b": re.FileNode(digest=absent[1])},
        directories=[re.DirectoryNode(name="d", digest=inner)],
    )
    status = executor.failure(executor.action("true", root=root))
    assert missing_of(status) == {f"blobs/{text_of(digest)}" for digest in absent}


@rule(MUST, "Execute", "An absent Action, Command or root is named in the same way.")
@pytest.mark.parametrize("what", ["action", "command", "root"])
def test_a_missing_message(executor: Executor, what: str) -> None:
    absent = executor.server.digest(fresh())
    match what:
        case "action":
            action = absent
        case "command":
            message = re.Action(command_digest=absent, input_root_digest=executor.folder())
            action = executor.server.put_message(message)
        case _:
            action = executor.action("true", root=absent)
    status = executor.failure(action)
    assert status.code == PRECONDITION
    assert missing_of(status) == {f"blobs/{text_of(absent)}"}


@rule(SHOULD, "Execute", "What can never run is refused by a code that no client repeats.")
@pytest.mark.parametrize(
    "what", ["no arguments", "no message", "absolute output", "output above", "absolute directory"]
)
def test_what_cannot_run(executor: Executor, what: str) -> None:
    match what:
        case "no arguments":
            command = executor.server.put_message(re.Command())
            message = re.Action(command_digest=command, input_root_digest=executor.folder(), salt=fresh())
            action = executor.server.put_message(message)
        case "no message":
            action = executor.server.put(b"\xff\xff\xff" + fresh())
        case "absolute output":
            action = executor.action("true", command={"output_paths": ["/tmp/conformance"]})
        case "output above":
            action = executor.action("true", command={"output_paths": ["../conformance"]})
        case _:
            action = executor.action("true", command={"working_directory": "/tmp"})
    assert executor.failure(action).code in PERMANENT


@rule(SHOULD, "Directory", "A name that leads out of its directory is refused.")
@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/tmp/x", ""])
def test_a_name_that_leads_out(executor: Executor, name: str) -> None:
    node = re.FileNode(name=name, digest=executor.server.put(b"x"))
    root = executor.server.put_message(re.Directory(files=[node]))
    assert executor.failure(executor.action("true", root=root)).code in PERMANENT


@rule(SHOULD, "Platform", "A property that no worker knows is rejected.")
def test_an_unknown_property(executor: Executor) -> None:
    name = f"conformance-{fresh(4).hex()}"
    status = executor.failure(executor.action("true", platform=[(name, "1")]))
    assert status.code in PERMANENT
    assert name in status.message


@pytest.mark.parametrize("outputs", [["a"], []], ids=["output", "none"])
@rule(SHOULD, "Command.output_node_properties", "A name that is not supported is INVALID_ARGUMENT.")
def test_an_unknown_node_property(executor: Executor, outputs: list[str]) -> None:
    command = {"output_paths": outputs, "output_node_properties": ["no-such-property"]}
    assert executor.failure(executor.action("echo a > a", command=command)).code == INVALID


@rule(MUST, "ExecuteRequest.digest_function", "One that executors do not support is refused.")
def test_an_unsupported_digest_function(executor: Executor) -> None:
    known = {*executor.server.functions, *executor.server.capabilities.execution_capabilities.digest_functions}
    unknown = next(f for f in re.DigestFunction.Value.values() if f and f not in known)
    status = executor.failure(executor.action("true"), digest_function=unknown)
    assert status.code in PERMANENT


# Waiting, looking and stopping.


@rule(MUST, "WaitExecution", "Its first message comes at once and is the present state; the last is the result.")
def test_waiting_tells_at_once(executor: Executor) -> None:
    stream, begun = executor.started(executor.action("sleep 2; echo end"), Stage.QUEUED)
    stream.close()  # type: ignore[attr-defined]
    messages = list(executor.wait(begun.name))
    assert not messages[0].done
    assert {message.name for message in messages} == {begun.name}
    assert executor.stdout(response_of(messages[-1]).result) == b"end\n"


@rule(SHOULD, "WaitExecution", "An operation that ended a moment ago tells its result.")
def test_waiting_for_what_has_ended(executor: Executor) -> None:
    end = list(executor.execute(executor.action("echo late")))[-1]
    messages = list(executor.wait(end.name))
    assert executor.stdout(response_of(messages[-1]).result) == b"late\n"


@rule(MUST, "WaitExecution", "An operation that is not known is NOT_FOUND, so that the client executes again.")
def test_waiting_for_nothing(executor: Executor) -> None:
    with pytest.raises(grpc.RpcError) as told:
        list(executor.wait(f"operations/{fresh(16).hex()}"))
    assert status_of(told.value).code == ABSENT


@rule(SHOULD, "Operations.GetOperation", "It tells the present state of an operation.")
def test_an_operation_is_told(executor: Executor) -> None:
    end = list(executor.execute(executor.action("true")))[-1]
    found = executor.operation("GetOperation", op.GetOperationRequest(name=end.name), op.Operation)
    assert (found.name, found.done) == (end.name, True)


@rule(SHOULD, "Operations.CancelOperation", "An operation that is cancelled ends with CANCELLED in its response.")
def test_an_operation_is_cancelled(executor: Executor) -> None:
    stream, begun = executor.started(executor.action("sleep 50"), Stage.QUEUED)
    executor.cancel(begun.name)
    try:
        status = response_of(list(stream)[-1]).status
    except grpc.RpcError as error:
        status = status_of(error)
    assert status.code == CANCELLED


@rule(SHOULD, "Operations.CancelOperation", "Who waits for the same action beside the one that is cancelled gets it.")
def test_others_are_not_cancelled(executor: Executor) -> None:
    action = executor.action("sleep 2; echo kept")
    one, first = executor.started(action, Stage.QUEUED)
    other, second = executor.started(action, Stage.QUEUED)
    if first.name == second.name:
        pytest.skip("those who are merged have one operation")
    executor.cancel(first.name)
    assert executor.stdout(response_of(list(other)[-1]).result) == b"kept\n"
    list(one)


@rule(SHOULD, "Execute", "A client that goes away leaves its operation to be waited for.")
def test_a_client_that_goes_away(executor: Executor) -> None:
    stream, begun = executor.started(executor.action("sleep 1; echo still"), Stage.QUEUED)
    stream.close()  # type: ignore[attr-defined]
    assert executor.stdout(response_of(list(executor.wait(begun.name))[-1]).result) == b"still\n"


@rule(MUST, "ExecutionCapabilities", "A server that executes says so, with a digest function that it stores by.")
def test_it_says_so(executor: Executor, server: Server) -> None:
    assert server.capabilities.execution_capabilities.digest_function in server.functions
