"""A rule is a sentence of the specification; a rule holds when every case of its test does. It judges no server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

Level = Literal["MUST", "SHOULD", "MAY"]
Outcome = Literal["passed", "failed", "skipped"]
MUST: Level = "MUST"
SHOULD: Level = "SHOULD"
MAY: Level = "MAY"
LEVELS: tuple[Level, ...] = (MUST, SHOULD, MAY)
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "skipped")


def rule(level: Level, where: str, sentence: str) -> pytest.MarkDecorator:
    """Mark a test as the test of one rule.

    Args:
        level: RFC 2119 word; a sentence of the specification that states a fact without one counts as MUST.
        where: the rpc, message or field that the sentence comes from.
        sentence: what it asks, in one sentence of ours.
    """
    return pytest.mark.rule(level, where, sentence)


@dataclass
class Case:
    """One run of a rule's test; `reason` of a failure or a skip is one line."""

    name: str
    outcome: Outcome
    reason: str = ""


@dataclass
class Rule:
    """One rule and how its cases ended."""

    id: str
    group: str
    level: Level
    where: str
    sentence: str
    cases: list[Case] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """Failed when a case failed; skipped when all were."""
        outcomes = {case.outcome for case in self.cases}
        if "failed" in outcomes:
            return "failed"
        return "passed" if "passed" in outcomes else "skipped"


def declare(item: pytest.Item) -> None:
    """Write an item's rule into its reports, which may be made in another process.

    Raises:
        pytest.UsageError: the test holds no rule.
    """
    mark = item.get_closest_marker("rule")
    if mark is None:
        raise pytest.UsageError(f"{item.nodeid} names no rule of the specification")
    item.user_properties.append(("rule", list(mark.args)))


class Score:
    """Gathers rules while they run, and tells how many of each level hold."""

    def __init__(self, url: str = "", instance: str = "") -> None:
        self.rules: dict[str, Rule] = {}
        self.url = url
        self.instance = instance

    def add(self, report: pytest.TestReport) -> None:
        """Take one report of a declared item."""
        mark = next((value for name, value in report.user_properties if name == "rule"), None)
        if mark is None or (report.when != "call" and report.passed):
            return
        name, _, parameters = report.nodeid.partition("[")
        file, _, test = name.rpartition("::")
        group = Path(file).stem.removeprefix("test_")
        level, where, sentence = mark
        found = self.rules.setdefault(name, Rule(f"{group}.{test}", group, level, where, sentence))
        found.cases.append(Case(parameters.rstrip("]"), report.outcome, _reason(report)))

    def failed(self, *levels: Level) -> list[Rule]:
        """Rules of these levels that do not hold."""
        return [r for r in self.rules.values() if r.outcome == "failed" and r.level in levels]

    def totals(self) -> dict[str, dict[str, int]]:
        """Level to outcome to count of rules."""
        counts = Counter((r.level, r.outcome) for r in self.rules.values())
        return {level: {outcome: counts[level, outcome] for outcome in OUTCOMES} for level in LEVELS}

    def summary(self) -> str:
        """`MUST 41/43, SHOULD 12/14, MAY 5/9, 7 skipped`."""
        totals = self.totals()
        parts = [f"{name} {n['passed']}/{n['passed'] + n['failed']}" for name, n in totals.items()]
        return ", ".join([*parts, f"{sum(n['skipped'] for n in totals.values())} skipped"])

    def table(self) -> Iterator[str]:
        """Lines for a person: a row a group, then the failures, then why rules were skipped."""
        yield f"{'group':<18}{'passed':>8}{'failed':>8}{'skipped':>8}"
        counts = Counter((r.group, r.outcome) for r in self.rules.values())
        for group in sorted({r.group for r in self.rules.values()}):
            yield f"{group:<18}" + "".join(f"{counts[group, outcome]:>8}" for outcome in OUTCOMES)
        for found in self.failed(*LEVELS):
            yield f"{found.level} not held, {found.where}: {found.sentence} ({found.id})"
        skips = Counter(c.reason for r in self.rules.values() if r.outcome == "skipped" for c in r.cases[:1])
        for reason, count in sorted(skips.items()):
            yield f"skipped {count}: {reason}"
        yield self.summary()

    def as_json(self) -> str:
        """The whole score for scripts."""
        rules: list[dict[str, Any]] = [{**asdict(r), "outcome": r.outcome} for r in self.rules.values()]
        whole = {"url": self.url, "instance": self.instance, "totals": self.totals(), "rules": rules}
        return json.dumps(whole, indent=2) + "\n"


def _reason(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr)
    return " ".join(text.split())[:300]
