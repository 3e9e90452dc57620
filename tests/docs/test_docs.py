"""The documentation is true: its links lead somewhere, its commands run, its tables miss nothing."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from buildnet.errors import BY_CODE
from tests.conftest import COMMAND, House

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text()):
        path, anchor = target
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {path}"
        if anchor and linked.is_file():
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            anchors = {"#" + re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{page.name} links to {path}{anchor}"


def shown(page: str) -> list[str]:
    """Commands of `buildnet` that a page shows, without those that serve."""
    text = "\n".join(re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    lines = [line.removeprefix("$ ").split("    #")[0] for line in text.splitlines() if line.startswith("$ ")]
    served = ("buildnet up", "buildnet join", "buildnet witness")
    return [line for line in lines if line.startswith(("buildnet", "cat", "cp", "./")) and not line.startswith(served)]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/tour.md",
        "docs/how-to/actions.md",
        "docs/how-to/cache.md",
        "docs/how-to/fleet.md",
        "docs/how-to/ledger.md",
        "docs/how-to/page.md",
        "docs/how-to/resources.md",
        "docs/how-to/why.md",
    ],
)
def test_commands_run_as_shown(page: str, house: House, tmp_path: Path) -> None:
    server = house.up("--slots", "1")
    (tmp_path / "hello.c").write_text('#include <stdio.h>\nint main() { puts("hello"); }\n')
    for block in re.findall(r"```json\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        (tmp_path / "graph.json").write_text(block)
    commands = shown(page)
    assert commands
    for line in commands:
        words = [word.replace("DIR/", f"{server.ready['state']}/") for word in shlex.split(line)]
        if words[0] == "buildnet":
            words = [*COMMAND, *words[1:]]
            place = words.index("--") if "--" in words else len(words)
            words = [word for i, word in enumerate(words) if word != "-f" or i > place]
        state = ["--state", server.ready["state"]]
        if "--state" in words:
            words[words.index("--state") + 1] = server.ready["state"]
        elif words[:3] == COMMAND:
            at = 4 if words[3] == "run" else 5
            words[at:at] = state
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=env)
        assert ended.returncode == 0, f"{line}: {ended.stderr}"


def test_every_error_is_listed() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    assert not [code for code in BY_CODE if f"| `{code}` |" not in page]


def test_every_habit_has_its_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    habits = re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE)
    assert set(habits) >= {"setup", "demo", "check", "test", "bench", "proto", "docs", "clean"}


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "witness",
        "join",
        "resources ls",
        "resources watch",
        "resources explain",
        "run",
        "actions ls",
        "actions why",
        "actions diff",
        "actions history",
        "actions rerun",
        "actions repro",
        "actions submit",
        "actions watch",
        "actions cancel",
        "cas put",
        "cas get",
        "ledger tail",
        "ledger verify",
        "ledger show",
        "ledger prove",
        "ledger receipt",
        "ledger accounts",
        "ledger statement",
        "ledger export",
        "doctor",
        "fleet ls",
        "fleet show",
        "fleet watch",
        "fleet drain",
        "fleet cordon",
        "fleet uncordon",
        "fleet rm",
        "fleet allow",
        "fleet tokens new",
        "fleet tokens ls",
        "fleet tokens revoke",
        "token create",
        "token show",
        "token revoke",
        "token key",
        "config check",
    ],
)
def test_every_commands_help_ends_with_an_example(command: str) -> None:
    ended = subprocess.run([*COMMAND, *command.split(), "--help"], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0
    assert "Example: buildnet" in ended.stdout


def test_no_registry_is_named_in_the_locks() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        assert "http" not in re.sub(r"\bhttp\w*==|via \w+|#.*", "", path.read_text())
