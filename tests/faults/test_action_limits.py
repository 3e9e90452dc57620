"""Actions that pass each limit on purpose, or leave what nobody can keep: each is named with its remedy, and nothing of
them stays.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path

import pytest

from buildnet._native import NativeError, Store, collect, probe_isolation, undeclared_writes
from buildnet.model.action import Outcome
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.actions import digest_message, digest_of
from buildnet.wire.usage import effects_of
from tests.flow.test_worker import Bench, bench, result_of, sh  # noqa: F401 - `bench` is a fixture
from tests.processes import running_with

PYTHON = "/usr/bin/python3"
needs_python = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"no {PYTHON} here")
needs_groups = pytest.mark.skipif(
    not (probe_isolation()["cgroup_memory"] and probe_isolation()["cgroup_pids"]), reason="no control groups here"
)

STRICT = re.Platform(properties=[re.Platform.Property(name="effect:write", value="declared")])


async def run(
    bench: Bench,  # noqa: F811
    command: re.Command,
    files: dict[str, bytes] | None = None,
    *,
    timeout_s: float = 60.0,
    platform: re.Platform | None = None,
    **amounts: int,
) -> Outcome:
    """One attempt whose lease counts `amounts`."""
    action = {} if platform is None else {"platform": platform}
    digest = await asyncio.to_thread(bench.push, command, files or {}, **action)
    return await bench.attempt(digest, timeout_s=timeout_s, **amounts)


def report_of(outcome: Outcome) -> action_pb2.EffectReport:
    report = effects_of(result_of(outcome))
    assert report is not None
    return report


@needs_groups
async def test_memory(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh("head -c 400M /dev/zero | tail"), memory_bytes=64 << 20)
    assert outcome.code == "too_large", outcome
    assert f"more memory than the worker allows ({64 << 20} bytes)" in outcome.message
    assert report_of(outcome).limit_hit == "memory"


@needs_groups
@needs_python
async def test_processes(bench: Bench) -> None:  # noqa: F811
    script = "import os, signal\nfor _ in range(500):\n  if os.fork() == 0: signal.pause()"
    outcome = await run(bench, re.Command(arguments=[PYTHON, "-S", "-c", script]))
    assert outcome.code == "too_large", outcome
    assert "more processes than the worker allows (100)" in outcome.message
    assert report_of(outcome).limit_hit == "pids"


@pytest.mark.parametrize(
    "script",
    [
        # One file: the kernel stops it.
        "exec head -c 64M /dev/zero > big",
        # Many files, which only a look can add up; then it waits to be stopped.
        "for i in 1 2 3 4 5 6 7 8; do head -c 4M /dev/zero > $i; done; sleep 60",
        # It has ended before anybody looked.
        "for i in 1 2 3 4 5 6 7 8; do head -c 4M /dev/zero > $i; done",
    ],
    ids=["one", "many", "fast"],
)
async def test_disk(bench: Bench, script: str) -> None:  # noqa: F811
    outcome = await run(bench, sh(script), disk_bytes=16 << 20)
    assert outcome.code == "too_large", outcome
    assert f"({16 << 20} bytes)" in outcome.message
    assert "resource:disk_bytes" in outcome.message
    assert report_of(outcome).limit_hit == "disk"


@pytest.mark.skipif(not probe_isolation()["namespaces"], reason="this kernel refuses namespaces")
@pytest.mark.parametrize("bench", ["namespaces"], indirect=True)
async def test_disk_of_its_own_tmp_counts(bench: Bench) -> None:  # noqa: F811
    outcome = await run(
        bench, sh("for i in 1 2 3 4 5 6 7 8; do head -c 4M /dev/zero > /tmp/$i; done; sleep 60"), disk_bytes=16 << 20
    )
    assert outcome.code == "too_large", outcome


async def test_five_gibibytes_of_log(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh("head -c 5G /dev/zero"))
    assert outcome.code == "too_large", outcome
    assert "write to an output file" in outcome.message
    assert result_of(outcome).stdout_digest.size_bytes <= 1 << 20
    assert report_of(outcome).limit_hit == "log"


async def test_wall_time_of_one_that_ignores_signals_and_hides(bench: Bench) -> None:  # noqa: F811
    mark = f"1{os.getpid()}.4321"
    script = f"trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; setsid sleep {mark} & sleep {mark}' & sleep {mark}"
    outcome = await run(bench, sh(script), timeout_s=0.5)
    assert outcome.code == "deadline_passed", outcome
    assert report_of(outcome).limit_hit == "wall"
    assert not list(running_with(mark))


@needs_python
async def test_zombies_and_daemons_of_one_that_ends_well(bench: Bench) -> None:  # noqa: F811
    mark = f"2{os.getpid()}.4321"
    script = f"""
import os
for _ in range(50):
    if os.fork() == 0: os._exit(0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: os.execv("/bin/sleep", ["sleep", "{mark}"])
    os._exit(0)
"""
    outcome = await run(bench, re.Command(arguments=[PYTHON, "-S", "-c", script]))
    assert (outcome.code, outcome.exit_code) == ("ok", 0), outcome
    assert not list(running_with(mark))


async def test_a_hundred_thousand_outputs(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh("mkdir d; cd d; seq 100001 | xargs touch", "d"))
    assert outcome.code == "too_large", outcome
    assert "more than 100000 files" in outcome.message


@needs_python
async def test_a_path_that_nobody_can_open(bench: Bench) -> None:  # noqa: F811
    script = "import os\nos.mkdir('d')\nos.chdir('d')\nfor _ in range(17): os.mkdir('x' * 250); os.chdir('x' * 250)"
    outcome = await run(bench, re.Command(arguments=[PYTHON, "-S", "-c", script], output_paths=["d"]))
    assert outcome.code == "output_invalid", outcome
    assert "over the limit of 4096" in outcome.message
    assert len(outcome.message) < 1000


@pytest.mark.parametrize(
    ("script", "named", "why"),
    [
        ("touch \"d/$(printf 'a\\377')\"", "d/a", "not UTF-8"),
        ("mkfifo d/p", "d/p", "fifo"),
        ("mkfifo d/p; mv d/p d/q", "d/q", "fifo"),
        (f"{PYTHON} -S -c \"import socket; socket.socket(socket.AF_UNIX).bind('d/s')\"", "d/s", "socket"),
        ("ln -s /etc/passwd d/l", "d/l", "absolute"),
        ("ln -s ../../x d/l", "d/l", "leaves the execution root"),
    ],
)
async def test_an_output_that_is_no_file(bench: Bench, script: str, named: str, why: str) -> None:  # noqa: F811
    outcome = await run(bench, sh(f"mkdir d; {script}", "d"))
    assert outcome.code == "output_invalid", outcome
    assert named in outcome.message
    assert why in outcome.message


async def test_no_action_makes_a_device(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh("mkdir d; mknod d/n c 1 3", "d"))
    assert (outcome.code, outcome.exit_code) == ("ok", 1), outcome


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK], ids=["character", "block"])
def test_an_output_that_is_a_device(tmp_path: Path, kind: int) -> None:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "work/d").mkdir(parents=True)
    os.mknod(tmp_path / "work/d/n", kind, os.makedev(7, 200))
    command = re.Command(arguments=["true"], output_paths=["d"]).SerializeToString()
    with pytest.raises(NativeError, match=r"d/n.*device") as raised:
        collect(store, str(tmp_path / "work"), command)
    assert raised.value.code == "output_invalid"
    store.close()


async def test_an_output_that_sets_an_identity_is_a_plain_program(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh("cp /bin/true s; chmod 6755 s", "s"))
    (file,) = result_of(outcome).output_files
    assert (file.path, file.is_executable) == ("s", True)
    assert file.node_properties.unix_mode.value & 0o7000 == 0


@needs_python
@pytest.mark.parametrize("bench", ["process"], indirect=True)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
async def test_a_daemon_that_became_another_user_is_killed(bench: Bench) -> None:  # noqa: F811
    # As what a set-uid program leaves behind.
    mark = f"3{os.getpid()}.4321"
    script = f"""
import os
if os.fork() == 0:
    os.setsid()
    os.setgid(65534)
    os.setuid(65534)
    if os.fork() == 0: os.execv("/bin/sleep", ["sleep", "{mark}"])
    os._exit(0)
os.wait()
"""
    outcome = await run(bench, re.Command(arguments=[PYTHON, "-S", "-c", script]))
    assert (outcome.code, outcome.exit_code) == ("ok", 0), outcome
    assert not list(running_with(mark))


async def test_a_loop_of_symlinks_is_kept_as_it_is(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh("mkdir d; ln -s b d/a; ln -s a d/b; ln -s . d/self", "d"))
    assert outcome.code == "ok", outcome
    (directory,) = result_of(outcome).output_directories
    tree = re.Tree.FromString(bench.blob(directory.tree_digest))
    assert [(link.name, link.target) for link in tree.root.symlinks] == [("a", "b"), ("b", "a"), ("self", ".")]


def test_an_output_that_changes_while_it_is_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    work = tmp_path / "work"
    work.mkdir()
    command = re.Command(arguments=["true"], output_paths=["out"]).SerializeToString()
    ended = threading.Event()
    with (work / "out").open("wb") as file:
        file.truncate(64 << 20)
        begun = threading.Event()

        def change() -> None:
            while not ended.is_set():
                os.pwrite(file.fileno(), os.urandom(8), 0)
                begun.set()

        writer = threading.Thread(target=change)
        writer.start()
        try:
            assert begun.wait(30)
            with pytest.raises(NativeError, match="changed while it was read") as raised:
                collect(store, str(work), command)
        finally:
            ended.set()
            writer.join()
    assert raised.value.code == "output_invalid"
    store.close()


async def test_a_lease_bounds_what_it_counts_and_the_result_says_how(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh("true"), cpu_milli=500, memory_bytes=256 << 20, disk_bytes=1 << 30)
    kept = {limit.name: limit.by for limit in report_of(outcome).limits}
    assert set(kept) == {"memory", "pids", "cpu", "share", "disk"}
    assert kept["disk"] == "watched"
    assert kept["cpu"] == "unset"
    assert kept["memory"] in ("cgroup1", "cgroup2", "rlimit")
    assert kept["share"] in ("cgroup1", "cgroup2", "none")


async def test_what_it_could_do_is_told(bench: Bench) -> None:  # noqa: F811
    report = report_of(await run(bench, sh("true")))
    assert report.limit_hit == ""
    granted = {effect.name: (effect.level, effect.enforced) for effect in report.effects}
    apart = report.isolation == "namespaces"
    assert granted["read"] == ("declared", apart)
    assert granted["network"] == ("none", apart)
    assert granted["write"] == ("ambient", True)
    assert granted["clock"] == granted["random"] == ("ambient", True)
    assert (report.undeclared_write_count, list(report.undeclared_writes)) == (0, [])


WRITES = "echo o > out; echo x > extra; mkdir -p made/in; echo more >> input; rm sub/gone; ln -s a link"
FILES = {"input": b"text", "sub/gone": b"", "sub/kept": b"1"}


async def test_undeclared_writes_are_told(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh(WRITES, "out", "deep/er/out"), FILES)
    assert outcome.code == "ok", outcome
    report = report_of(outcome)
    assert list(report.undeclared_writes) == ["extra", "input", "link", "made/", "sub/gone"]
    assert report.undeclared_write_count == 5
    assert not report.undeclared_writes_partial


async def test_undeclared_writes_are_refused_where_writes_are_declared(bench: Bench) -> None:  # noqa: F811
    outcome = await run(bench, sh(WRITES, "out"), FILES, platform=STRICT)
    assert outcome.code == "output_invalid", outcome
    assert "extra, input, link, made/, sub/gone" in outcome.message
    clean = await run(bench, sh("cat input > out; mkdir d; touch d/any", "out", "d"), FILES, platform=STRICT)
    assert clean.code == "ok", clean


def test_an_upper_directory_holds_exactly_what_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    digests = {name: store.put_bytes(name.encode()) for name in ("changed", "gone", "kept")}
    inside = re.Directory(files=[node(name, digest) for name, digest in digests.items()])
    root = re.Directory(directories=[re.DirectoryNode(name="sub", digest=message(store, inside))])
    upper = tmp_path / "upper"
    (upper / "sub").mkdir(parents=True)
    (upper / "sub/changed").write_text("changed")
    (upper / "sub/made").touch()
    (upper / "out").touch()
    # overlayfs.rst: a whiteout is a device of number 0.
    os.mknod(upper / "sub/gone", stat.S_IFCHR, os.makedev(0, 0))
    command = re.Command(arguments=["true"], output_paths=["out"]).SerializeToString()
    root_text = digest_of(message(store, root)).text
    begun_unix_ns = 1 << 62
    written = undeclared_writes(store, root_text, str(upper), command, begun_unix_ns, upper=True)
    assert written == (["sub/changed", "sub/gone", "sub/made"], 3, True)
    # Without it what is not there counts as gone, and what is older as untouched.
    written = undeclared_writes(store, root_text, str(upper), command, begun_unix_ns)
    assert written == (["sub/gone", "sub/kept", "sub/made"], 3, True)
    store.close()


def message(store: Store, directory: re.Directory) -> re.Digest:
    return digest_message(Digest.parse(store.put_bytes(directory.SerializeToString(deterministic=True))))


def node(name: str, digest: str) -> re.FileNode:
    return re.FileNode(name=name, digest=digest_message(Digest.parse(digest)))


async def test_a_thousand_undeclared_writes_are_counted_and_a_hundred_named(bench: Bench) -> None:  # noqa: F811
    report = report_of(await run(bench, sh("seq 1000 | xargs touch")))
    assert (report.undeclared_write_count, len(report.undeclared_writes)) == (1000, 100)
