"""Which server is tried: the one that --url names, else our own, started here and stopped at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.execution import Executor
from tests.conformance.scoring import MAY, MUST, SHOULD, Score, declare
from tests.conformance.server import Server
from tests.conftest import House

HERE = Path(__file__).parent
SCORE = pytest.StashKey[Score]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--url", dest="conformance_url", help="grpc://HOST:PORT or grpcs://HOST:PORT; ours if left out")
    group.addoption("--instance", dest="conformance_instance", default="", help="instance name")
    group.addoption("--bearer-token", dest="conformance_token", default="", help="sent as authorization: Bearer")
    group.addoption(
        "--exec-property",
        dest="conformance_properties",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="platform property of actions; may come several times",
    )
    group.addoption("--conformance-report", dest="conformance_report", type=Path, help="write the score as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(level, where, sentence): the test of one rule of the specification")
    score = Score(config.getoption("conformance_url", None) or "", config.getoption("conformance_instance", ""))
    config.stash[SCORE] = score
    config.pluginmanager.register(Scorer(score), "conformance-scorer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            declare(item)


class Scorer:
    """Takes the reports, which may come from other processes, and tells the score at the end."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.score.add(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        path = session.config.getoption("conformance_report", None)
        if path and not hasattr(session.config, "workerinput"):
            path.write_text(self.score.as_json())
        # A foreign server may choose not to follow advice; we may not.
        advice = sum(case.outcome == "failed" for r in self.score.failed(SHOULD, MAY) for case in r.cases)
        only_advice = not self.score.failed(MUST) and session.testsfailed == advice
        if self.score.url and only_advice and session.exitstatus == pytest.ExitCode.TESTS_FAILED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.score.rules:
            terminalreporter.section(f"conformance of {self.score.url or 'our own server'}")
            for line in self.score.table():
                terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that is tried, with its capabilities read."""
    config = request.config
    score = config.stash[SCORE]
    house = House(tmp_path_factory.mktemp("conformance"))
    try:
        target = score.url or house.up("--slots", "2").url
        token = config.getoption("conformance_token", "")
        with Server(target, score.instance, token, ours=not score.url) as server:
            yield server
    finally:
        house.close()


@pytest.fixture
def executor(request: pytest.FixtureRequest, server: Server) -> Executor:
    """What runs actions on the server; skipped where it says that nothing does."""
    properties = request.config.getoption("conformance_properties")
    return Executor(server, [(name, value) for name, _, value in (one.partition("=") for one in properties)])
