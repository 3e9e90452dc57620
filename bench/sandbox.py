"""What the start of a command costs in the default sandbox, in processor time of this process and of all it started.

Back of the envelope: a copy of the launcher's address space is some 500 page table entries and their faults, 0.3 ms,
but without namespaces its copy is used again; each of four namespaces 50 us, and that of the network is used again; a
mount is attached and taken away for 10 us, and the view has about thirty; messages and the watching thread 0.2 ms. That
is 1 ms, beside 0.5-0.9 ms for fork and exec of /bin/true from a small process. Issue 6 asks for 300 actions a second on
two processors with all that is around them: 6.6 ms an action, of which half may be the sandbox's.

It refuses to call a figure good that is over its limit: the exit code says so.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from bench.processes import below_cpu_s
from buildnet._native import Process, probe_isolation
from buildnet.sandbox import Place
from buildnet.sandbox.launcher import request_of
from buildnet.sandbox.policy import Limits, Means, Plan, plan_of
from buildnet.sandbox.toolchain import toolchain_of

# As heavy as a worker: its address space is what is copied.
from buildnet.worker import run as _worker  # noqa: F401

ROUNDS = 5
STARTS = 100
LIMIT_MS = 3.3
MACHINE = frozenset({("effect:network", "ambient"), ("effect:read", "ambient")})


@dataclass
class Starts:
    """Ways to run /bin/true below one directory."""

    directory: Path

    def plan(self, isolation: str, properties: frozenset[tuple[str, str]], limits: Limits) -> Plan:
        means = Means(isolation, probe_isolation()["network_namespace"], toolchain_of())  # type: ignore[arg-type]
        return plan_of(["/bin/true"], [], properties, means, limits, 30.0)

    def launcher(
        self, isolation: str, *, properties: frozenset[tuple[str, str]] = frozenset(), bounded: bool = True
    ) -> Callable[[], None]:
        """Through our own launcher."""
        limits = Limits(memory_bytes=1 << 30) if bounded else Limits(pids_max=None)
        plan = self.plan(isolation, properties, limits)
        (self.directory / "root").mkdir(exist_ok=True)
        (self.directory / "tmp").mkdir(exist_ok=True)
        at = {name: str(self.directory / name) for name in ("root", "tmp", "stdout", "stderr")}
        place = Place(at["root"], at["root"], at["tmp"], at["stdout"], at["stderr"], "bench")
        request = request_of(plan, place)

        def start() -> None:
            process = Process.start(request)
            while (ended := process.poll()) is None:
                select.select([process.fd], [], [])
                process.read_logs()
            assert ended["exit_code"] == 0

        return start

    def program(self, *argv: str) -> Callable[[], None]:
        """Through another program."""
        return lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL).check_returncode()


def spawned() -> None:
    """What nobody can be below: one process made and ended."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    assert os.waitpid(pid, 0)[1] == 0


def cpu_ms() -> float:
    """Of this process and all that it started: its launcher, what that keeps, and their commands."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime + below_cpu_s(os.getpid())) * 1000


def measured(starts: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The least processor time of a start, in milliseconds; rounds take turns, so that all are disturbed alike."""
    least = dict.fromkeys(starts, float("inf"))
    for _ in range(ROUNDS):
        for name, start in starts.items():
            begun = cpu_ms()
            for _ in range(STARTS):
                start()
            least[name] = min(least[name], (cpu_ms() - begun) / STARTS)
    return least


def main() -> None:
    """Measure, print, judge."""
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as directory:
        ways = Starts(Path(directory))
        starts = {
            "fork+exec": spawned,
            "process": ways.launcher("process"),
            "namespaces": ways.launcher("namespaces"),
            "namespaces, no cgroup": ways.launcher("namespaces", bounded=False),
            "namespaces, whole machine": ways.launcher("namespaces", properties=MACHINE),
        }
        if shutil.which("unshare"):
            starts["unshare"] = ways.program("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "true")
        if shutil.which("bwrap"):
            view = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
            rest = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-all", "--die-with-parent"]
            starts["bwrap"] = ways.program("bwrap", *view, *rest, "/usr/bin/true")
        cost = measured(starts)
    header("starting /bin/true")
    for name in starts:
        line(name, cost[name], "ms CPU", "fork+exec", cost["fork+exec"])
    line("the default sandbox", cost["namespaces"], "ms CPU", "limit", LIMIT_MS)
    if cost["namespaces"] > LIMIT_MS:
        sys.exit("a figure is over its limit")


if __name__ == "__main__":
    main()
