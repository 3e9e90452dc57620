"""Which server is tried: the one that --url names, else our own, started here and stopped at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.scoring import MAY, MUST, SHOULD, Score
from tests.conformance.server import Server
from tests.conftest import House

HERE = Path(__file__).parent
SCORE = pytest.StashKey[Score]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--url", dest="conformance_url", help="grpc://HOST:PORT or grpcs://HOST:PORT; ours if left out")
    group.addoption("--instance", dest="conformance_instance", default="", help="instance name")
    group.addoption("--bearer-token", dest="conformance_token", default="", help="sent as authorization: Bearer")
    group.addoption("--conformance-report", dest="conformance_report", type=Path, help="write the score as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(level, where, sentence): the test of one rule of the specification")
    config.stash[SCORE] = Score()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            config.stash[SCORE].declare(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    item.config.stash[SCORE].add(report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    score = session.config.stash[SCORE]
    if path := session.config.getoption("conformance_report", None):
        path.write_text(score.as_json())
    # A foreign server may choose not to follow advice; we may not.
    foreign = session.config.getoption("conformance_url", None)
    advice = sum(c.outcome == "failed" for r in score.failed(SHOULD, MAY) for c in r.cases)
    only_advice = not score.failed(MUST) and session.testsfailed == advice
    if foreign and only_advice and session.exitstatus == pytest.ExitCode.TESTS_FAILED:
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    score = config.stash[SCORE]
    if score.rules:
        terminalreporter.section(f"conformance of {score.url or 'our own server'}")
        for line in score.table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that is tried, with its capabilities read."""
    config = request.config
    score = config.stash[SCORE]
    url = config.getoption("conformance_url", None)
    house = House(tmp_path_factory.mktemp("conformance"))
    try:
        target = url or house.up("--no-worker").url
        instance = config.getoption("conformance_instance", "")
        server = Server(target, instance, config.getoption("conformance_token", ""))
        score.url, score.instance = url or "", instance
        with server:
            yield server
    finally:
        house.close()
