"""`make demo`: a real C project on BuildNET, four times over, with a table at the end. It leaves nothing running.

1. Two workers compile, archive and link Lua 5.4 and 5.5 as actions, and the programs run.
2. The same again: every action from the cache.
3. Again from an empty client, with both workers gone and another in their place: every action from the cache.
4. One result is proven against the ledger, the whole ledger is verified, and a flipped byte is found.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from buildnet.client import Client, RunResult
from buildnet.errors import LedgerCorrupt
from buildnet.ledger import audit
from demo.project import HERE, PLATFORM, VARIABLES, VERSIONS, Compilation, compilations, fetch

AT_ONCE = 8
STOP_TIMEOUT_S = 30
LINK_FLAGS = ("-lm", "-ldl")


@dataclass
class Phase:
    """What one build took: results, and where they came from."""

    name: str
    seconds: float = 0.0
    results: list[RunResult] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """How many results came from the cache."""
        return sum(result.cached for result in self.results)

    @property
    def workers(self) -> Counter[str]:
        """How many actions each worker ran."""
        return Counter(result.worker for result in self.results if not result.cached)


@contextmanager
def role(*arguments: str) -> Iterator[dict[str, str]]:
    """Run one BuildNET process for the body; yields what its ready line said."""
    command = [sys.executable, "-m", "buildnet.cli.main", *arguments, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(arguments)} ended with code {process.wait()} before it was ready")
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def build(client: Client, crate: Path, scratch: Path, name: str, console: Console) -> Phase:
    """Compile every unit, archive each version's library, link it with its host, and run the programs here."""
    phase = Phase(name)
    started = time.perf_counter()
    room = asyncio.Semaphore(AT_ONCE)
    with console.status(f"{name}…"):
        for version in VERSIONS:
            units = compilations(crate, version)
            objects = dict(await asyncio.gather(*(_compile(client, unit, room, phase) for unit in units)))
            local = scratch / name.replace(" ", "-") / version
            program = await _link(client, objects, local, phase)
            phase.printed.append(await _printed_by(program))
    phase.seconds = time.perf_counter() - started
    return phase


async def _printed_by(program: Path) -> str:
    ran = await asyncio.create_subprocess_exec(str(program), str(HERE / "queens.lua"), stdout=subprocess.PIPE)
    out, _ = await ran.communicate()
    if ran.returncode:
        raise SystemExit(f"{program} exited with {ran.returncode}")
    return out.decode().strip()


async def _run(client: Client, argv: list[str], inputs: dict[str, Path], output: str, phase: Phase) -> RunResult:
    result = await client.run(argv, inputs=inputs, outputs=[output], env=VARIABLES, platform=PLATFORM, timeout_s=300)
    if result.exit_code or output not in result.outputs:
        errors = (await asyncio.to_thread(result.stderr)).decode(errors="replace")
        raise SystemExit(f"{' '.join(argv)} exited with {result.exit_code}:\n{errors}")
    phase.results.append(result)
    return result


async def _compile(client: Client, unit: Compilation, room: asyncio.Semaphore, phase: Phase) -> tuple[str, RunResult]:
    async with room:
        result = await _run(client, unit.arguments, dict(unit.inputs), unit.object_name, phase)
        return unit.object_name, result


async def _link(client: Client, objects: dict[str, RunResult], local: Path, phase: Phase) -> Path:
    paths = {}
    for name, result in objects.items():
        paths[name] = local / name
        await asyncio.to_thread(result.outputs[name].download, paths[name])
    library = sorted(name for name in paths if name != "host.o")
    archive_inputs = {name: paths[name] for name in library}
    archived = await _run(client, ["ar", "rcsD", "liblua.a", *library], archive_inputs, "liblua.a", phase)
    await asyncio.to_thread(archived.outputs["liblua.a"].download, local / "liblua.a")
    link = ["gcc", "-o", "lua-host", "host.o", "liblua.a", *LINK_FLAGS]
    link_inputs = {"host.o": paths["host.o"], "liblua.a": local / "liblua.a"}
    linked = await _run(client, link, link_inputs, "lua-host", phase)
    await asyncio.to_thread(linked.outputs["lua-host"].download, local / "lua-host")
    return local / "lua-host"


def flip_one_byte(state: Path, scratch: Path) -> str:
    """Copy the ledger, flip one bit in the middle of it, and return what the audit says."""
    copy = scratch / "altered"
    shutil.copytree(state / "ledger", copy / "ledger")
    path = copy / "ledger" / "ledger.sqlite"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    try:
        audit.verify(copy)
    except LedgerCorrupt as error:
        return error.message
    raise SystemExit("a flipped byte in the ledger was not found")


def show(phases: list[Phase], console: Console) -> None:
    """Print what happened as a table."""
    table = Table(title="Lua 5.4 and 5.5 on BuildNET", title_justify="left", header_style="bold")
    for column, justify in (("build", "left"), ("actions", "right"), ("ran", "right"), ("cached", "right"),
                            ("time", "right"), ("who ran them", "left")):  # fmt: skip
        table.add_column(column, justify="right" if justify == "right" else "left")
    for phase in phases:
        ran = len(phase.results) - phase.cached
        who = ", ".join(f"{node[:8]} {count}" for node, count in sorted(phase.workers.items())) or "nobody"
        cached = f"[green]{phase.cached}[/green]" if phase.cached else "0"
        table.add_row(phase.name, str(len(phase.results)), str(ran), cached, f"{phase.seconds:.1f} s", who)
    console.print(table)
    for line in phases[0].printed:
        console.print(f"  {line}")


async def demo(scratch: Path, console: Console) -> int:
    """Run all of it and return the exit code."""
    with console.status("fetching the sources…"):
        crate = fetch(scratch)
    state = scratch / "controller"
    phases = []
    with role("up", "--no-worker", "--state", str(state), "--listen", "127.0.0.1:0") as server:
        url = server["url"]
        with (
            role("join", url, "--slots", "1", "--state", str(scratch / "one")),
            role("join", url, "--slots", "1", "--state", str(scratch / "two")),
        ):
            async with Client(url) as client:
                phases.append(await build(client, crate, scratch, "from nothing", console))
                phases.append(await build(client, crate, scratch, "built again", console))
        with role("join", url, "--slots", "1", "--state", str(scratch / "three")):
            async with Client(url) as client:
                phases.append(await build(client, crate, scratch, "empty client, other worker", console))
                entry = next(r.entry_index for r in reversed(phases[0].results) if r.entry_index is not None)
                proof = await client.prove(entry)
        report = await asyncio.to_thread(audit.verify, state)
        altered = await asyncio.to_thread(flip_one_byte, state, scratch)
    show(phases, console)
    console.print(
        f"  ledger entry {entry} (the linked program) is proven: {len(proof.hashes)} hashes lead to the signed root "
        f"of {proof.verify().size} entries"
    )
    console.print(f"  the whole ledger verifies: {report.size} entries, root {report.root[:16]}…")
    console.print(f"  one bit flipped in a copy of it: {altered}")
    first, *again = phases
    good = first.cached == 0 and len(first.workers) == 2 and all(p.cached == len(p.results) for p in again)
    if not good:
        console.print("[red]the first build must run everything on two workers, the others nothing[/red]")
    return 0 if good else 1


def main() -> int:
    """Run the demo in a directory that is removed at the end."""
    started = time.perf_counter()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    scratch = Path(tempfile.mkdtemp(prefix="buildnet-demo-"))
    try:
        code = asyncio.run(demo(scratch, console))
    except KeyboardInterrupt:
        code = 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    console.print(f"  {time.perf_counter() - started:.1f} s in all; nothing is left running")
    return code


if __name__ == "__main__":
    sys.exit(main())
