"""A C++ workspace of 205 actions: Bazel's own local sandboxed build, and the same through remote execution.

Back of the envelope: a compilation here takes 20 to 40 ms of processor time and a link 50. Both ways pay it. Bazel's
sandbox pays a tree of symlinks and a process of its own for each action; a remote action pays a Merkle tree, four
calls, a staged root and namespaces, 5 to 10 ms in all. The bar is 1.25 times the local build on the same cores.

Each build begins with `bazel clean`, after one of its kind that is not counted: the first local and the first remote
build of a Bazel server compile the server itself. Wall-clock ratios mean something on an idle machine only; processor
time is printed for each process.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from bench.processes import children, cpu_s, ended_children_cpu_s
from buildnet.client import connect
from tests.clients.bazel import Bazel, Run, why_not

LIBRARIES = 100
COLD_BAR = 1.25
_LOCAL = ("--spawn_strategy=sandboxed",)
_ACTIONS = re.compile(r"(\d+) total actions?")


@dataclass(frozen=True)
class Build:
    """One measured build: seconds of wall-clock, and of processor time by whose they are."""

    wall_s: float
    cpu_s: dict[str, float]
    run: Run

    @property
    def all_cpu_s(self) -> float:
        """Processor time of everybody."""
        return sum(self.cpu_s.values())


def used(bazel_pid: int, served: Sequence[int]) -> dict[str, float]:
    """Processor time so far, by whose it is."""
    counted = {"bazel": cpu_s(bazel_pid), "bazel's actions": ended_children_cpu_s(bazel_pid)}
    if served:
        controller, worker = served
        counted["controller"], counted["worker"] = cpu_s(controller), cpu_s(worker)
        counted["worker's actions"] = ended_children_cpu_s(worker)
    return counted


def built(bazel: Bazel, flags: Sequence[str], served: Sequence[int] = ()) -> Build:
    """Build and test everything anew.

    Raises:
        SystemExit: it failed; the log says why.
    """
    bazel.clean()
    pid = bazel.pid()
    before, began_s = used(pid, served), time.monotonic()
    run = bazel.test(*flags)
    wall_s = time.monotonic() - began_s
    if run.exit_code:
        raise SystemExit(f"bazel failed with {run.exit_code}:\n{run.log}")
    after = used(pid, served)
    return Build(wall_s, {name: after[name] - before[name] for name in after}, run)


def say(name: str, build: Build, peer: str, peer_build: Build) -> None:
    """Print one build beside another."""
    line(f"{name}, wall-clock", build.wall_s, "s", peer, peer_build.wall_s)
    line(f"{name}, processor", build.all_cpu_s, "s", peer, peer_build.all_cpu_s)
    shares = ", ".join(f"{whose} {seconds:.1f}" for whose, seconds in build.cpu_s.items())
    print(f"    of it: {shares} s; {build.run.local} local, {build.run.remote} remote, {build.run.hits} from the cache")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", type=int, default=LIBRARIES, help="two actions each (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=2, help="of the worker, and Bazel's jobs (default: %(default)s)")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"bazel: nothing is measured, for {reason}")
        return
    header("bazel")
    with tempfile.TemporaryDirectory(prefix="buildnet-bazel-") as scratch:
        bazel = Bazel(Path(scratch), arguments.libraries)
        try:
            bazel.test(*_LOCAL, jobs=arguments.slots)
            local = built(bazel, _LOCAL)
            actions = _ACTIONS.search(local.run.log)
            print(f"  {actions[1] if actions else 'an unknown number of'} actions, {arguments.slots} at once")
            say("local, sandboxed", local, "itself", local)
            with server("--slots", str(arguments.slots)) as (url, pid):
                with connect(url) as client:
                    client.run(["/bin/true"])
                (worker,) = children(pid)
                remote = (f"--remote_executor={url}", "--remote_default_exec_properties=OSFamily=linux")
                # Another variable makes other actions: nothing of the first is found by the second.
                built(bazel, (*remote, "--action_env=BUILD=first"))
                cold = built(bazel, remote, (pid, worker))
                say("remote, nothing cached", cold, "local", local)
                warm = built(bazel, (*remote, "--remote_download_minimal"), (pid, worker))
                say("remote, all cached, minimal", warm, "local", local)
        finally:
            bazel.close()
    print(f"  the bar of the first ratio of 'remote, nothing cached' is {COLD_BAR}")


if __name__ == "__main__":
    main()
