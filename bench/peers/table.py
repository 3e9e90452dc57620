"""The tables. A figure that was not seen is a dash, and a wrong answer spoils its row, whatever its speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from bench.peers.rows import Row

Result = dict[str, Any]
Results = dict[tuple[str, str], list[Result]]


def median(results: list[Result], key: str) -> float | None:
    """The median over the rounds; nothing where a round failed."""
    if not results or any(key not in result or result["wrong"] or result["errors"] for result in results):
        return None
    return statistics.median(float(result[key]) for result in results)


def speed(row: Row, results: list[Result]) -> float | None:
    """MiB/s of what is large, else calls a second."""
    return median(results, "mib_per_s" if row.large else "calls_per_s")


def ratio(row: Row, results: Results, peer: str = "casd") -> float | None:
    """Ours over a peer's."""
    mine, other = (speed(row, results.get((row.name, server), [])) for server in ("ours", peer))
    return mine / other if mine and other else None


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


def speeds(rows: list[Row], servers: list[str], results: Results) -> list[str]:
    """Calls or MiB a second, the ratio that is wanted and the ratio that was seen."""
    body = []
    for row in rows:
        seen = ratio(row, results)
        verdict = "" if seen is None or row.target is None else ("met" if seen >= row.target else "short")
        figures = [cell(speed(row, results.get((row.name, server), []))) for server in servers]
        unit = "MiB/s" if row.large else "calls/s"
        body.append([row.name, unit, *figures, cell(seen, 2), cell(row.target, 2), verdict])
    return lines(["call", "unit", *servers, "ours/casd", "target", ""], body)


def latencies(rows: list[Row], servers: list[str], results: Results) -> list[str]:
    """p50 and p99 in microseconds."""

    def both(found: list[Result]) -> str:
        return f"{cell(median(found, 'p50_us'))} / {cell(median(found, 'p99_us'))}"

    return per_server("p50 / p99, us", rows, servers, results, both)


def costs(rows: list[Row], servers: list[str], results: Results) -> list[str]:
    """CPU of the server for one call, in microseconds; and the load's own, beside ours."""

    def server(found: list[Result]) -> str:
        return cell(median(found, "server_cpu_us_per_call"), 1)

    table = per_server("server CPU, us a call", rows, servers, results, server)
    own = [cell(median(results.get((row.name, "ours"), []), "load_cpu_us_per_call"), 1) for row in rows]
    width = max(len("the load's"), *map(len, own))
    return [f"{line}  {word.rjust(width)}" for line, word in zip(table, ["the load's", *own], strict=True)]


def per_server(
    title: str, rows: list[Row], servers: list[str], results: Results, text: Callable[[list[Result]], str]
) -> list[str]:
    """One text for each row and server."""
    body = [[row.name, *(text(results.get((row.name, server), [])) for server in servers)] for row in rows]
    return lines([title, *servers], body)


def footprint(servers: list[str], results: Results, starts: dict[str, list[float]]) -> list[str]:
    """Largest resident set, that after the last row, and time from start to the first right answer."""

    def most(server: str, what: str, row: str | None = None) -> str:
        seen = [
            result[what]
            for (of, name), found in results.items()
            for result in found
            if name == server and of == (row or of) and what in result
        ]
        return cell(max(seen) / 1024 if seen else None)

    last = next(reversed(results), ("", ""))[0]
    peaks = [most(server, "server_peak_kib") for server in servers]
    after = [most(server, "server_resident_kib", last) for server in servers]
    times = [cell(statistics.median(starts[server]) * 1e3 if starts[server] else None) for server in servers]
    body = [
        ["peak memory, MiB", *peaks],
        ["memory after all rows, MiB", *after],
        ["to the first answer, ms", *times],
    ]
    return lines(["", *servers], body)
