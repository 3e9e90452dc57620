"""Every server under the same load in turn, on one machine. No figure is printed for answers that were not verified."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench.lines import header
from bench.peers import table
from bench.peers.rows import ROWS, Row
from bench.peers.servers import PEER_KINDS, CannotBeHadError, Kind, Running, floor, load_binary, ours, start

RUN_TIMEOUT_S = 240


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--quick", action="store_true", help="one round of one second each")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each run")
    parser.add_argument("--only", metavar="CALL", action="append", help="only the rows whose name holds this")
    parser.add_argument("--peers", metavar="NAMES", help=f"only these of {','.join(PEER_KINDS)}; none for none")
    parser.add_argument("--durability", choices=["process", "power"], default="process", help="of ours")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.rounds, parsed.seconds = 1, 1.0
    return parsed


def say(text: str) -> None:
    """Tell how far it is; the tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def available(wanted: str | None) -> tuple[list[Kind], dict[str, str]]:
    """The peers that can be run here, and why each of the others cannot."""
    kinds, skipped = [], {}
    for name, make in PEER_KINDS.items():
        if wanted is not None and name not in wanted.split(","):
            continue
        try:
            kinds.append(make())
        except CannotBeHadError as error:
            skipped[name] = str(error)
            say(f"SKIPPED {name}: {error}")
    return kinds, skipped


def measure(load: Path, server: Running, row: Row, seconds: float) -> table.Result:
    """One run; a run that failed counts one error."""
    command = [str(load), "run", "--url", server.url, "--pid", str(server.process.pid), "--json"]
    command += ["--seconds", str(seconds), *row.arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
        result: table.Result = json.loads(done.stdout) if done.stdout else {"wrong": 0, "errors": 1}
        said = done.stderr.strip()
    except subprocess.TimeoutExpired:
        result, said = {"wrong": 0, "errors": 1}, f"no end within {RUN_TIMEOUT_S} s"
    if result["wrong"] or result["errors"]:
        say(f"{server.kind.name}: {row.name}: {result['wrong']} wrong, {result['errors']} errors: {said}")
    return result


def one_round(
    load: Path,
    kinds: list[Kind],
    rows: list[Row],
    seconds: float,
    results: table.Results,
    starts: dict[str, list[float]],
    skipped: dict[str, str],
) -> None:
    """Start each server afresh, give each row to each in turn, and end them."""
    with ExitStack() as stack:
        servers = []
        for kind in kinds:
            if kind.name in skipped:
                continue
            try:
                server = start(kind, load)
            except (CannotBeHadError, OSError) as error:
                skipped[kind.name] = str(error)
                say(f"SKIPPED {kind.name}: {error}")
                continue
            stack.callback(server.stop)
            starts[kind.name].append(server.start_s)
            servers.append(server)
        for row in rows:
            for server in servers:
                if not row.peers and server.kind.name not in (table.FLOOR, table.OURS):
                    continue
                # What the one before left unwritten is not to be written while this one is measured.
                os.sync()
                results[row.name, server.kind.name].append(measure(load, server, row, seconds))
            say(f"  {row.name}")


def main() -> int:
    """Measure, and print the tables; 1 when an answer was wrong."""
    options = arguments()
    rows = [row for row in ROWS if not options.only or any(word in row.name for word in options.only)]
    if not rows:
        say(f"no row is called {' or '.join(options.only)}; there are: {', '.join(row.name for row in ROWS)}")
        return 2
    load = load_binary()
    peers, skipped = available(options.peers)
    kinds = [floor(load), ours(options.durability), *peers]
    results: table.Results = defaultdict(list)
    starts: dict[str, list[float]] = defaultdict(list)
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        one_round(load, kinds, rows, options.seconds, results, starts, skipped)
    servers = [kind.name for kind in kinds if starts[kind.name]]
    if options.json:
        found = [{"row": row, "server": server, "rounds": rounds} for (row, server), rounds in results.items()]
        judged = {row.name: asdict(table.judged(row, results, options.durability)) for row in rows}
        print(json.dumps({"results": found, "starts_s": starts, "skipped": skipped, "judged": judged}))
    else:
        header(f"peers, {options.rounds} rounds of {options.seconds:g} s, ours durable to loss of {options.durability}")
        for part in (
            table.speeds(rows, servers, results, options.durability),
            table.latencies(rows, servers, results),
            table.costs(rows, servers, results),
            table.footprint(servers, results, starts),
        ):
            print("\n" + "\n".join(part))
        for name, reason in skipped.items():
            print(f"\nskipped {name}: {reason}")
    return int(any(result["wrong"] or result["errors"] for found in results.values() for result in found))
