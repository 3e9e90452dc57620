"""`buildnet run` and `cas` among odd names, closed streams, and results that strangers wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from buildnet.client import connect
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conftest import COMMAND, Role

NAME_OF_255 = "n" * 255


@pytest.fixture
def call(running: Role, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    place = tmp_path / "here"
    place.mkdir()

    def call(*words: str | bytes, shell: str = "", **how: object) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "BUILDNET_URL": running.url}
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": place, "env": environment}
        # Not by preexec_fn: grpcio here crashes children that are not yet another program (grpc/grpc#43055).
        begun = ["sh", "-c", f'{shell}; exec "$@"', "sh"] if shell else []
        return subprocess.run([*begun, *COMMAND, *words], timeout=60, **{**piped, **how})  # type: ignore[call-overload]

    return call


def test_a_poisoned_result_writes_nothing_elsewhere(
    running: Role, tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    words = ("run", "--json", "--output", "x", "--", "sh", "-c", "echo good > x")
    action, _, size = json.loads(call(*words).stdout)["action"].partition("/")
    evil = re.ActionResult()
    for path in ("../up", str(tmp_path / "abs"), "undeclared", "x"):
        evil.output_files.add(
            path=path
        ).digest.hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with grpc.insecure_channel(running.ready["listen"]) as channel:
        update = channel.unary_unary(
            "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
            re.UpdateActionResultRequest.SerializeToString,
            re.ActionResult.FromString,
        )
        digest = re.Digest(hash=action, size_bytes=int(size))
        update(re.UpdateActionResultRequest(action_digest=digest, action_result=evil), timeout=10)
    (tmp_path / "here/x").unlink()
    ended = call(*words)
    assert (ended.returncode, json.loads(ended.stderr)["error"]["code"]) == (125, "output_invalid")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert not list((tmp_path / "here").iterdir())


def test_an_output_has_a_name_as_long_as_names_may_be(
    tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    ended = call("run", "--output", NAME_OF_255, "--output", "d", "--", "sh", "-c", f"echo 1 | tee {NAME_OF_255} > d")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "here" / NAME_OF_255).read_text() == "1\n"


def test_a_name_that_is_not_utf_8_is_told_or_is_only_ours(
    tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    (tmp_path / "here" / os.fsdecode(b"odd\xff")).write_text("odd")
    ended = call("run", "--input", b"odd\xff", "--", "true")
    assert ended.returncode == 125
    assert b"not named in UTF-8" in ended.stderr
    ended = call("run", "--input", b"odd\xff:even", "--", "cat", "even")
    assert ended.stdout == b"odd"
    ended = call("run", "--output", "x", "--output-dir", b"to\xff", "--", "sh", "-c", "echo x > x")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "here" / os.fsdecode(b"to\xff") / "x").read_text() == "x\n"


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_fails_nothing(call: Callable[..., subprocess.CompletedProcess[bytes]], closed: int) -> None:
    ended = call("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7", shell=f"exec {closed}>&-")
    assert ended.returncode == 7
    assert ended.stdout == (b"" if closed == 1 else b"out\n")
    assert ended.stderr == (b"" if closed == 2 else b"err\n")


def test_what_cannot_be_printed_or_written_is_told(call: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stderr) == (125, b"buildnet: No space left on device\n")
    ended = call("run", "--output", "x", "--output-dir", "/dev/null", "--", "touch", "x")
    assert ended.returncode == 125
    assert b"Traceback" not in ended.stderr


def test_a_pipe_is_stored_by_what_it_says(call: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    said = os.urandom(100_000)
    ended = call("cas", "put", "/dev/stdin", input=said)
    assert ended.returncode == 0, ended.stderr
    assert call("cas", "get", ended.stdout.strip()).stdout == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_for_a_server_that_says_nothing_is_stopped_at_once(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        waiting = subprocess.Popen([*COMMAND, "cas", "put", "--url", url, str(tmp_path / "file")])
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1), "it has asked"
            waiting.send_signal(number)
            assert waiting.wait(timeout=15) == 128 + number


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_cut_short_is_told(
    running: Role, tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[bytes]], unbuffered: str
) -> None:
    digest = call("cas", "put", "-", input=b"x" * 100_000).stdout.strip()

    environment = {**os.environ, "BUILDNET_URL": running.url, "PYTHONUNBUFFERED": unbuffered}
    for words in (("cas", "get", digest), ("run", "--", "head", "-c", "100000", "/dev/zero")):
        with (tmp_path / "cut").open("wb") as cut:
            # A file over 4 KiB is as a full disk: what still fits is written, then nothing.
            ended = call(*words, stdout=cut, env=environment, shell="ulimit -f 8")
        assert ended.returncode == 125
        assert b"File too large" in ended.stderr


def test_an_action_whose_reader_has_gone_is_cancelled(running: Role) -> None:
    script = "while echo still here; do sleep 0.05; done"
    call = [*COMMAND, "run", "--url", running.url, "--no-cache", "--", "sh", "-c", script]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as printing:
        assert printing.stdout is not None
        assert printing.stdout.readline() == b"still here\n"
        printing.stdout.close()
        assert printing.wait(timeout=20) == 141
    with connect(running.url) as client:
        (newest,) = client.actions(limit=1)
    assert (newest.arguments[-1], newest.state) == (script, "cancelled")
