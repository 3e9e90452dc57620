"""The page in a real browser, against a running controller: Debian's Chromium, driven by the DevTools protocol."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from buildnet.edge.web.page import STATIC
from tests.conftest import COMMAND, House, Role

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 60_000
HOSTILE = "<img src=x onerror=window.broken=1>\u202egnp.exe\n\x1b[31m</script>"

pytestmark = [
    pytest.mark.client,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH (tests/clients/install.sh)"),
    pytest.mark.skipif(not (STATIC / "index.html").exists(), reason="the page is not built (make ui)"),
]


@dataclass
class Seen:
    """What a browser asked for and complained of."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Its own sandbox needs user namespaces that a container may not have; only our page is opened.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def visit(browser: Browser, address: str, **options: object) -> tuple[Page, Seen]:
    page = browser.new_page(**options)  # type: ignore[arg-type]
    page.set_default_timeout(WAIT_MS)
    seen = Seen()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda said: seen.errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.goto(address)
    return page, seen


@pytest.fixture
def opened(browser: Browser, running: Role) -> Iterator[tuple[Page, Seen]]:
    """The page on a fresh visit; at its end nothing has gone wrong and nothing was asked of another host."""
    address = f"http://{running.ready['listen']}/"
    page, seen = visit(browser, address)
    try:
        yield page, seen
        assert seen.errors == []
        assert [url for url in seen.requests if not url.startswith(address)] == []
        assert page.evaluate("window.broken") is None
    finally:
        page.close()


def run(running: Role, *command: str) -> subprocess.Popen[bytes]:
    words = [*COMMAND, "run", "--state", running.ready["state"], "--", *command]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_node_that_is_given_no_more_work_is_said_to_be_so(opened: tuple[Page, Seen], running: Role) -> None:
    page, _ = opened
    nodes = page.get_by_role("region", name="Nodes")
    expect(nodes.get_by_text("processor")).to_be_visible(timeout=WAIT_MS)
    state = ["--state", running.ready["state"]]
    (node,) = json.loads(subprocess.check_output([*COMMAND, "fleet", "ls", "--json", *state]))
    subprocess.check_call([*COMMAND, "fleet", "cordon", node["node"], *state], stdout=subprocess.DEVNULL)
    try:
        expect(nodes.get_by_text("cordoned")).to_be_visible(timeout=WAIT_MS)
    finally:
        subprocess.check_call([*COMMAND, "fleet", "uncordon", node["node"], *state], stdout=subprocess.DEVNULL)
    expect(nodes.get_by_text("cordoned")).to_have_count(0, timeout=WAIT_MS)


def test_a_node_and_an_action_are_seen_while_it_runs(opened: tuple[Page, Seen], running: Role) -> None:
    page, _ = opened
    expect(page.get_by_role("banner").get_by_role("status")).to_have_text("live", timeout=WAIT_MS)
    nodes = page.get_by_role("region", name="Nodes")
    expect(nodes.get_by_text("of 2 slots busy")).to_be_visible(timeout=WAIT_MS)
    fresh = f"{os.getpid()}.5"
    started = run(running, "sh", "-c", f"sleep 4 # {fresh}")
    try:
        row = page.get_by_role("region", name="Running").get_by_role("row").filter(has_text=fresh)
        expect(row.get_by_text("running")).to_be_visible(timeout=WAIT_MS)
        expect(nodes.get_by_text("1 of 2 slots busy")).to_be_visible(timeout=WAIT_MS)
        ended = page.get_by_role("region", name="Recent").get_by_role("row").filter(has_text=fresh)
        expect(ended.get_by_text("done")).to_be_visible(timeout=WAIT_MS)
        expect(row).to_have_count(0)
        assert started.wait(60) == 0
    finally:
        started.kill()
        started.wait()
    kinds = page.get_by_role("region", name="Ledger").get_by_role("row").filter(has_text="action.published")
    expect(kinds.first).to_be_visible(timeout=WAIT_MS)
    ended.get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="Action", exact=True)).to_be_visible()
    expect(page.get_by_role("main")).to_be_focused()


def test_the_button_says_what_it_proved(opened: tuple[Page, Seen]) -> None:
    page, _ = opened
    button = page.get_by_role("button", name="Verify")
    button.focus()
    page.keyboard.press("Enter")
    proof = page.get_by_role("region", name="Ledger").get_by_role("status")
    expect(proof).to_contain_text("Proved", timeout=WAIT_MS)
    expect(proof).to_contain_text("is signed by the ledger's key")
    expect(proof).to_contain_text(re.compile(r"continues the head of \d+ entr"))
    expect(proof).to_contain_text(re.compile(r"the \d+ entries shown are under it"))


def test_a_ledger_that_does_not_continue_is_told(opened: tuple[Page, Seen]) -> None:
    page, _ = opened
    expect(page.get_by_role("button", name="Verify")).to_be_visible(timeout=WAIT_MS)
    forged = json.dumps({"size": 1, "root": "00" * 32})
    page.wait_for_function("Object.keys(localStorage).length > 0")
    page.evaluate("head => Object.keys(localStorage).forEach(key => { localStorage[key] = head; })", forged)
    page.reload()
    page.get_by_role("button", name="Verify").click()
    proof = page.get_by_role("region", name="Ledger").get_by_role("status")
    expect(proof).to_contain_text("This does not hold", timeout=WAIT_MS)
    expect(proof).to_contain_text("does not continue the head of 1 entry")


def test_what_a_node_offers_is_searched(opened: tuple[Page, Seen]) -> None:
    page, _ = opened
    nodes = page.get_by_role("region", name="Nodes")
    nodes.get_by_role("link", name=re.compile(r"^[\d,]+ resources$")).first.press("Enter", timeout=WAIT_MS)
    offered = page.get_by_role("region", name="Resources")
    shown = offered.get_by_role("status")
    expect(shown).to_have_text(re.compile(r"[1-9]\d* (of [\d,]+ )?shown"), timeout=WAIT_MS)
    offered.get_by_label("Kind").select_option("tool")
    offered.get_by_label("Name or version").fill("bash")
    expect(
        offered.get_by_role("row").filter(has=page.get_by_role("rowheader", name="bash", exact=True))
    ).to_be_visible()
    offered.get_by_label("Name or version").fill("no such tool at all")
    expect(shown).to_have_text("none matches")
    expect(offered.get_by_text("Nothing on this node matches.")).to_be_visible()


def test_hostile_names_are_text(opened: tuple[Page, Seen], running: Role) -> None:
    page, _ = opened
    assert run(running, "echo", HOSTILE).wait(60) == 0
    row = page.get_by_role("region", name="Recent").get_by_role("row").filter(has_text="onerror").first
    expect(row).to_be_visible(timeout=WAIT_MS)
    expect(row).to_contain_text("<img src=x onerror=window.broken=1>\\u202egnp.exe␊␛[31m</script>")
    assert page.locator("main img").count() == 0


def test_it_is_used_by_keyboard_and_by_ear(opened: tuple[Page, Seen]) -> None:
    page, _ = opened
    for role in ("banner", "navigation", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
    assert page.locator("[aria-live=polite]").count() >= 2
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    assert skip.evaluate("e => getComputedStyle(e).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("navigation").get_by_role("link", name="Ledger").press("Enter")
    expect(page.get_by_role("heading", name="Ledger", exact=True)).to_be_visible()
    expect(page).to_have_title("Ledger · BuildNET")
    expect(page.get_by_role("link", name="Ledger", exact=True)).to_have_attribute("aria-current", "page")
    page.get_by_role("row").get_by_role("link", name="0", exact=True).press("Enter")
    expect(page.get_by_role("heading", name="Entry 0")).to_be_visible()
    expect(page.get_by_text("controller.started")).to_be_visible()


def test_light_dark_and_narrow(browser: Browser, running: Role) -> None:
    papers = []
    for scheme in ("light", "dark"):
        size = {"width": 360, "height": 700}
        page, seen = visit(browser, f"http://{running.ready['listen']}/", color_scheme=scheme, viewport=size)
        expect(page.get_by_role("button", name="Verify")).to_be_visible(timeout=WAIT_MS)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert seen.errors == []
        page.close()
    assert papers[0] != papers[1]


def test_what_ran_is_shown_after_a_restart(browser: Browser, tmp_path: Path) -> None:
    house = House(tmp_path)
    try:
        role = house.up("--slots", "1")
        assert run(role, "echo", "before the restart").wait(60) == 0
        assert role.stop() == 0
        role = house.up("--no-worker")
        page, seen = visit(browser, f"http://{role.ready['listen']}/#/actions")
        row = page.get_by_role("region", name="Recent").get_by_role("row").filter(has_text="before the restart")
        expect(row.get_by_text("done")).to_be_visible(timeout=WAIT_MS)
        page.get_by_role("navigation").get_by_role("link", name="Nodes").click()
        gone = page.get_by_role("region", name="Not here").get_by_role("cell", name=re.compile("^left"))
        expect(gone).to_have_count(1, timeout=WAIT_MS)
        assert seen.errors == []
        page.close()
    finally:
        house.close()


def test_it_comes_back_with_its_server(browser: Browser, tmp_path: Path) -> None:
    house = House(tmp_path)
    try:
        role = house.up("--no-worker")
        page, _ = visit(browser, f"http://{role.ready['listen']}/")
        status = page.get_by_role("banner").get_by_role("status")
        expect(status).to_have_text("live", timeout=WAIT_MS)
        role.stop()
        expect(status).to_contain_text("connection lost", timeout=WAIT_MS)
        house.up("--no-worker", listen=role.ready["listen"])
        expect(status).to_have_text("live", timeout=WAIT_MS)
        # What was written meanwhile is there: the second start.
        started = page.get_by_role("row").filter(has_text="controller.started")
        expect(started).to_have_count(2, timeout=WAIT_MS)
        page.close()
    finally:
        house.close()
