"""The tables. A figure that was not seen is a dash, and a wrong answer spoils its row, whatever its speed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from bench.peers.rows import DURABLE_RATIO, Row

Result = dict[str, Any]
Results = dict[tuple[str, str], list[Result]]
# These are no peers: the one does nothing, the other is what is judged.
FLOOR, OURS = "floor", "ours"
BESIDE_BEST = "ours/best peer"


def median(results: list[Result], key: str) -> float | None:
    """The median over the rounds; nothing where a round failed."""
    if not results or any(key not in result or result["wrong"] or result["errors"] for result in results):
        return None
    return statistics.median(float(result[key]) for result in results)


def speed(row: Row, results: list[Result]) -> float | None:
    """MiB/s of what is large, else calls a second."""
    return median(results, "mib_per_s" if row.large else "calls_per_s")


def ratio(row: Row, results: Results, peer: str) -> float | None:
    """Ours over a peer's."""
    mine, other = (speed(row, results.get((row.name, server), [])) for server in (OURS, peer))
    return mine / other if mine and other else None


@dataclass(frozen=True)
class Judged:
    """What was seen of ours beside what is wanted: a ratio over `peer`, or calls a second where there is none."""

    seen: float | None
    target: float | None
    peer: str | None

    @property
    def verdict(self) -> str:
        """Nothing where one of the two is not known."""
        if self.seen is None or self.target is None:
            return ""
        return "met" if self.seen >= self.target else "short"


def judged(row: Row, results: Results, durability: str) -> Judged:
    """Beside casd, which syncs nothing, or bazel-remote, which syncs each blob and entry: as ours is durable."""
    if durability == "process":
        return Judged(ratio(row, results, "casd"), row.target, "casd")
    seen = ratio(row, results, "bazel-remote")
    if seen is not None or row.durable_per_s is None:
        return Judged(seen, DURABLE_RATIO if row.durable_per_s else None, "bazel-remote")
    return Judged(speed(row, results.get((row.name, OURS), [])), row.durable_per_s, None)


def beside_best(figures: dict[str, float | None]) -> str:
    """Ours over the best peer's, of what is better the less it is."""
    known = {name: figure for name, figure in figures.items() if figure and name != FLOOR}
    mine = known.pop(OURS, None)
    return cell(mine / min(known.values()) if mine and known else None, 2)


def cell(value: float | None, digits: int = 0) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def lines(head: list[str], body: list[list[str]]) -> list[str]:
    """Columns under their heads."""
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    return [
        "  ".join(
            word.ljust(width) if column == 0 else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *body]
    ]


def speeds(rows: list[Row], servers: list[str], results: Results, durability: str) -> list[str]:
    """Calls or MiB a second, what was seen of ours over a peer's, or alone, and what is wanted."""
    body = []
    for row in rows:
        found = judged(row, results, durability)
        figures = [cell(speed(row, results.get((row.name, server), []))) for server in servers]
        unit = "MiB/s" if row.large else "calls/s"
        digits = 2 if found.peer else 0
        over = f"{cell(found.seen, digits)} {'x ' + found.peer if found.peer else unit}"
        body.append([row.name, unit, *figures, over, cell(found.target, digits), found.verdict])
    return lines(["call", "unit", *servers, "seen", "target", ""], body)


def latencies(rows: list[Row], servers: list[str], results: Results) -> list[str]:
    """p50 and p99 in microseconds."""
    return per_server("p50 / p99, us", rows, servers, results, {"p50_us": 0, "p99_us": 0})


def costs(rows: list[Row], servers: list[str], results: Results) -> list[str]:
    """CPU of the server for one call, in microseconds; and the load's own, beside ours."""
    table = per_server("server CPU, us a call", rows, servers, results, {"server_cpu_us_per_call": 1})
    own = [cell(median(results.get((row.name, OURS), []), "load_cpu_us_per_call"), 1) for row in rows]
    width = max(len("the load's"), *map(len, own))
    return [f"{line}  {word.rjust(width)}" for line, word in zip(table, ["the load's", *own], strict=True)]


def per_server(title: str, rows: list[Row], servers: list[str], results: Results, digits: dict[str, int]) -> list[str]:
    """For each row and server its figures of these keys, and ours over the best peer's of each."""
    body = []
    for row in rows:
        figures = {
            key: {server: median(results.get((row.name, server), []), key) for server in servers} for key in digits
        }
        words = [" / ".join(cell(figures[key][server], places) for key, places in digits.items()) for server in servers]
        body.append([row.name, *words, " / ".join(map(beside_best, figures.values()))])
    return lines([title, *servers, BESIDE_BEST], body)


def footprint(servers: list[str], results: Results, starts: dict[str, list[float]]) -> list[str]:
    """Largest resident set, that after the last row, and time from start to the first right answer."""

    def most(server: str, what: str, row: str | None = None) -> float | None:
        seen = [
            result[what]
            for (of, name), found in results.items()
            for result in found
            if name == server and of == (row or of) and what in result
        ]
        return max(seen) / 1024 if seen else None

    last = next(reversed(results), ("", ""))[0]
    figures = {
        "peak memory, MiB": {server: most(server, "server_peak_kib") for server in servers},
        "memory after all rows, MiB": {server: most(server, "server_resident_kib", last) for server in servers},
        "to the first answer, ms": {
            server: statistics.median(starts[server]) * 1e3 if starts[server] else None for server in servers
        },
    }
    body = [[what, *map(cell, found.values()), beside_best(found)] for what, found in figures.items()]
    return lines(["", *servers, BESIDE_BEST], body)
