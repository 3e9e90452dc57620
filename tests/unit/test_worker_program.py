"""A program that is not there is told apart before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildnet.errors import InvalidRequest
from buildnet.sandbox.policy import Limits, Means, Plan, plan_of
from buildnet.worker.program import check_program


def plan(name: str, path: str | None = None) -> Plan:
    env = [] if path is None else [("PATH", path)]
    return plan_of([name], env, frozenset(), Means("process", private_network=False), Limits(), 1.0)


def test_programs_that_are_there(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "script"
    script.parent.mkdir()
    script.touch(mode=0o755)
    for made in (
        plan("/bin/sh"),
        plan("sh"),
        plan("bin/script"),
        plan("./bin/script"),
        plan("script", "bin"),
        plan("script", f"/nowhere:{tmp_path}/bin"),
    ):
        check_program(made, tmp_path)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (plan("no-such-program"), "looked for in /usr/local/bin"),
        (plan("sh", "/nowhere"), "looked for in /nowhere"),
        (plan("./gone"), "is not there"),
        (plan("/bin"), "is a directory"),
        (plan("./plain"), "may not be executed"),
        (plan("x" * 5000), "looked for in"),
        (plan("./" + "x" * 5000), "is not there"),
    ],
)
def test_programs_that_cannot_run_are_named_with_the_reason(tmp_path: Path, made: Plan, why: str) -> None:
    (tmp_path / "plain").touch(mode=0o644)
    with pytest.raises(InvalidRequest, match=why):
        check_program(made, tmp_path)
