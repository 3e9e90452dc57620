"""`buildnet actions submit|watch|ls|cancel` and `buildnet run` with all that a spec can say, as a person calls them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COMMAND, Role


def buildnet(role: Role, *words: str, cwd: Path, code: int = 0) -> str:
    at = next((i for i, word in enumerate(words) if word == "--"), len(words))
    call = [*COMMAND, *words[:at], "--url", role.url, *words[at:]]
    ended = subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code, ended.stderr
    return ended.stdout if code in (0, 1) else ended.stderr


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "hello.txt").write_text("hello\n")
    document: dict[str, Any] = {
        "actions": {
            "shout": {
                "arguments": ["sh", "-c", "tr a-z A-Z < in/hello.txt > out"],
                "variables": {"PATH": "/usr/bin:/bin"},
                "inputs": [{"path": "in/hello.txt", "local": "hello.txt"}],
                "outputs": ["out"],
                "resources": {"cpus": 0.5, "memory": "64 MiB"},
                "timeout": "1m",
            },
            "twice": {
                "arguments": ["sh", "-c", "cat a a"],
                "variables": {"PATH": "/usr/bin:/bin"},
                "inputs": [{"path": "a", "output": "out", "of": "shout"}],
            },
        }
    }
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(document))
    return path


def test_a_graph_is_submitted_watched_and_listed(running: Role, graph: Path, tmp_path: Path) -> None:
    told = json.loads(buildnet(running, "actions", "submit", str(graph), "--json", cwd=tmp_path))
    assert told["failed"] == []
    assert {info["state"] for info in told["actions"].values()} == {"completed"}
    logs = buildnet(running, "actions", "logs", told["actions"]["twice"]["id"], cwd=tmp_path)
    assert logs == "HELLO\nHELLO\n"
    table = buildnet(running, "actions", "submit", str(graph), cwd=tmp_path)
    assert [line.split()[:4] for line in table.splitlines()[1:]] == [
        ["shout", "completed", "0", "cache"],
        ["twice", "completed", "0", "cache"],
    ]
    only = ("--graph", told["graph"], "--in", "completed")
    listed = json.loads(buildnet(running, "actions", "ls", *only, "--json", cwd=tmp_path))
    assert {info["graph_name"] for info in listed} == {"shout", "twice"}
    assert json.loads(buildnet(running, "actions", "ls", *only, "--worker", "nobody", "--json", cwd=tmp_path)) == []
    watched = buildnet(running, "actions", "watch", "--once", "--graph", told["graph"], cwd=tmp_path)
    assert len(watched.splitlines()) == 2
    assert "shout" in watched


def test_a_failure_is_the_exit_code(running: Role, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"arguments": ["sh", "-c", "exit 4"], "variables": {"PATH": "/bin"}}')
    told = buildnet(running, "actions", "submit", "one.json", "--json", cwd=tmp_path, code=1)
    assert json.loads(told)["actions"]["action"]["exit_code"] == 4


def test_a_graph_is_cancelled(running: Role, tmp_path: Path) -> None:
    spec = {"arguments": ["sh", "-c", f"sleep 60; echo {time.time_ns()}"], "variables": {"PATH": "/bin:/usr/bin"}}
    (tmp_path / "long.json").write_text(json.dumps({"actions": {"a": spec, "b": {**spec, "salt": "b"}}}))
    words = ("actions", "submit", "long.json", "--no-wait", "--client-id", "long", "--json")
    told = json.loads(buildnet(running, *words, cwd=tmp_path))
    assert json.loads(buildnet(running, *words, cwd=tmp_path)) == told, "the same submission"
    assert buildnet(running, "actions", "cancel", "--graph", told["graph"], cwd=tmp_path).startswith("2 ")
    assert "one of them" in buildnet(running, "actions", "cancel", cwd=tmp_path, code=2)
    assert "invocation" in buildnet(running, "actions", "cancel", "--invocation", "none", cwd=tmp_path, code=125)


def test_run_says_all_that_a_spec_can(running: Role, tmp_path: Path) -> None:
    asked = ("--effect", "network=ambient", "--cpus", "0.5", "--memory", "64MiB", "--timeout", "30", "--priority", "5")
    first = json.loads(buildnet(running, "run", *asked, "--json", "--", "true", cwd=tmp_path))
    again = json.loads(buildnet(running, "run", *asked, "--json", "--", "true", cwd=tmp_path))
    assert (first["cached"], again["cached"]) == (False, True)
    other = json.loads(buildnet(running, "run", *asked[2:], "--json", "--", "true", cwd=tmp_path))
    assert other["action"] != first["action"], "an effect is part of what an action is"
    sooner = json.loads(buildnet(running, "run", *asked[:-1], "-5", "--json", "--", "true", cwd=tmp_path))
    assert sooner["action"] == first["action"], "a priority is not"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--effect", "network=virtual"), "its levels are none, declared, budgeted:BYTES, ambient"),
        (("--effect", "gravity=none"), "effects are network"),
        (("--cpus", "none"), "at most three places"),
        (("--memory", "5"), "is not a size"),
        (("--secret", "TOKEN=not a name!"), "name a secret"),
        (("--pin", "gcc=>12"), "as in gcc=12.2"),
        (("--platform", "effect:network=ambient"), "use effects"),
        (("--platform", "tier=trusted"), "use effects, resources, require, secrets or tier"),
        (("--timeout", "9000"), "7200"),
        (("--effect", "network=none", "--effect", "network=ambient"), "gives network twice"),
        (("--input", "x:a", "--input", "y:a"), "two things at a"),
        (("--twice", "--receipt", "proof"), "no result to prove"),
    ],
)
def test_what_cannot_be_meant_is_told(running: Role, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in buildnet(running, "run", *words, "--", "true", cwd=tmp_path, code=125)
