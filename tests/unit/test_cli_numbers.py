"""A number that no message can carry is wrong usage, said before anybody is asked, and never a traceback."""

from __future__ import annotations

import pytest

from buildnet.cli.failures import USAGE, guarded
from buildnet.cli.main import cli

HUGE = str(10**23)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ledger", "show", HUGE],
        ["ledger", "prove", HUGE],
        ["ledger", "tail", "--from", HUGE],
        ["ledger", "export", "--from", HUGE],
        ["ledger", "export", "--to", HUGE],
        ["cas", "ls", "--limit", HUGE],
        ["cas", "why", "--look-at", HUGE, "a/1"],
        ["cas", "gc", "--to", f"{HUGE}PiB"],
        ["actions", "ls", "--limit", HUGE],
        ["actions", "history", "--limit", HUGE, "gcc"],
        ["run", "--priority", HUGE, "true"],
        ["run", "--priority", f"-{HUGE}", "true"],
    ],
    ids=" ".join,
)
def test_a_number_beyond_any_message_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # Nobody could answer there: to be refused nobody is asked.
    where = ["--url", "grpc://127.0.0.1:1"]
    named = 1 if arguments[0] == "run" else 2
    arguments = [*arguments[:named], *where, *arguments[named:]]
    assert guarded(lambda _: cli.main(arguments, standalone_mode=False)) == USAGE
    assert "Invalid value" in capsys.readouterr().err


def test_a_token_on_the_command_line_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    token = f"{'a' * 40}.{'b' * 40}.{'c' * 40}"
    assert guarded(lambda _: cli.main(["token", "show", token], standalone_mode=False)) == USAGE
    told = capsys.readouterr().err
    assert token not in told
    assert "BUILDNET_TOKEN" in told
