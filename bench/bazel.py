"""A C++ workspace of 205 actions: Bazel's own local sandboxed build, and the same through remote execution.

Back of the envelope: a compilation here takes 20 to 40 ms of processor time and a link 50. Both ways pay it. Bazel's
sandbox pays a tree of symlinks and a process of its own for each action; a remote action pays a Merkle tree, four
calls, a staged root and namespaces, 5 to 10 ms in all, much of it waiting: so Bazel has more remote jobs at once than
there are processors, as its manual says; the worker runs no more than those. The bar is 1.25 times the local build on
the same cores. A build that finds everything has bazel-remote beside it, where that is here (Buildbarn refuses what
Bazel 4 speaks).

Each build begins with `bazel clean`. Both ways take turns, and the quickest of each counts: over the first half dozen
builds the Bazel server compiles its own code, and takes a third of the processor time that it took at first.
Wall-clock ratios mean something on an idle machine only; processor time is printed for each process.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from bench.peers.servers import CannotBeHadError, bazel_remote, load_binary, start
from bench.processes import below_cpu_s, children, cpu_s
from buildnet.client import connect
from tests.clients.bazel import Bazel, Run, why_not

LIBRARIES = 100
COLD_BAR = 1.25
WARM_ROUNDS = 4
COLD_ROUNDS = 8
_MINIMAL = "--remote_download_minimal"
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


Served = Mapping[str, int]
"""Processes that serve a build, by what they are."""
NOBODY: Served = {}


def used(bazel_pid: int, served: Served) -> dict[str, float]:
    """Processor time so far, by whose it is."""
    counted = {name: cpu_s(pid) for name, pid in served.items()}
    # Who runs actions is the first.
    counted |= {"actions": below_cpu_s(next(iter(served.values()), bazel_pid)), "bazel": cpu_s(bazel_pid)}
    return {name: spent_s for name, spent_s in counted.items() if spent_s}


def built(bazel: Bazel, flags: Sequence[str], jobs: int, served: Served = NOBODY) -> Build:
    """Build and test everything anew.

    Raises:
        SystemExit: it failed; the log says why.
    """
    bazel.clean()
    pid = bazel.pid()
    before, began_s = used(pid, served), time.monotonic()
    run = bazel.test(*flags, jobs=jobs)
    wall_s = time.monotonic() - began_s
    if run.exit_code:
        raise SystemExit(f"bazel failed with {run.exit_code}:\n{run.log}")
    after = used(pid, served)
    return Build(wall_s, {name: after[name] - before.get(name, 0.0) for name in after}, run)


def say(name: str, build: Build, peer: str, peer_build: Build) -> None:
    """Print one build beside another."""
    line(f"{name}, wall-clock", build.wall_s, "s", peer, peer_build.wall_s)
    line(f"{name}, processor", build.all_cpu_s, "s", peer, peer_build.all_cpu_s)
    shares = ", ".join(f"{whose} {seconds:.1f}" for whose, seconds in build.cpu_s.items())
    print(f"    of it: {shares} s; {build.run.local} local, {build.run.remote} remote, {build.run.hits} from the cache")


def compare_warm(bazel: Bazel, remote: Sequence[str], jobs: int, local: Build) -> None:
    """Builds that find everything there and take no more than they need, in turns with a cache that keeps nothing else:
    the compiler of Bazel's own code goes on making it faster. That cache can be none but that; so are we, in a third
    way: what is left between the two is Bazel's.
    """
    (executor,) = (flag for flag in remote if flag.startswith("--remote_executor="))
    ways = {"executor": tuple(remote), "cache": (executor.replace("executor", "cache"), *_LOCAL)}
    try:
        peer = start(bazel_remote(), load_binary())
    except CannotBeHadError as error:
        print(f"  bazel-remote: {error}")
        say("remote, all cached, minimal", built(bazel, (*remote, _MINIMAL), jobs), "local", local)
        return
    ways["bazel-remote"] = (f"--remote_cache={peer.url}", *_LOCAL)
    try:
        for flags in ways.values():
            built(bazel, flags, jobs)
        rounds = [
            {name: built(bazel, (*flags, _MINIMAL), jobs) for name, flags in ways.items()} for _ in range(WARM_ROUNDS)
        ]
    finally:
        peer.stop()
    best = {name: min((each[name] for each in rounds), key=lambda build: build.wall_s) for name in ways}
    say("remote, all cached, minimal", best["executor"], "local", local)
    say("remote, all cached, minimal", best["executor"], "bazel-remote", best["bazel-remote"])
    say("as its cache alone, minimal", best["cache"], "bazel-remote", best["bazel-remote"])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", type=int, default=LIBRARIES, help="two actions each (default: %(default)s)")
    parser.add_argument(
        "--slots", type=int, default=2, help="of the worker, and Bazel's local jobs (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=8, help="remote jobs at once (default: %(default)s)")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"bazel: nothing is measured, for {reason}")
        return
    header("bazel")
    with tempfile.TemporaryDirectory(prefix="buildnet-bazel-") as scratch:
        bazel = Bazel(Path(scratch), arguments.libraries)
        try:
            with server("--slots", str(arguments.slots)) as (url, pid):
                with connect(url) as client:
                    client.run(["/bin/true"])
                (worker,) = children(pid)
                served = {"worker": worker, "controller": pid}
                remote = (f"--remote_executor={url}", "--remote_default_exec_properties=OSFamily=linux")
                rounds = [
                    (
                        built(bazel, (*_LOCAL, f"--action_env=BUILD={turn}"), arguments.slots),
                        # Another variable makes other actions: nothing of those before is found.
                        built(bazel, (*remote, f"--action_env=BUILD={turn}"), arguments.jobs, served),
                    )
                    for turn in range(COLD_ROUNDS)
                ]
                local, cold = (min(turns, key=lambda build: build.wall_s) for turns in zip(*rounds[1:], strict=True))
                actions = _ACTIONS.search(local.run.log)
                print(f"  {actions[1] if actions else 'an unknown number of'} actions, {arguments.slots} at once")
                say("local, sandboxed", local, "itself", local)
                say("remote, nothing cached", cold, "local", local)
                compare_warm(bazel, remote, arguments.jobs, local)
        finally:
            bazel.close()
    print(f"  the bar of the wall-clock ratio of 'remote, nothing cached' is {COLD_BAR}")


if __name__ == "__main__":
    main()
