"""A command runs within its bounds, cannot change the host, and ends with all that it started."""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import buildnet
from buildnet._native import NativeError, Process
from tests.flow.isolations import PROBE

END_WITHIN_S = 30.0
SOURCE = str(Path(buildnet.__file__).parent.parent)

needs_namespaces = pytest.mark.skipif(not PROBE["namespaces"], reason="this kernel or user cannot make namespaces")
needs_network_namespace = pytest.mark.skipif(
    not (PROBE["namespaces"] and PROBE["network_namespace"]), reason="no network namespaces here"
)
needs_memory_group = pytest.mark.skipif(
    not PROBE["cgroup_memory"], reason="no memory control group can be written here"
)
needs_pids_group = pytest.mark.skipif(not PROBE["cgroup_pids"], reason="no pids control group can be written here")


class Ended:
    """An outcome and everything that was printed."""

    def __init__(self, facts: dict[str, Any], stdout: bytes, stderr: bytes) -> None:
        self.facts = facts
        self.stdout = stdout
        self.stderr = stderr

    def __getattr__(self, name: str) -> Any:
        return self.facts[name]


def plan_in(place: Path, argv: list[str], **changes: Any) -> dict[str, Any]:
    for name in ("root", "tmp"):
        (place / name).mkdir(exist_ok=True)
    return {
        "argv": argv,
        "env": {"PATH": "/usr/bin:/bin"},
        "cwd": str(place / "root"),
        "root": str(place / "root"),
        "shown": ["/"],
        "tmp": str(place / "tmp"),
        "stdout_path": str(place / "stdout"),
        "stderr_path": str(place / "stderr"),
        "log_size_bytes_max": 64 << 20,
        "timeout_s": 20.0,
        "memory_bytes": None,
        "pids_max": None,
        "cpu_s": None,
        "network": False,
        "isolation": "namespaces",
        "cgroup_name": "test",
        **changes,
    }


def follow(process: Process) -> Ended:
    """Read to the end, as a worker does: woken by the descriptor only."""
    printed = {1: bytearray(), 2: bytearray()}
    while True:
        ready, _, _ = select.select([process.fd], [], [], END_WITHIN_S)
        assert ready, "the action neither printed nor ended"
        facts = process.poll()
        while pieces := process.read_logs(64 << 10):
            for stream, offset, data in pieces:
                assert offset == len(printed[stream]), "a gap in the log"
                printed[stream] += data
        if facts is not None:
            return Ended(facts, bytes(printed[1]), bytes(printed[2]))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ended]:
    def run(*argv: str, **changes: Any) -> Ended:
        return follow(Process.start(plan_in(tmp_path, list(argv), **changes)))

    return run


def python(code: str) -> tuple[str, ...]:
    # The base interpreter: -S -E keep the virtual environment and the caller's settings out.
    return (os.path.realpath(sys.executable), "-S", "-E", "-c", textwrap.dedent(code))


def with_token(token: str) -> list[int]:
    """Processes of the host whose command line contains `token`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if token.encode() in line.split(b"\0"):
                found.append(int(entry.name))
    return found


def test_output_and_streams_are_kept_apart(run: Callable[..., Ended], isolation: str) -> None:
    ended = run("sh", "-c", "echo out; echo err >&2", isolation=isolation)
    assert (ended.exit_code, ended.signal, ended.reason) == (0, 0, "")
    assert (ended.stdout, ended.stderr) == (b"out\n", b"err\n")
    assert (ended.stdout_bytes, ended.stderr_bytes) == (4, 4)
    assert ended.isolation == isolation
    assert 0 < ended.wall_s < END_WITHIN_S


@pytest.mark.parametrize(
    ("script", "exit_code", "signalled"),
    [
        ("exit 0", 0, 0),
        ("exit 1", 1, 0),
        ("exit 255", 255, 0),
        ("kill -9 $$", 137, 9),
        ("kill -TERM $$", 143, 15),
        ("kill -SEGV $$", 139, 11),
        ("exit 137", 137, 0),
    ],
)
def test_exit_codes_are_those_of_a_shell(
    run: Callable[..., Ended], isolation: str, script: str, exit_code: int, signalled: int
) -> None:
    ended = run("sh", "-c", script, isolation=isolation)
    assert (ended.exit_code, ended.signal, ended.reason) == (exit_code, signalled, "")


def test_environment_is_exactly_the_given_one(run: Callable[..., Ended], isolation: str) -> None:
    ended = run("env", env={"PATH": "/usr/bin:/bin", "A": "1 2=3"}, isolation=isolation)
    assert sorted(ended.stdout.splitlines()) == [b"A=1 2=3", b"PATH=/usr/bin:/bin"]


def test_process_starts_clean(run: Callable[..., Ended], isolation: str) -> None:
    script = "umask; ls /proc/self/fd; readlink /proc/self/fd/0; grep SigIgn /proc/self/status; "
    ended = run("sh", "-c", script + "ulimit -c; pwd", isolation=isolation)
    lines = ended.stdout.decode().split()
    # Descriptor 3 is the directory that ls itself opened.
    assert lines[:6] == ["0022", "0", "1", "2", "3", "/dev/null"]
    assert lines[6:8] == ["SigIgn:", "0" * 16]
    assert lines[8] == "0"


def inside(place: Path, isolation: str) -> str:
    """Where the command finds its execution root."""
    return "/buildnet/root" if isolation == "namespaces" else str(place / "root")


def test_working_directory(run: Callable[..., Ended], tmp_path: Path, isolation: str) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    ended = run("pwd", cwd=str(tmp_path / "root/a/b"), isolation=isolation)
    assert ended.stdout.decode().strip() == inside(tmp_path, isolation) + "/a/b"


def test_program_is_looked_up(run: Callable[..., Ended], tmp_path: Path, isolation: str) -> None:
    bin_ = tmp_path / "root/bin"
    bin_.mkdir(parents=True)
    (bin_ / "tool").write_text("#!/bin/sh\necho tool $0\n")
    (bin_ / "tool").chmod(0o755)
    assert run("bin/tool", isolation=isolation).stdout == b"tool bin/tool\n"
    seen = inside(tmp_path, isolation) + "/bin"
    ended = run("tool", env={"PATH": f"/nowhere:{seen}:/bin"}, isolation=isolation)
    assert ended.stdout.decode() == f"tool {seen}/tool\n"


@pytest.mark.parametrize("program", ["no-such-program", "./no-such", "/no/such", "sub/x"])
def test_absent_program_is_not_found(run: Callable[..., Ended], isolation: str, program: str) -> None:
    with pytest.raises(NativeError, match="no such program") as raised:
        run(program, isolation=isolation)
    assert raised.value.code == "not_found"
    assert program in raised.value.message


def test_forbidden_program_is_a_sandbox_error(run: Callable[..., Ended], tmp_path: Path, isolation: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/data").write_text("not a program")
    with pytest.raises(NativeError, match="Permission denied") as raised:
        run("./data", isolation=isolation)
    assert raised.value.code == "sandbox_failed"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"argv": []}, "argv"),
        ({"argv": ["a\0b"]}, "argv"),
        ({"env": {"A=B": "1"}}, "env"),
        ({"env": {"": "1"}}, "env"),
        ({"env": {"A": "1\0"}}, "env"),
        ({"cwd": "relative"}, "cwd"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": -1.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"pids_max": -1}, "pids_max"),
        ({"disk_bytes": 0}, "disk_bytes"),
        ({"cpu_milli": 0}, "cpu_milli"),
        ({"shown": ["usr"]}, "shown"),
        ({"shown": ["/usr/../etc"]}, "shown"),
        ({"shown": ["/proc/sys"]}, "shown"),
        ({"isolation": "magic"}, "isolation"),
        ({"cgroup_name": "../x"}, "cgroup_name"),
        ({"cgroup_name": ""}, "cgroup_name"),
        ({"network": "yes"}, "network"),
    ],
)
def test_malformed_plan_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(NativeError, match=named) as raised:
        Process.start(plan_in(tmp_path, ["true"]) | changes)
    assert raised.value.code == "invalid_request"


def test_plan_without_a_field_is_refused(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, ["true"])
    del plan["tmp"]
    with pytest.raises(NativeError, match="tmp: is required"):
        Process.start(plan)


def test_wall_time_is_bounded(run: Callable[..., Ended], isolation: str, token: str) -> None:
    ended = run("sh", "-c", f"sleep {token} & sleep {token}", timeout_s=0.3, isolation=isolation)
    assert (ended.reason, ended.exit_code, ended.signal) == ("timeout", 137, 9)
    assert 0.3 <= ended.wall_s < 5
    assert with_token(token) == []


def test_timeout_cannot_be_ignored(run: Callable[..., Ended], isolation: str) -> None:
    script = "trap '' TERM INT HUP; while :; do :; done"
    assert run("sh", "-c", script, timeout_s=0.3, isolation=isolation).reason == "timeout"


def test_kill_gives_its_reason(tmp_path: Path, isolation: str, token: str) -> None:
    plan = plan_in(tmp_path, ["sleep", token], isolation=isolation)
    process = Process.start(plan)
    assert process.poll() is None
    process.kill("killed")
    process.kill("again")
    ended = follow(process)
    assert (ended.reason, ended.exit_code) == ("killed", 137)
    process.kill("late")
    assert process.poll()["reason"] == "killed"  # type: ignore[index]


def shown_with_token(token: str) -> list[int]:
    """Wait until the program shows its arguments: the kernel closes descriptors a moment before it sets those."""
    deadline_s = time.monotonic() + END_WITHIN_S
    while not (found := with_token(token)):
        assert time.monotonic() < deadline_s, "the program never showed"
    return list(found)


def test_dropping_the_handle_kills(tmp_path: Path, isolation: str, token: str) -> None:
    process = Process.start(plan_in(tmp_path, ["sleep", token], isolation=isolation))
    watched = [os.pidfd_open(pid) for pid in shown_with_token(token)]
    assert watched
    del process
    wait_for_end(watched)


def wait_for_end(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        ready, _, _ = select.select([pidfd], [], [], END_WITHIN_S)
        os.close(pidfd)
        assert ready, "a process outlived its action"


@needs_memory_group
def test_memory_is_bounded(run: Callable[..., Ended], isolation: str) -> None:
    # tail keeps the last line: here all of it.
    ended = run("sh", "-c", "head -c 400M /dev/zero | tail", memory_bytes=64 << 20, isolation=isolation)
    assert (ended.reason, ended.exit_code) == ("memory", 137)
    assert ended.limits["memory"].startswith("cgroup")


@needs_memory_group
def test_memory_within_the_bound_is_free(run: Callable[..., Ended], isolation: str) -> None:
    ended = run("sh", "-c", "head -c 16M /dev/zero | tail", memory_bytes=256 << 20, isolation=isolation)
    assert (ended.reason, ended.exit_code, ended.stdout_bytes) == ("", 0, 16 << 20)
    assert 16 << 20 <= ended.max_rss_bytes <= 256 << 20


FORK_UNTIL_REFUSED = """
    import os, signal
    made = 0
    try:
        while made < 2000:
            if os.fork() == 0:
                signal.pause()
            made += 1
    except BlockingIOError:
        print(made)
        raise SystemExit(1)
"""


@needs_pids_group
def test_processes_are_bounded(run: Callable[..., Ended], isolation: str) -> None:
    ended = run(*python(FORK_UNTIL_REFUSED), pids_max=32, isolation=isolation)
    assert (ended.reason, ended.exit_code, ended.stdout) == ("pids", 1, b"31\n")
    assert ended.limits["pids"].startswith("cgroup")


@needs_pids_group
def test_fork_bomb_ends(run: Callable[..., Ended], isolation: str) -> None:
    bomb = "f() { f | f & }; f; while :; do f; done 2>/dev/null"
    ended = run("sh", "-c", bomb, pids_max=64, timeout_s=1.0, isolation=isolation)
    assert ended.reason in {"timeout", "pids"}


def test_processor_time_is_bounded(run: Callable[..., Ended], isolation: str) -> None:
    ended = run("sh", "-c", "while :; do :; done", cpu_s=1, isolation=isolation)
    assert ended.reason == "cpu"
    assert 0.5 <= ended.user_s + ended.system_s < 3
    assert ended.limits["cpu"] == "rlimit"


def test_limits_that_were_not_asked_for_are_unset(run: Callable[..., Ended]) -> None:
    limits = run("true").limits
    assert limits == dict.fromkeys(["memory", "pids", "cpu", "share", "disk"], "unset")


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def connect(port: int) -> tuple[str, ...]:
    return python(f"""
        import socket
        socket.create_connection(("127.0.0.1", {port}), timeout=5)
        print("connected")
    """)


@needs_network_namespace
def test_network_is_absent(run: Callable[..., Ended], listener: int) -> None:
    ended = run(*connect(listener))
    assert (ended.exit_code, ended.network) == (1, "none")
    assert b"ConnectionRefusedError" in ended.stderr


def test_network_is_there_when_asked_for(run: Callable[..., Ended], listener: int, isolation: str) -> None:
    ended = run(*connect(listener), network=True, isolation=isolation)
    assert (ended.stdout, ended.network) == (b"connected\n", "host")


@needs_network_namespace
def test_loopback_of_its_own_works(run: Callable[..., Ended]) -> None:
    ended = run(
        *python("""
        import socket
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname())
        print("connected")
        """)
    )
    assert ended.stdout == b"connected\n"


@needs_namespaces
def test_tmp_is_private(run: Callable[..., Ended], tmp_path: Path, token: str) -> None:
    seen = Path("/tmp") / f"host-{token}"
    seen.write_text("host")
    try:
        script = f"ls /tmp /var/tmp | grep -c host-; echo mine > /tmp/{token}; cat /var/tmp/{token}"
        ended = run("sh", "-c", script)
    finally:
        seen.unlink()
    assert ended.stdout == b"0\nmine\n"
    assert not (Path("/tmp") / token).exists()
    assert (tmp_path / "tmp" / token).read_text() == "mine\n"


@needs_namespaces
def test_nothing_outside_can_be_written(run: Callable[..., Ended], tmp_path: Path) -> None:
    outside = Path(__file__).parent / "written-by-an-action"
    script = f"""
        touch {outside} /etc/written-by-an-action /dev/written-by-an-action && echo wrote
        echo 1 > /proc/sys/kernel/printk && echo wrote
        mkdir /sys/fs/cgroup/memory/written-by-an-action && echo wrote
        mount -o remount,rw / && echo wrote
        umount /proc/sys && echo wrote
        touch inside && echo inside
        echo x > /dev/shm/x && echo shm
    """
    ended = run("sh", "-c", script)
    assert ended.stdout == b"inside\nshm\n", ended.stderr
    assert (tmp_path / "root/inside").exists()
    assert not outside.exists()


@needs_namespaces
def test_root_without_powers(run: Callable[..., Ended]) -> None:
    script = "grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status | cut -f2 | sort -u"
    assert run("sh", "-c", script).stdout.split() == [b"0" * 16, b"1"]
    # What the supervisor copied from the worker stays unread.
    for name in ("mem", "environ", "maps"):
        assert run("head", "-c", "1", f"/proc/1/{name}").stdout == b""


@needs_namespaces
def test_no_disk_can_be_opened(run: Callable[..., Ended]) -> None:
    names = run("ls", "/dev").stdout.split()
    allowed = b"fd full null ptmx pts random shm stderr stdin stdout urandom zero".split()
    assert set(names) <= set(allowed)
    assert run("sh", "-c", "echo x > /dev/null && head -c 4 /dev/urandom | wc -c").stdout == b"4\n"


@needs_namespaces
def test_host_processes_are_unseen(run: Callable[..., Ended]) -> None:
    ended = run("sh", "-c", f"ls -d /proc/[0-9]*; kill -0 {os.getpid()} && echo seen")
    assert len(ended.stdout.split()) <= 3
    assert b"seen" not in ended.stdout


@needs_namespaces
def test_hidden_directories_are_empty(run: Callable[..., Ended], tmp_path: Path) -> None:
    # Not below /tmp, which is the action's own.
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        keys = Path(directory) / "keys"
        keys.mkdir()
        (keys / "secret").write_text("secret")
        (Path(directory) / "seen").touch()
        script = f"ls -A {directory}; ls -A {keys}; cat {keys}/secret; touch {keys}/x; touch y && echo y"
        ended = run("sh", "-c", script, hidden=[str(keys), str(tmp_path), str(tmp_path / "absent")])
        assert ended.stdout == b"keys\nseen\ny\n"
        assert not (keys / "x").exists()
    # Its own root is there though it lies below what is hidden.
    assert (tmp_path / "root/y").exists()


def test_log_is_bounded(run: Callable[..., Ended], tmp_path: Path, isolation: str) -> None:
    ended = run("head", "-c", "300M", "/dev/zero", isolation=isolation)
    assert (ended.reason, ended.exit_code) == ("log_limit", 137)
    assert ended.stdout_bytes == 64 << 20
    assert (tmp_path / "stdout").stat().st_size == 64 << 20


def test_log_at_the_limit_is_kept_whole(run: Callable[..., Ended], isolation: str) -> None:
    ended = run("sh", "-c", "printf 12345; printf 12345 >&2", log_size_bytes_max=10, isolation=isolation)
    assert (ended.reason, ended.stdout, ended.stderr) == ("", b"12345", b"12345")


def test_output_arrives_while_it_runs(tmp_path: Path, isolation: str) -> None:
    script = "echo ready; while [ ! -e go ]; do :; done; echo done"
    process = Process.start(plan_in(tmp_path, ["sh", "-c", script], isolation=isolation))
    assert select.select([process.fd], [], [], END_WITHIN_S)[0]
    assert process.read_logs() == [(1, 0, b"ready\n")]
    assert process.poll() is None
    (tmp_path / "root/go").touch()
    assert select.select([process.fd], [], [], END_WITHIN_S)[0]
    # The descriptor stays readable until everything, the end too, has been seen.
    pieces = process.read_logs(2)
    assert pieces == [(1, 6, b"do")]
    assert select.select([process.fd], [], [], END_WITHIN_S)[0]
    while process.poll() is None:
        assert select.select([process.fd], [], [], END_WITHIN_S)[0]
        pieces += process.read_logs()
    assert b"".join(piece[2] for piece in pieces + process.read_logs()) == b"done\n"


def test_daemon_does_not_outlive_its_action(run: Callable[..., Ended], isolation: str, token: str) -> None:
    # It has a session of its own and holds stdout open.
    script = f"setsid sh -c 'setsid sleep {token} & sleep {token}' & echo started"
    ended = run("sh", "-c", script, isolation=isolation)
    assert (ended.exit_code, ended.reason, ended.stdout) == (0, "", b"started\n")
    assert with_token(token) == []


HOLDER = """
import json, signal, sys
from buildnet._native import Process
process = Process.start(json.load(sys.stdin))
print("started", flush=True)
signal.pause()
"""


def start_holder(plan: dict[str, Any], **popen: Any) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin"},
        **popen,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(json.dumps(plan))
    holder.stdin.close()
    assert holder.stdout.readline() == "started\n"
    return holder


def test_killed_worker_leaves_nothing(tmp_path: Path, isolation: str, token: str) -> None:
    script = f"setsid sleep {token} & sleep {token} & sleep {token}"
    plan = plan_in(tmp_path, ["sh", "-c", script + "; :"], isolation=isolation)
    holder = start_holder(plan)
    try:
        watched: dict[int, int] = {}
        while len(watched) < 3:
            for pid in with_token(token):
                watched.setdefault(pid, os.pidfd_open(pid))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(END_WITHIN_S)
        assert holder.stdout is not None
        holder.stdout.close()
    wait_for_end(list(watched.values()))
    assert with_token(token) == []


def test_nothing_leaks(run: Callable[..., Ended], isolation: str) -> None:
    run("true", isolation=isolation)
    before = open_files_and_threads()
    for _ in range(20):
        run("sh", "-c", "echo x", memory_bytes=64 << 20, pids_max=64, isolation=isolation)
    with pytest.raises(NativeError):
        run("no-such-program", memory_bytes=64 << 20, pids_max=64, isolation=isolation)
    assert open_files_and_threads() == before


def open_files_and_threads() -> tuple[int, int]:
    """Counted once the threads of ended actions are gone: they outlive the outcome for a moment."""
    gc.collect()
    for _ in range(100_000):
        names = []
        for task in Path("/proc/self/task").iterdir():
            try:
                names.append((task / "comm").read_text())
            except OSError:
                continue
        if "buildnet-action\n" not in names:
            return len(os.listdir("/proc/self/fd")), len(names)
    pytest.fail("threads of ended actions are left")


def test_many_at_once(tmp_path: Path, isolation: str) -> None:
    processes = []
    for index in range(16):
        place = tmp_path / str(index)
        place.mkdir()
        plan = plan_in(place, ["sh", "-c", f"cat; echo {index}"], isolation=isolation)
        processes.append(Process.start(plan))
    for index, process in enumerate(processes):
        ended = follow(process)
        assert (ended.exit_code, ended.stdout) == (0, f"{index}\n".encode())


def test_start_does_not_hold_the_interpreter(tmp_path: Path) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    follow(Process.start(plan_in(tmp_path, ["true"])))
    assert done.wait(END_WITHIN_S)
    thread.join()


RUN_AND_TELL = """
import json, select, sys
from buildnet._native import Process
process = Process.start(json.load(sys.stdin))
while process.poll() is None:
    select.select([process.fd], [], [], 30)
    process.read_logs()
print(json.dumps(process.poll()))
"""


@pytest.mark.skipif(not PROBE["cgroup_cpu"], reason="no control groups that share out processors")
def test_processors_are_capped_only_where_that_is_wanted(run: Callable[..., Ended]) -> None:
    busy = ["sh", "-c", "while :; do :; done"]
    capped = run(*busy, cpu_milli=200, cpu_is_capped=True, timeout_s=2.0)
    shared = run(*busy, cpu_milli=200, timeout_s=2.0)
    # A fifth of two seconds, and a period more.
    assert capped.user_s + capped.system_s < 0.7
    assert shared.user_s + shared.system_s > capped.user_s + capped.system_s


def as_ordinary_user(code: str, text: str) -> str:
    """Run Python code as nobody, with whichever interpreter may be read."""
    for interpreter in (sys.executable, "/usr/bin/python3"):
        try:
            done = subprocess.run(
                [interpreter, "-c", code],
                input=text,
                capture_output=True,
                text=True,
                user=65534,
                group=65534,
                extra_groups=[],
                env={"PYTHONPATH": SOURCE},
                timeout=END_WITHIN_S,
                check=False,
            )
        except OSError:
            continue
        if "ImportError" not in done.stderr and "ModuleNotFoundError" not in done.stderr:
            assert done.returncode == 0, done.stderr
            return done.stdout
    pytest.skip("an ordinary user cannot read this checkout")


@pytest.mark.skipif(not PROBE["root"], reason="only root can become an ordinary user")
def test_ordinary_user_is_isolated_too() -> None:
    place = Path(tempfile.mkdtemp(prefix="ordinary-"))
    script = "id -u; touch inside /etc/outside; ls -d /proc/[0-9]* | wc -l; id -g"
    plan = plan_in(place, ["sh", "-c", script], memory_bytes=1 << 30, pids_max=4096)
    for path in [place, *place.iterdir()]:
        os.chown(path, 65534, 65534)
    try:
        facts = json.loads(as_ordinary_user(RUN_AND_TELL, json.dumps(plan)))
        output = (place / "stdout").read_text()
        inside = (place / "root/inside").exists()
    finally:
        shutil.rmtree(place)
    if facts["isolation"] == "process":
        pytest.skip("an ordinary user cannot make namespaces here")
    assert (facts["isolation"], facts["network"]) == ("namespaces", "none")
    # Without a control group of its own it says what it could do instead.
    unset = {"cpu": "unset", "share": "unset", "disk": "unset"}
    assert facts["limits"] == {"memory": "rlimit", "pids": "rlimit"} | unset
    assert output.split() == ["65534", "4", "65534"]
    assert inside
