"""What every backend of buildnet.sandbox does alike, run against each that this kernel allows; then what the one with
namespaces keeps from a command.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from buildnet._native import NativeError, probe_isolation, remove_tree
from buildnet.sandbox import EXECUTION_ROOT, Ending, Place, Running, Sandbox
from buildnet.sandbox.namespaces import NamespaceSandbox
from buildnet.sandbox.policy import Limits, Plan
from buildnet.sandbox.process import ProcessSandbox
from buildnet.sandbox.toolchain import toolchain_of
from tests.processes import running_with

BACKENDS: dict[str, type[NamespaceSandbox] | type[ProcessSandbox]] = {
    "namespaces": NamespaceSandbox,
    "process": ProcessSandbox,
}

# The interpreter itself: a virtual environment may lie below /tmp, and actions have a /tmp of their own.
PYTHON = os.path.realpath(sys.executable)
TOOLCHAIN = toolchain_of([os.path.realpath(sys.base_prefix)])


needs_groups = pytest.mark.skipif(not probe_isolation()["cgroup_memory"], reason="no control group bounds memory here")


@dataclass
class Ran:
    """A command that has ended."""

    ending: Ending
    stdout: bytes
    stderr: bytes
    live: list[tuple[int, int, bytes]] = field(default_factory=list)


@dataclass
class Bench:
    """One backend and a place to run in."""

    sandbox: Sandbox
    directory: Path
    started: list[Running] = field(default_factory=list)

    @property
    def place(self) -> Place:
        d = self.directory
        return Place(
            root=str(d / "root"),
            cwd=str(d / "root"),
            tmp=str(d / "tmp"),
            stdout_path=str(d / "stdout"),
            stderr_path=str(d / "stderr"),
            name=f"test-{id(self):x}-{len(self.started)}",
        )

    def plan(self, *argv: str, **changes: object) -> Plan:
        plan = Plan(
            argv=argv,
            env=(("PATH", "/usr/bin:/bin"),),
            isolation=self.sandbox.isolation,  # type: ignore[arg-type]
            network=False,
            timeout_s=20.0,
            limits=Limits(log_size_bytes_max=1 << 20),
            shown=TOOLCHAIN,
        )
        return replace(plan, **changes)  # type: ignore[arg-type]

    def start(self, plan: Plan) -> Running:
        running = self.sandbox.start(plan, self.place)
        self.started.append(running)
        return running

    def run(self, *argv: str, **changes: object) -> Ran:
        return self.finish(self.start(self.plan(*argv, **changes)))

    def sh(self, script: str, **changes: object) -> Ran:
        return self.run("/bin/sh", "-c", script, **changes)

    def finish(self, running: Running) -> Ran:
        live: list[tuple[int, int, bytes]] = []
        deadline_s = time.monotonic() + 30
        while True:
            ending = running.poll()
            chunks = running.read_logs()
            live += chunks
            if ending is not None and not chunks:
                break
            if not chunks:
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, "the command did not end"
                select.select([running.fd], [], [], left_s)
        d = self.directory
        return Ran(ending, (d / "stdout").read_bytes(), (d / "stderr").read_bytes(), live)


@contextmanager
def bench_of(isolation: str, directory: Path) -> Iterator[Bench]:
    if isolation == "namespaces" and not probe_isolation()["namespaces"]:
        pytest.skip("this kernel refuses namespaces")
    (directory / "root").mkdir()
    (directory / "tmp").mkdir()
    bench = Bench(BACKENDS[isolation](), directory)
    yield bench
    for running in bench.started:
        running.kill("killed")
    remove_tree(str(directory / "root"))


@pytest.fixture(params=sorted(BACKENDS))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with bench_of(request.param, tmp_path) as bench:
        yield bench


@pytest.fixture
def confined(tmp_path: Path) -> Iterator[Bench]:
    with bench_of("namespaces", tmp_path) as bench:
        yield bench


def test_it_runs_the_arguments_in_the_place_and_tells_the_exit_code(bench: Bench) -> None:
    ran = bench.sh("pwd; echo oops >&2; exit 3")
    assert (ran.ending.exit_code, ran.ending.reason) == (3, "")
    cwd = EXECUTION_ROOT if bench.sandbox.isolation == "namespaces" else bench.place.cwd
    assert ran.stdout.decode().strip() == cwd
    assert ran.stderr == b"oops\n"
    assert ran.ending.isolation == bench.sandbox.isolation
    assert ran.ending.wall_s > 0


def test_the_environment_is_exactly_the_plans(bench: Bench) -> None:
    ran = bench.run("/usr/bin/env", env=(("A", "1"), ("B", "x y")))
    assert sorted(ran.stdout.decode().splitlines()) == ["A=1", "B=x y"]


def test_there_is_nothing_to_read_on_stdin(bench: Bench) -> None:
    assert bench.sh("cat").stdout == b""


def test_what_it_writes_in_its_root_stays(bench: Bench) -> None:
    assert bench.sh("mkdir -p a/b && echo hi > a/b/out").ending.exit_code == 0
    assert (bench.directory / "root/a/b/out").read_text() == "hi\n"


def test_logs_come_while_it_runs_in_order_and_whole(bench: Bench) -> None:
    running = bench.start(bench.plan("/bin/sh", "-c", "seq 2000; seq 2000 >&2; seq 9"))
    ran = bench.finish(running)
    for number, text in ((1, ran.stdout), (2, ran.stderr)):
        position = 0
        for stream, offset, data in ran.live:
            if stream == number:
                assert offset == position
                position += len(data)
        assert b"".join(d for s, _, d in ran.live if s == number) == text
    assert (ran.ending.stdout_bytes, ran.ending.stderr_bytes) == (len(ran.stdout), len(ran.stderr))


def test_the_first_log_does_not_wait_for_the_end(bench: Bench) -> None:
    running = bench.start(bench.plan("/bin/sh", "-c", "echo first; sleep 30"))
    while not (chunks := running.read_logs()):
        assert running.poll() is None
        ready, _, _ = select.select([running.fd], [], [], 10)
        assert ready
    assert chunks == [(1, 0, b"first\n")]
    running.kill("killed")
    assert bench.finish(running).ending.reason == "killed"


def test_a_signal_is_told_as_shells_do(bench: Bench) -> None:
    ending = bench.sh("kill -SEGV $$").ending
    assert (ending.exit_code, ending.reason) == (128 + 11, "")


def test_it_is_stopped_when_its_time_is_over(bench: Bench) -> None:
    ran = bench.sh("echo before; sleep 30; echo after", timeout_s=0.3)
    assert ran.ending.reason == "timeout"
    assert ran.stdout == b"before\n"
    assert ran.ending.wall_s < 10


def test_too_much_output_stops_it_and_is_cut(bench: Bench) -> None:
    ran = bench.sh("yes", limits=Limits(log_size_bytes_max=1 << 16))
    assert ran.ending.reason == "log_limit"
    assert len(ran.stdout) <= 1 << 16


def test_too_much_memory_stops_it(bench: Bench) -> None:
    program = "b = bytearray(600 << 20); print(len(b))"
    limits = Limits(memory_bytes=100 << 20)
    ran = bench.run(PYTHON, "-S", "-c", program, limits=limits)
    assert ran.ending.reason == "memory" or ran.ending.exit_code != 0
    assert b"629145600" not in ran.stdout


@needs_groups
def test_a_process_killed_for_memory_is_told_whatever_the_command_makes_of_it(bench: Bench) -> None:
    # With cgroup v2 all of it is killed, with v1 one process: the shell goes on, and ends well without what that one
    # would have done.
    ran = bench.sh("head -c 600M /dev/zero | tail -n 1; exit 0", limits=Limits(memory_bytes=100 << 20))
    assert ran.ending.reason == "memory"


def test_a_file_cut_at_the_limit_is_told_whatever_the_command_makes_of_it(bench: Bench) -> None:
    # `head` is killed or told, and leaves half a file; that must not pass for the output of a command that ended well.
    ran = bench.sh("head -c 3M /dev/zero > cut; exit 0", limits=Limits(disk_bytes=1 << 20))
    assert (ran.ending.exit_code, ran.ending.reason) == (0, "disk")
    whole = bench.sh("rm -f cut; head -c 1000000 /dev/zero > whole", limits=Limits(disk_bytes=1 << 20))
    assert (whole.ending.exit_code, whole.ending.reason) == (0, "")


def test_a_fork_bomb_is_bounded(bench: Bench) -> None:
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: os._exit(9)"
    ran = bench.run(PYTHON, "-S", "-c", bomb, limits=Limits(pids_max=40), timeout_s=5.0)
    assert ran.ending.reason in ("pids", "timeout", "")
    assert ran.ending.exit_code != 0 or ran.ending.reason
    assert ran.ending.wall_s < 20


# Looks for a key of its user's and leaves one, as a program of a login session would; 248 and 250 are those of x86-64.
KEYS = """
import ctypes, os, sys
call = ctypes.CDLL(None, use_errno=True).syscall
add, control, user_keyring, search = *((248, 250) if os.uname().machine == "x86_64" else (217, 219)), -4, 10
print(call(control, search, user_keyring, b"user", b"buildnet-test", 0) >= 0)
print(call(add, b"user", b"buildnet-test", b"secret", 6, user_keyring) >= 0, ctypes.get_errno())
"""


def test_keyrings_carry_nothing_from_one_action_to_the_next(bench: Bench) -> None:
    for _ in range(2):
        ran = bench.run(PYTHON, "-S", "-c", KEYS)
        assert ran.stdout.decode().split() == ["False", "False", str(errno.ENOSYS)], ran


# Families that no network namespace holds: 40 is vsock(7), by which a virtual machine speaks with its host.
SOCKETS = """
import errno, socket
for family, kind in ((1, 1), (2, 1), (10, 2), (16, 3), (40, 1), (38, 5)):
    try: print(family, "there" if socket.socket(family, kind) else "")
    except OSError as error: print(family, errno.errorcode[error.errno])
"""


def test_only_sockets_that_a_network_namespace_holds_are_there(bench: Bench) -> None:
    found = dict(line.split() for line in bench.run(PYTHON, "-S", "-c", SOCKETS).stdout.decode().splitlines())
    assert (found.pop("40"), found.pop("38")) == ("EAFNOSUPPORT", "EAFNOSUPPORT")
    # The machine may have no IPv6.
    assert found | {"10": "there"} == dict.fromkeys(("1", "2", "10", "16"), "there")


def test_nothing_it_started_outlives_it(bench: Bench) -> None:
    mark = "98765.4321"
    ran = bench.sh(f"sleep {mark} & (setsid sleep {mark} &) ; exit 0")
    assert ran.ending.exit_code == 0
    assert not list(running_with(mark))


def test_kill_ends_it_with_all_that_it_started(bench: Bench) -> None:
    mark = "87654.3219"
    script = f"sleep {mark} & setsid sleep {mark} & echo up; wait"
    running = bench.start(bench.plan("/bin/sh", "-c", script))
    while not running.read_logs():
        select.select([running.fd], [], [], 10)
    running.kill("killed")
    running.kill("killed")
    assert bench.finish(running).ending.reason == "killed"
    assert not list(running_with(mark))


def test_a_program_that_is_not_there_starts_nothing(bench: Bench) -> None:
    with pytest.raises(NativeError, match="no-such-program"):
        bench.run("no-such-program")


def test_a_backend_refuses_another_ones_plan(bench: Bench) -> None:
    other = "process" if bench.sandbox.isolation == "namespaces" else "namespaces"
    with pytest.raises(Exception, match="was given to"):
        bench.run("/bin/true", isolation=other)


INTERFACES = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"


@pytest.mark.parametrize(("network", "check"), [(False, set.__eq__), (True, set.__le__)])
def test_the_network_is_there_only_when_granted(
    confined: Bench, network: bool, check: Callable[[set[str], set[str]], bool]
) -> None:
    assert check({"lo"}, set(confined.sh(INTERFACES, network=network).stdout.decode().split()))


def test_loopback_works_without_a_network(confined: Bench) -> None:
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(s.getsockname()); print('ok')"
    )
    assert confined.run(PYTHON, "-S", "-c", program).stdout == b"ok\n"


def test_tmp_is_its_own(confined: Bench) -> None:
    ran = confined.sh("ls -A /tmp | grep -v '^pytest' ; echo hi > /tmp/mine; cat /tmp/mine")
    assert ran.stdout.endswith(b"hi\n")
    assert not Path("/tmp/mine").exists()


def test_devices_work_and_stay_as_the_machine_has_them(confined: Bench) -> None:
    # Whose user is root owns them, and needs no capability to take them from everybody else.
    before = os.stat("/dev/full")
    try:
        ran = confined.sh(
            "chmod 600 /dev/full; touch -d @0 /dev/full; echo x > /dev/null && head -c 3 /dev/zero | wc -c"
        )
        after = os.stat("/dev/full")
        assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
        assert ran.stdout.split() == [b"3"]
        assert ran.stderr.count(b"Read-only file system") == 2
    finally:
        os.chmod("/dev/full", before.st_mode & 0o7777)


def test_the_machine_is_read_only(confined: Bench) -> None:
    outside = confined.directory / "outside"
    outside.mkdir()
    ran = confined.sh(f"echo x > {outside}/x; echo x > /etc/buildnet-was-here; exit 0")
    assert not list(outside.iterdir())
    assert not Path("/etc/buildnet-was-here").exists()
    assert ran.stderr


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory of the machine that is not below /tmp, which every command has of its own."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        yield Path(directory)


@pytest.mark.parametrize("shown", ["/", "path", "parent"])
def test_hidden_directories_appear_empty(confined: Bench, elsewhere: Path, shown: str) -> None:
    secrets = elsewhere / "secrets"
    secrets.mkdir()
    (secrets / "key").write_text("secret")
    paths = {"/": ("/",), "path": (*TOOLCHAIN, str(secrets)), "parent": (*TOOLCHAIN, str(elsewhere))}
    place = replace(confined.place, hidden=(str(secrets),))
    plan = confined.plan("/bin/sh", "-c", f"ls {secrets} && echo there; cat {secrets}/key", shown=paths[shown])
    running = confined.sandbox.start(plan, place)
    confined.started.append(running)
    assert confined.finish(running).stdout == b"there\n"


def test_only_what_is_shown_is_there(confined: Bench, elsewhere: Path) -> None:
    (elsewhere / "file").write_text("content")
    home = Path.home()
    script = f"ls -A / /var /etc; cat {elsewhere}/file; ls {home} /home /srv /run /mnt /boot /sys"
    ran = confined.sh(script)
    names = set(ran.stdout.decode().split())
    assert {"usr", "etc", "tmp", "buildnet", "passwd", "ld.so.cache"} <= names
    assert not names & {"home", "srv", "run", "mnt", "boot", "sys", "lib/", "shadow", "pip.conf", "content", "log"}
    assert b"content" not in ran.stdout
    ran = confined.sh(f"cat {elsewhere}/file; ls -A {elsewhere.parent}", shown=toolchain_of([str(elsewhere)]))
    # The way to it is there, and nothing else beside the way.
    assert ran.stdout.decode() == f"content{elsewhere.name}\n"


def test_what_is_shown_cannot_be_written_or_replaced(confined: Bench, elsewhere: Path) -> None:
    (elsewhere / "file").write_text("content")
    script = f"echo x > {elsewhere}/file; rm -rf {elsewhere}; mkdir /new; echo x > /etc/passwd; mv /usr /other; exit 0"
    ran = confined.sh(script, shown=(*TOOLCHAIN, str(elsewhere)))
    assert (elsewhere / "file").read_text() == "content"
    assert ran.stderr.count(b"Read-only") + ran.stderr.count(b"busy") >= 4, ran.stderr


def test_the_whole_machine_is_there_when_it_is_shown(confined: Bench, elsewhere: Path) -> None:
    (elsewhere / "file").write_text("content")
    ran = confined.sh(f"cat {elsewhere}/file; echo x > {elsewhere}/file", shown=("/",))
    assert ran.stdout == b"content"
    assert (elsewhere / "file").read_text() == "content"


@pytest.mark.parametrize(
    "argv",
    [
        ("gcc", "-x", "c", "-o", "out", "-", "-lm"),
        ("g++", "--version"),
        ("/usr/bin/python3", "-c", "import ssl, ctypes, json, tempfile; tempfile.mkstemp()"),
        ("node", "-e", "require('os').tmpdir()"),
        ("perl", "-e", "use POSIX; print 1"),
        ("java", "-version"),
        ("git", "--version"),
        ("make", "--version"),
        ("bash", "-c", "cat <<< here; id -un"),
    ],
    ids=lambda argv: argv[0],
)
def test_usual_tools_work(confined: Bench, argv: tuple[str, ...]) -> None:
    if shutil.which(argv[0], path="/usr/bin:/bin") is None:
        pytest.skip(f"{argv[0]} is not installed here")
    ran = confined.run(*argv)
    if argv[0] == "gcc":
        # An empty program has no main: the linker was reached.
        assert b"undefined reference to `main'" in ran.stderr
    else:
        assert ran.ending.exit_code == 0, ran.stderr


def test_a_compiler_builds_a_program_that_runs(confined: Bench) -> None:
    (confined.directory / "root/hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); }\n')
    ran = confined.sh("gcc -g hello.c -o hello && ./hello")
    assert ran.stdout == b"hello\n", ran.stderr
    # What a tool writes down of where it ran is the same in every run.
    assert EXECUTION_ROOT.encode() in (confined.directory / "root/hello").read_bytes()


def test_it_is_nobody_in_particular(confined: Bench) -> None:
    ran = confined.sh("cut -d: -f1,6 /etc/passwd; id -un; echo ~root; uname -n")
    assert ran.stdout.decode().split()[-2:] == ["/tmp", "buildnet"]
    assert set(ran.stdout.decode().split()[:-3]) <= {"root:/tmp", "build:/tmp", "nobody:/nonexistent"}


def test_there_are_few_devices_and_no_terminal(confined: Bench) -> None:
    ran = confined.sh("ls /dev; head -c 3 /dev/zero | wc -c; echo x > /dev/full; echo x > /dev/shm/x && echo shm")
    *names, count, shm = ran.stdout.decode().split()
    usual = "fd full null ptmx pts random shm stderr stdin stdout urandom zero"
    assert (sorted(names), count, shm) == (usual.split(), "3", "shm")
    # dash says "I/O error" for any: /dev/full took nothing.
    assert b"error" in ran.stderr or b"No space" in ran.stderr
    assert confined.sh("ls /dev/shm").stdout == b""


def test_of_devices_it_has_those_that_it_is_given_and_no_others(confined: Bench, tmp_path: Path) -> None:
    try:
        for number in range(3):
            os.mknod(tmp_path / f"nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError as error:
        pytest.skip(f"no device files can be made here: {error}")
    given = tuple((str(tmp_path / name), f"/dev/{name}") for name in ("nvidia0", "nvidia2"))
    script = "cd /dev; ls -d nvidia*; head -c 2 nvidia2 | od -An -tx1; echo x > nvidia0; chmod 0 nvidia2; echo $?"
    ran = confined.sh(script, devices=given)
    assert ran.stdout.split() == [b"nvidia0", b"nvidia2", b"00", b"00", b"1"], ran.stderr
    assert confined.sh("ls /dev | grep nvidia").stdout == b""
    for source, target in ((str(tmp_path / "nvidia9"), "/dev/nvidia9"), (given[0][0], "/etc/nvidia0")):
        with pytest.raises(NativeError):
            confined.finish(confined.start(confined.plan("/bin/true", devices=((source, target),))))


def test_names_of_machines_are_known_only_with_a_network(confined: Bench) -> None:
    assert confined.sh("cat /etc/hosts").stdout == b"127.0.0.1 localhost buildnet\n::1 localhost\n"
    shown = (*TOOLCHAIN, "/etc/hosts")
    assert confined.sh("cat /etc/hosts", shown=shown).stdout == Path("/etc/hosts").read_bytes()


def test_no_set_uid_program_and_no_device_works(confined: Bench) -> None:
    ran = confined.sh("cp /bin/sh s; chmod 6755 s; ./s -c 'grep NoNewPrivs /proc/self/status'; mknod n c 1 3; cat n")
    assert ran.stdout.split() == [b"NoNewPrivs:", b"1"]
    assert not (confined.directory / "root/n").exists()


def test_its_own_root_may_lie_below_what_is_hidden(confined: Bench) -> None:
    place = replace(confined.place, hidden=(str(confined.directory),))
    running = confined.sandbox.start(confined.plan("/bin/sh", "-c", "echo hi > out; ls .."), place)
    confined.started.append(running)
    assert confined.finish(running).stdout == b"root\n"
    assert (confined.directory / "root" / "out").read_text() == "hi\n"


def test_it_sees_no_process_but_its_own(confined: Bench) -> None:
    ran = confined.sh("echo /proc/[0-9]*")
    assert len(ran.stdout.split()) <= 4
