"""Join lines as people use them: printed, pasted, listed, revoked, and not needed a second time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import COMMAND, House

TIMEOUT_S = 100


def buildnet(*arguments: str, state: str = "") -> subprocess.CompletedProcess[str]:
    words = [*COMMAND, *arguments, *(["--state", state] if state else [])]
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)


def tokens(state: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(buildnet("fleet", "tokens", "ls", "--json", state=state).stdout)
    return listed


def test_a_worker_joins_by_the_printed_line_and_again_without_it(house: House, tmp_path: Path) -> None:
    controller = house.up("--no-worker", "--organisation", "team")
    line, state = controller.ready["join"], controller.ready["state"]
    assert line.startswith(f"bnet://{controller.ready['listen']}/team?key=")
    # Others may read this file.
    assert "token=" not in (Path(state) / "controller.json").read_text()
    worker = house.join(line, "--slots", "1", name="w")
    assert worker.ready["url"] == line.partition("?")[0]
    ran = buildnet("run", "--state", state, "--", "sh", "-c", "echo from elsewhere")
    assert (ran.returncode, ran.stdout) == (0, "from elsewhere\n"), ran.stderr
    (token,) = tokens(state)
    assert (token["state"], len(token["used_by"])) == ("used", 64)
    shown = buildnet(
        "fleet", "show", json.loads(buildnet("fleet", "ls", "--json", state=state).stdout)[0]["node"], state=state
    )
    assert token["used_by"] in shown.stdout
    assert worker.stop() == 0
    again = house._start("join", "--state", str(tmp_path / "w"), "--slots", "1", worker_state=tmp_path / "w")
    assert again.ready["controller"] == worker.ready["controller"]
    assert again.stop() == 0
    refused = buildnet("join", line, "--json", state=str(tmp_path / "other"))
    assert refused.returncode == 125
    said = json.loads(refused.stderr.splitlines()[-1])["error"]["message"]
    assert said.startswith(f"{line.partition('?')[0]} refused this worker: this join token was used already"), said


def test_a_line_is_made_read_from_a_file_and_revoked(house: House, tmp_path: Path) -> None:
    controller = house.up("--no-worker")
    state = controller.ready["state"]
    made = json.loads(
        buildnet("fleet", "tokens", "new", "--note", "rack7", "--expires", "2h", "--json", state=state).stdout
    )
    assert made["note"] == "rack7"
    revoked = buildnet("fleet", "tokens", "revoke", made["id"], state=state)
    assert revoked.stdout == f"{made['id']} is revoked\n"
    path = tmp_path / "line"
    path.write_text(made["line"] + "\n")
    refused = buildnet("join", str(path), state=str(tmp_path / "w"))
    assert (refused.returncode, "was revoked; ask for a new join line" in refused.stderr) == (125, True), refused.stderr
    # Nothing of a token is in what is listed.
    secret = made["line"].partition("token=")[2]
    assert secret not in buildnet("fleet", "tokens", "ls", "--json", state=state).stdout
    for arguments, why in (
        (["join", "bnet://127.0.0.1:1/x"], "is not a join line"),
        (["join"], "no controller is named"),
        (["fleet", "tokens", "new", "--expires", "90d"], "from 1 s to 30 d"),
        (["fleet", "tokens", "revoke", "feedfeed"], "buildnet fleet tokens ls"),
    ):
        ended = buildnet(*arguments, state=state if arguments[0] == "fleet" else str(tmp_path / "v"))
        assert (ended.returncode, why in ended.stderr) == (125, True), ended.stderr
