"""Every failure of a command is a sentence and an exit code, or JSON where that was asked for."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import click
import pytest

from buildnet.app.config import WorkerRunConfig, log_level
from buildnet.cli import failures
from buildnet.cli.failures import CANNOT, Asked, guarded
from buildnet.cli.main import cli
from buildnet.cli.run import _by_name, _inputs, _pairs
from buildnet.errors import InvalidRequest


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "there"), "there: No such file or directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
    ],
)
def test_what_this_machine_refuses_is_told(capsys: pytest.CaptureFixture[str], error: OSError, said: str) -> None:
    def fail(asked: Asked) -> None:
        raise error

    # 1 would be taken for the exit code of a command that ran.
    assert guarded(fail) == CANNOT
    assert capsys.readouterr().err == f"buildnet: {said}\n"


def test_errors_are_json_when_the_command_was_asked_for_json(capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: str) -> str:
        code = guarded(lambda asked: cli.main(list(words), prog_name="buildnet", standalone_mode=False, obj=asked))
        assert code == CANNOT
        return capsys.readouterr().err

    assert json.loads(call("run", "--json", "--cpus", "no", "--", "x"))["error"]["code"] == "invalid_request"
    # The command's own words are not ours.
    assert call("run", "--cpus", "no", "--", "x", "--json").startswith("buildnet: ")
    assert call("run", "--cpus", "no", "x", "--json").startswith("buildnet: ")


def test_who_cannot_be_told_gets_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(click, "echo", full)
    assert failures.say(InvalidRequest("x"), Asked()) == CANNOT


def test_what_can_have_one_value_is_given_once() -> None:
    assert _by_name(["a=1", "a=1", "b=2"], "--effect") == {"a": "1", "b": "2"}
    with pytest.raises(InvalidRequest, match="a twice"):
        _by_name(["a=1", "a=2"], "--effect")
    # A platform property may have several (REAPI platform.md: ISA).
    assert _pairs(["ISA=a", "ISA=b"], "--platform") == [("ISA", "a"), ("ISA", "b")]


def test_two_inputs_at_one_place_are_refused() -> None:
    assert _inputs(["a:x", "a:x", "b"]) == {"x": Path("a"), "b": Path("b")}
    with pytest.raises(InvalidRequest, match="two things at x"):
        _inputs(["a:x", "b:x"])


def test_a_level_of_the_log_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDNET_LOG", "verbose")
    with pytest.raises(InvalidRequest, match="'verbose'"):
        log_level()
    monkeypatch.setenv("BUILDNET_LOG", "Info")
    assert log_level() == "INFO"


def test_one_failure_among_tasks_is_told_as_itself(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(asked: Asked) -> None:
        raise BaseExceptionGroup("tasks", [BaseExceptionGroup("more", [OSError(errno.ENOSPC, "full")])])

    assert guarded(fail) == CANNOT
    assert capsys.readouterr().err == "buildnet: full\n"


def test_a_state_directory_that_no_text_can_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'/a/\\udcff' is not named in UTF-8"):
        WorkerRunConfig("grpc://127.0.0.1:1", Path("/a/\udcff"))
