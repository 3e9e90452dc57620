"""Real programs on a real search path: some tell their version, some hang, shout or have names that bite."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from buildnet.catalog import probe
from buildnet.catalog.known import OUTPUT_BYTES_MAX
from buildnet.catalog.tools import ENTRIES_MAX, TOOLS_MAX, PathTools
from buildnet.catalog.versions import Versions
from buildnet.model.resource import Resource
from buildnet.ports import Discoverer, Found
from buildnet.worker.inventory import Inventory, Stocktaker


def program(path: Path, text: str) -> Path:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(f"#!/bin/sh\n{text}\n")
    fresh.chmod(0o755)
    fresh.replace(path)
    return path


def tools_of(*directories: Path, state: Path | None = None, **limits: int) -> PathTools:
    joined = os.defpath
    kept = None if state is None else state / "versions.json"
    return PathTools([str(directory) for directory in directories], Versions(kept, joined), **limits)


def found(tools: PathTools) -> dict[tuple[str, str], Resource]:
    return {resource.key: resource for resource in tools.discover().resources}


def test_the_first_of_a_name_is_the_tool_and_only_what_can_be_run_is_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    program(first / "gcc", "echo 13.1.0")
    program(second / "gcc", "echo 12.2.0")
    program(second / "other", "exit 1")
    (second / "plain").write_text("not for running")
    (second / "directory").mkdir()
    (second / "link").symlink_to(second / "other")
    (second / "dangling").symlink_to(second / "nowhere")
    (tmp_path / "alias").symlink_to(first)
    told = found(tools_of(first, tmp_path / "absent", tmp_path / "alias", second))
    assert sorted(told) == [("tool", "gcc"), ("tool", "link"), ("tool", "other"), ("toolchain", "c")]
    assert told["tool", "gcc"] == Resource("tool", "gcc", "13.1.0", (("path", f"{first}/gcc"),))
    assert told["toolchain", "c"].version == "13.1.0"


def test_names_that_bite_are_counted_and_not_told(tmp_path: Path) -> None:
    for name in (b"new\nline", b"esc\x1b[2J", b"latin\xff", "\u202eright".encode(), b"fine", b"a=b", b"[", b"-rf"):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as file:
            file.write(b"#!/bin/sh\n")
        os.chmod(path, 0o755)
    looked = tools_of(tmp_path).discover()
    assert sorted(resource.name for resource in looked.resources) == ["-rf", "[", "a=b", "fine"]
    assert looked.left_out == 4


def test_more_tools_than_the_limit_are_said_and_known_ones_kept(tmp_path: Path) -> None:
    for number in range(30):
        program(tmp_path / f"a{number:02}", "exit 0")
    program(tmp_path / "zig", "echo 0.13.0")
    looked = tools_of(tmp_path, tools_max=10).discover()
    assert looked.left_out == 21
    assert "31 tools are on the path" in looked.notes[0]
    assert ("tool", "zig") in {resource.key for resource in looked.resources}
    cut = tools_of(tmp_path, entries_max=5).discover()
    assert "only 5 entries" in cut.notes[0]
    assert len(cut.resources) <= 6


def test_a_hundred_thousand_files_on_the_path_do_no_harm(tmp_path: Path) -> None:
    own, crowd = tmp_path / "own", tmp_path / "crowd"
    own.mkdir()
    crowd.mkdir()
    program(own / "zig", "echo 0.13.0")
    for number in range(100_000):
        (crowd / f"a{number}").symlink_to("/bin/true")
    looked = tools_of(own, crowd).discover()
    names = {resource.name for resource in looked.resources if resource.kind == "tool"}
    assert "zig" in names
    assert len(names) == TOOLS_MAX
    assert looked.left_out == ENTRIES_MAX + 1 - TOOLS_MAX
    assert len(looked.notes) == 2


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    path = program(tmp_path / "gcc", f"sleep 600 &\necho $! > {pid}\nwait")
    began_s = time.monotonic()
    assert probe.ask(str(path), ("--version",), os.defpath, timeout_s=0.5) is None
    assert time.monotonic() - began_s < 20
    # A killed process is gone, or a zombie of whoever inherits it.
    status = Path(f"/proc/{pid.read_text().strip()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_program_that_prints_without_end_is_cut_off(tmp_path: Path) -> None:
    path = program(tmp_path / "gcc", "echo 12.2.0; yes")
    answer = probe.ask(str(path), (), os.defpath)
    assert answer is not None
    assert len(answer) == OUTPUT_BYTES_MAX
    assert found(tools_of(tmp_path))["tool", "gcc"].version == "12.2.0"


def test_a_program_finds_nothing_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDNET_TOKEN", "secret")
    path = program(tmp_path / "gcc", "env; pwd; ls -A; cat")
    answer = probe.ask(str(path), (), os.defpath)
    assert answer is not None
    lines = answer.decode().splitlines()
    assert {line.split("=")[0] for line in lines if "=" in line} <= {
        "PATH",
        "HOME",
        "LC_ALL",
        "TERM",
        "PWD",
        "_",
        "OLDPWD",
        "SHLVL",
    }
    assert "secret" not in answer.decode()


@pytest.mark.parametrize("text", ["exit 3", "kill -9 $$", "exec /no/such/program", "printf '\\377\\000'"])
def test_a_program_that_fails_tells_no_version(tmp_path: Path, text: str) -> None:
    program(tmp_path / "gcc", text)
    assert found(tools_of(tmp_path))["tool", "gcc"].version == ""


def test_a_file_is_asked_once_also_after_a_restart(tmp_path: Path) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    count = tmp_path / "count"
    program(place / "gcc", f"echo x >> {count}; echo 12.2.0")
    tools = tools_of(place, state=tmp_path)
    for _ in range(2):
        assert found(tools)["tool", "gcc"].version == "12.2.0"
    assert found(tools_of(place, state=tmp_path))["tool", "gcc"].version == "12.2.0"
    assert count.read_text() == "x\n"
    program(place / "gcc", "echo 13.1.0; # longer")
    assert found(tools)["tool", "gcc"].version == "13.1.0"
    (tmp_path / "versions.json").write_text('{"a": 1, "b"')
    assert found(tools_of(place, state=tmp_path))["tool", "gcc"].version == "13.1.0"


class Failing:
    """A discoverer that fails, or never ends."""

    def __init__(self, name: str, *, hang: bool = False) -> None:
        self.name = name
        self._hang = hang

    def watched(self) -> Sequence[str]:
        return ()

    def discover(self) -> Found:
        if self._hang:
            threading.Event().wait()
        raise RuntimeError("broken")


class Mended:
    """A discoverer that fails once."""

    name = "mended"

    def __init__(self) -> None:
        self._looks = 0

    def watched(self) -> Sequence[str]:
        return ()

    def discover(self) -> Found:
        self._looks += 1
        if self._looks == 1:
            raise OSError("once")
        return Found([Resource("tool", "late")])


class Fixed:
    """Finds what it was given, some of which no resource may be."""

    name = "fixed"

    def watched(self) -> Sequence[str]:
        return ()

    def discover(self) -> Found:
        return Found([Resource("tool", "sound"), Resource("car", "no"), Resource("tool", "a\nb")], left_out=1)


@asynccontextmanager
async def taking_stock(*discoverers: Discoverer) -> AsyncIterator[Stocktaker]:
    stock = Stocktaker(discoverers, [Resource("sandbox", "process")])
    task = asyncio.ensure_future(stock.run())
    try:
        async with asyncio.timeout(30):
            yield stock
    finally:
        task.cancel()


async def until(stock: Stocktaker, key: tuple[str, str], *, there: bool = True) -> Inventory:
    while True:
        changed = stock.changed
        if stock.current is not None and (key in stock.current.resources) == there:
            return stock.current
        await changed.wait()


async def test_what_fails_or_hangs_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.worker.inventory._LOOK_TIMEOUT_S", 0.2)
    async with taking_stock(Failing("failing"), Failing("hanging", hang=True), Fixed()) as stock:
        current = await until(stock, ("tool", "sound"))
        assert sorted(current.resources) == [("sandbox", "process"), ("tool", "sound")]
        assert current.left_out == 3


async def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.worker.inventory._RETRY_S", 0.01)
    async with taking_stock(Mended()) as stock:
        await until(stock, ("tool", "late"))


async def test_a_tool_that_comes_changes_or_goes_is_seen(tmp_path: Path) -> None:
    place, later = tmp_path / "bin", tmp_path / "later"
    place.mkdir()
    async with taking_stock(tools_of(place, later)) as stock:
        await until(stock, ("sandbox", "process"))
        program(place / "gcc", "echo 12.2.0")
        current = await until(stock, ("tool", "gcc"))
        assert current.resources["tool", "gcc"].version == "12.2.0"
        (place / "script").write_text("#!/bin/sh\n")
        (place / "script").chmod(0o755)
        await until(stock, ("tool", "script"))
        (place / "script").chmod(0o644)
        await until(stock, ("tool", "script"), there=False)
        (place / "gcc").rename(place / "gcc-12")
        await until(stock, ("tool", "gcc"), there=False)
        await until(stock, ("tool", "gcc-12"))
