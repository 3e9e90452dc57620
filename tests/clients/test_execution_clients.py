"""Execution clients that share no code: BuildGrid's (Python), and those of the remote-apis SDK (Go)."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from http_tools import BGD, run, why_not

from tests.conftest import House

pytestmark = [pytest.mark.client, pytest.mark.timeout(300)]

# Twice the same is a hit, another an execution.
RANDOM = "od -An -N8 -tx8 /dev/urandom"
REXEC = os.environ.get("REXEC") or shutil.which("rexec")
REMOTETOOL = os.environ.get("REMOTETOOL") or shutil.which("remotetool")
needs_sdk = pytest.mark.skipif(
    REXEC is None or REMOTETOOL is None,
    reason="rexec and remotetool of bazelbuild/remote-apis-sdks are not on PATH, nor named in REXEC and REMOTETOOL",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield house.up().url.removeprefix("grpc://")
    finally:
        house.close()


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    directory = tmp_path / "input"
    (directory / "sub").mkdir(parents=True)
    (directory / "hello.txt").write_text("hello\n")
    (directory / "sub" / "salt.txt").write_text(f"{os.urandom(8).hex()}\n")
    return directory


@pytest.mark.skipif(why_not(BGD) is not None, reason=str(why_not(BGD)))
def test_bgd_executes_hits_and_executes_again_when_it_is_to_skip_the_cache(
    address: str, inputs: Path, tmp_path: Path
) -> None:
    def bgd(*words: str) -> str:
        remote = ("--remote", f"http://{address}", "--instance-name", "")
        done = run(tmp_path, BGD, words[0], *remote, *words[1:])
        return done.stdout + done.stderr

    def execute(*flags: str) -> str:
        shutil.rmtree(tmp_path / "testing", ignore_errors=True)
        script = f"cat sub/salt.txt > out.txt; {RANDOM} >> out.txt"
        wanted = ("-p", "OSFamily", "linux", "--output-file", "out.txt")
        bgd("execute", "command", *flags, *wanted, str(inputs), "--", "/bin/sh", "-c", script)
        (brought,) = (tmp_path / "testing").rglob("out.txt")
        return brought.read_text()

    assert "SHA256" in bgd("capabilities")
    bgd("cas", "upload-dir", "--verify", str(inputs))
    cold = execute("--enable-action-cache")
    assert cold.startswith((inputs / "sub" / "salt.txt").read_text())
    assert execute("--enable-action-cache") == cold
    assert execute() != cold


@needs_sdk
def test_rexec_runs_hits_and_tells_failures_and_timeouts_apart(address: str, inputs: Path, tmp_path: Path) -> None:
    def rexec(script: str, *flags: str) -> tuple[str, str]:
        done = run(
            tmp_path,
            str(REXEC),
            f"--service={address}",
            "--service_no_security",
            f"--exec_root={inputs}",
            "--inputs=hello.txt,sub",
            "--platform=OSFamily=linux",
            "--environment_variables=PATH=/usr/bin:/bin",
            *flags,
            "--",
            "/bin/sh",
            "-c",
            script,
        )
        return done.stdout, done.stderr

    made = "cp sub/salt.txt out.txt; mkdir -p d/e; cp hello.txt d/e/f; ln -s e/f d/l; echo out; echo err >&2; " + RANDOM
    flags = ("--output_files=out.txt", "--output_directories=d")
    cold = rexec(made, *flags)
    assert cold[0].startswith("out\n")
    assert "err\n" in cold[1]
    assert (inputs / "out.txt").read_text() == (inputs / "sub" / "salt.txt").read_text()
    assert (inputs / "d" / "l").read_text() == "hello\n"
    assert rexec(made, *flags)[0] == cold[0]
    assert rexec(made, "--accept_cached=false", *flags)[0] != cold[0]
    assert "exit code 3" in rexec("exit 3")[1]
    assert "TIMED OUT" in rexec("sleep 60", "--exec_timeout=1s")[1]
    assert len(rexec("head -c 6000000 /dev/zero | tr '\\\\0' a")[0]) == 6_000_000


@needs_sdk
def test_remotetool_uploads_a_directory_and_brings_it_back(address: str, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    (sent / "empty").mkdir(parents=True)
    for number in range(200):
        (sent / f"f{number}").write_bytes(os.urandom(number * 40))
    (sent / "large").write_bytes(os.urandom(20 << 20))
    remote = (str(REMOTETOOL), f"--service={address}", "--service_no_security")
    told = tmp_path / "told.json"
    run(tmp_path, *remote, "--operation=upload_dir", f"--path={sent}", f"--json={told}")
    facts = json.loads(told.read_text())
    # The empty blob is always there.
    assert facts["CountCacheMisses"] == facts["CountBlobs"] - 1
    root = f"{facts['RootDigest']['Hash']}/{facts['RootDigest']['Size']}"
    run(tmp_path, *remote, "--operation=upload_dir", f"--path={sent}", f"--json={told}")
    assert json.loads(told.read_text())["BytesTransferred"] == 0
    back = tmp_path / "back"
    run(tmp_path, *remote, "--operation=download_dir", f"--digest={root}", f"--path={back}")
    assert {p.name: p.read_bytes() for p in back.iterdir() if p.is_file()} == {
        p.name: p.read_bytes() for p in sent.iterdir() if p.is_file()
    }
    assert (back / "empty").is_dir()
