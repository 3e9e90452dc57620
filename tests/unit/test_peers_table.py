"""The peers' table: what is judged by which peer, and what is left out of a ratio."""

from __future__ import annotations

import pytest

from bench.peers import table
from bench.peers.rows import ROWS
from bench.peers.table import Judged, Result, Results

ROW = {row.name: row for row in ROWS}


def seen(**speeds: float) -> Results:
    """One round of batch-update: calls a second of each server; `_` in a name stands for a hyphen."""
    return {("batch-update", name.replace("_", "-")): [result(speed)] for name, speed in speeds.items()}


def result(speed: float, p50_us: float = 100, wrong: int = 0) -> Result:
    return {"wrong": wrong, "errors": 0, "calls_per_s": speed, "p50_us": p50_us, "p99_us": 4 * p50_us}


@pytest.mark.parametrize(
    ("durability", "results", "expected", "verdict"),
    [
        ("process", seen(ours=600, casd=100, bazel_remote=1), Judged(6.0, 6.0, "casd"), "met"),
        ("process", seen(ours=599, casd=100), Judged(5.99, 6.0, "casd"), "short"),
        ("process", seen(ours=599), Judged(None, 6.0, "casd"), ""),
        ("power", seen(ours=300, casd=1, bazel_remote=100), Judged(3.0, 3.0, "bazel-remote"), "met"),
        ("power", seen(ours=5000, bazel_remote=2000), Judged(2.5, 3.0, "bazel-remote"), "short"),
        ("power", seen(ours=3900, casd=1), Judged(3900, 3900, None), "met"),
        ("power", seen(ours=3899), Judged(3899, 3900, None), "short"),
    ],
)
def test_the_peer_that_judges_is_as_durable(durability: str, results: Results, expected: Judged, verdict: str) -> None:
    found = table.judged(ROW["batch-update"], results, durability)
    assert (found, found.verdict) == (expected, verdict)


def test_only_what_is_written_has_a_target_when_power_may_be_lost() -> None:
    results = {("batch-read", name): [result(speed)] for name, speed in (("ours", 9), ("bazel-remote", 3))}
    found = table.judged(ROW["batch-read"], results, "power")
    assert (found, found.verdict) == (Judged(3.0, None, "bazel-remote"), "")


def test_the_best_peer_is_the_least_and_is_none_of_ours() -> None:
    assert table.beside_best({"floor": 1, "ours": 30, "casd": 60, "bazel-remote": 40, "bb-storage": None}) == "0.75"
    assert table.beside_best({"floor": 1, "ours": 30}) == "-"
    assert table.beside_best({"floor": 1, "casd": 60}) == "-"


def test_each_table_ends_with_ours_beside_the_best() -> None:
    rows = [ROW["batch-update"]]
    results = {
        ("batch-update", "ours"): [result(600, 50)],
        ("batch-update", "casd"): [result(100, 200)],
        ("batch-update", "bazel-remote"): [result(900, 10, wrong=1)],
    }
    servers = ["ours", "casd", "bazel-remote"]
    speeds = table.speeds(rows, servers, results, "process")
    assert speeds[1].split() == ["batch-update", "calls/s", "600", "100", "-", "6.00", "x", "casd", "6.00", "met"]
    assert table.latencies(rows, servers, results)[1].split("  ")[-1].strip() == "0.25 / 0.25"
    starts = {"ours": [0.5], "casd": [0.25], "bazel-remote": []}
    assert table.footprint(servers, results, starts)[3].split("ms")[1].split() == ["500", "250", "-", "2.00"]
