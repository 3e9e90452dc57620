"""The catalog: looking for tools, holding what many nodes offer, and finding those that meet a constraint.

Back of the envelope: a look at a tool is a stat and an access, 3 us of kernel and 7 us of Python: 3,000 tools in 30 ms;
the peer is the bare system calls. Probes are some 30 programs of 20 to 200 ms, two at once: 1.5 s. A node of 3,000
tools is 3,000 numbers of 4 bytes; 1,000 such nodes are 12 MiB, and resources that all share are held once; a tenth of
each node's being its own, 300,000 resources of 800 bytes with their indices come to 230 MiB. A constraint unites the
nodes of a few versions, each an integer of 1,000 bits: under 0.1 ms.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from buildnet.catalog.announcement import Session, check, sign, verify
from buildnet.catalog.catalog import Catalog
from buildnet.catalog.constraint import parse
from buildnet.catalog.plugins import Setting, built_in
from buildnet.client import Client
from buildnet.model.resource import Announcement, Resource
from buildnet.wire.announcements import announcement_of, body_of

NODES, TOOLS, OWN = 1_000, 3_000, 300


def best_ms(work: Callable[[], object], rounds: int = 5) -> float:
    """The least processor time of a few rounds, in ms: the time that passes says little on a shared machine."""
    took = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took) * 1000


def search_path(directory: Path) -> tuple[str, ...]:
    """This machine's, with as many more tools as make 3,000."""
    own = tuple(os.environ.get("PATH", os.defpath).split(":"))
    here = {entry.name for place in own if os.path.isdir(place) for entry in os.scandir(place)}
    for number in range(max(0, TOOLS - len(here))):
        path = directory / f"bench-tool-{number}"
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return (*own, str(directory))


def looks() -> None:
    """A first look with probes, later ones, and the system calls alone."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "bin"
        directory.mkdir()
        places = search_path(directory)
        tools = built_in(Setting(Path(name), places))[0]
        started, before = time.perf_counter(), os.times()
        found = tools.discover()
        first_ms, after = (time.perf_counter() - started) * 1000, os.times()
        # Four programs at once: on a machine with as many free cores as that, a quarter of this would pass.
        spent_ms = 1000 * (sum(after[:4]) - sum(before[:4]))
        count = sum(found_one.kind == "tool" for found_one in found.resources)
        versions = sum(bool(found_one.version) for found_one in found.resources)
        line(f"first look, {count:,} tools {versions} probed", first_ms, "ms", "bound", 3_000)
        line("  of all processes together", spent_ms, "ms CPU", "what passed", first_ms)
        again = built_in(Setting(Path(name), places))[0]
        again.discover()
        warm_ms = best_ms(again.discover)

        def bare() -> None:
            for place in dict.fromkeys(map(os.path.realpath, places)):
                if os.path.isdir(place):
                    for entry in os.scandir(place):
                        if os.path.exists(entry.path):
                            entry.stat()
                        os.access(entry.path, os.X_OK)

        bare_ms = best_ms(bare)
        line(f"warm look, {count:,} tools", warm_ms, "ms CPU", "bare system calls", bare_ms)


def of_node(number: int) -> list[Resource]:
    """What one of a thousand nodes offers: most as all do, some of another version, some its own."""
    shared = [
        Resource(
            "tool",
            f"tool{tool}",
            f"{tool % 7}.{number % 5 if tool % 10 == 0 else 0}",
            (("path", f"/usr/bin/tool{tool}"),),
        )
        for tool in range(TOOLS - OWN)
    ]
    own = [Resource("tool", f"own{tool}", "1", (("path", f"/n{number}/own{tool}"),)) for tool in range(OWN)]
    return [*shared, *own]


def rss_bytes() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def catalog() -> None:
    """Memory of 1,000 nodes of 3,000 tools, and the time of a constraint among them."""
    before, held = rss_bytes(), Catalog()
    started = time.process_time()
    for number in range(NODES):
        held.replace(f"{number:032x}", of_node(number))
    filled_s = time.process_time() - started
    size_mib = (rss_bytes() - before) / (1 << 20)
    line(f"{NODES:,} nodes x {TOOLS:,} tools", size_mib, "MiB", "bound", 400)
    line("filling it", filled_s * 1000 / NODES, "ms CPU", "bound", 100)
    texts = ("tool10>=3.2", "tool20,tool:tool30!=9", "tool2000=5")

    def match() -> list[str]:
        held._answers.clear()
        return held.meeting(texts)

    match_ms = best_ms(match)
    line(f"4 terms, new, met by {len(match())}", match_ms, "ms CPU", "bound", 5)
    some = f"{7:032x}"
    line("4 terms, seen before, one node", best_ms(lambda: held.meets(some, texts)), "ms CPU", "bound", 5)
    constraint = parse(["tool10>=99", "gpu"])
    line("why a node does not meet two", best_ms(lambda: held.explain(some, constraint)), "ms CPU", "bound", 5)


def announcements() -> None:
    """What one announcement costs its node and the controller."""
    from buildnet._native import SigningKey

    key = SigningKey(secrets.token_bytes(32))
    public = key.public
    present = tuple(sorted(of_node(1), key=lambda found: found.key))
    for what, shown in (("everything", present), ("a renewal", ())):
        said = Announcement("n", "b", "c", 1, 0, 0, 60_000, shown)
        packing, body = body_of(said)
        signature = sign(key, packing, body)

        def heard(packing: int = packing, body: bytes = body, signature: bytes = signature) -> None:
            verify(public, packing, body, signature)
            check(announcement_of(packing, body), Session("n", "b", "c"), None, 1, held=False)

        said_ms = best_ms(lambda said=said: sign(key, *body_of(said)))  # type: ignore[misc]
        line(f"{what}, {len(body):,} bytes: check", best_ms(heard), "ms CPU", "saying it", said_ms)


async def added(url: str, directory: Path) -> list[float]:
    """How long tools that are added take to reach a watcher, in ms, one after the other."""
    took_ms = []
    async with Client(url) as client:
        watching = client.watch_resources()
        async for news in watching:
            if any(found.name == "bench-first" for found in news.present):
                break
        for number in range(10):
            name = f"bench-new-{number}"
            fresh = directory / f".{name}"
            fresh.write_text("#!/bin/sh\n")
            fresh.chmod(0o755)
            started = time.perf_counter()
            fresh.rename(directory / name)
            async for news in watching:
                if any(found.name == name for found in news.present):
                    break
            took_ms.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        listed = [found async for _, found in client.resources()]
        line(f"listing {len(listed):,} resources", (time.perf_counter() - started) * 1000, "ms", "bound", 100)
    return took_ms


def reaches() -> None:
    """A whole controller and worker: from a file on the search path to a watcher."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        places = search_path(directory)
        (directory / "bench-first").write_text("#!/bin/sh\n")
        (directory / "bench-first").chmod(0o755)
        os.environ["PATH"] = ":".join(places)
        with server("--slots", "1") as (url, _):
            took_ms = asyncio.run(added(url, directory))
    line("a new tool reaches a watcher, median", sorted(took_ms)[len(took_ms) // 2], "ms", "bound", 1_000)
    line("a new tool reaches a watcher, worst", max(took_ms), "ms", "bound", 1_000)


def main() -> None:
    """Print each figure."""
    header("catalog")
    reaches()
    looks()
    catalog()
    announcements()


if __name__ == "__main__":
    main()
