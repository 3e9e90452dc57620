"""What discoverers read, without starting anything: versions, GPUs, endpoints, the kernel's files."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.catalog import endpoints
from buildnet.catalog.gpus import Gpus, nvidia_gpus
from buildnet.catalog.known import languages, probe_of, version_in
from buildnet.catalog.machine import Machine
from buildnet.catalog.plugins import Setting, built_in, installed
from buildnet.errors import InvalidRequest
from buildnet.model.resource import Resource, check_resource


@pytest.mark.parametrize(
    ("tool", "output", "version"),
    [
        ("gcc", "12.2.0\n", "12.2.0"),
        ("g++-12", "12.2.0\n", "12.2.0"),
        ("clang", "Debian clang version 14.0.6\nTarget: x86_64-pc-linux-gnu\n", "14.0.6"),
        ("python3.11", "Python 3.11.2\n", "3.11.2"),
        ("go", "go version go1.19.8 linux/amd64\n", "1.19.8"),
        ("rustc", "rustc 1.63.0 (4b91a6ea7 2022-08-08)\n", "1.63.0"),
        ("rustc", "error: rustup could not choose a version of rustc to run\n", ""),
        ("node", "v18.13.0\n", "18.13.0"),
        ("java", 'openjdk version "17.0.9" 2023-10-17\n', "17.0.9"),
        ("javac", "javac 17.0.9\n", "17.0.9"),
        ("make", "GNU Make 4.3\nBuilt for x86_64-pc-linux-gnu\n", "4.3"),
        ("cmake", "cmake version 3.25.1\n", "3.25.1"),
        ("git", "git version 2.39.5\n", "2.39.5"),
        ("ld", "GNU ld (GNU Binutils for Debian) 2.40\nCopyright (C) 2023\n", "2.40"),
        ("gdb", "GNU gdb (Debian 13.1-3) 13.1\n", "13.1"),
        ("docker", "Docker version 28.2.2, build e6534b4\n", "28.2.2"),
        ("podman", "podman version 4.3.1\n", "4.3.1"),
        ("wasmtime", "wasmtime-cli 14.0.4\n", "14.0.4"),
        ("wasmtime", "wasmtime 25.0.1 (abc 2024-01-01)\n", "25.0.1"),
        ("perl", "5.36.0", "5.36.0"),
        ("bash", "GNU bash, version 5.2.15(1)-release (x86_64-pc-linux-gnu)\n", "5.2.15"),
        ("bazel", "bazel 7.4.1\n", "7.4.1"),
        ("bazel", "bazel no_version\n", ""),
        ("clang", "clang version 14\x1b[31m\n", ""),
        ("clang", "clang version 1" + "4" * 100, ""),
        ("gcc", "", ""),
    ],
)
def test_versions_as_tools_print_them(tool: str, output: str, version: str) -> None:
    probe = probe_of(tool)
    assert probe is not None
    assert version_in(probe, output.encode()) == version


@given(st.sampled_from(["gcc", "clang", "java", "ld", "go", "deno", "docker", "bash"]), st.binary(max_size=3000))
def test_any_output_tells_a_version_that_can_be_shown_or_none(tool: str, output: bytes) -> None:
    probe = probe_of(tool)
    assert probe is not None
    check_resource(Resource("tool", tool, version_in(probe, output)))


@pytest.mark.parametrize("name", ["rm", "reboot", "gcc-ar", "python3-config", "clang-format", "vi", ""])
def test_other_tools_are_not_run(name: str) -> None:
    assert probe_of(name) is None


def test_every_language_has_a_tool() -> None:
    assert languages()["c"] == ["gcc", "clang"]
    assert all(languages().values())


SMI = """0, NVIDIA H100 80GB HBM3, 81559, 535.104.05, 9.0, GPU-11111111-2222-3333-4444-555555555555
1, NVIDIA H100 80GB HBM3, [N/A], 535.104.05, 9.0, GPU-21111111-2222-3333-4444-555555555555
"""


def test_gpus_of_nvidia() -> None:
    first, second = nvidia_gpus(SMI.encode())
    assert (first.key, first.attribute("memory_bytes")) == (("gpu", "nvidia0"), 81559 << 20)
    assert (first.attribute("model"), first.attribute("driver")) == ("NVIDIA H100 80GB HBM3", "535.104.05")
    assert second.attribute("memory_bytes") is None
    assert list(nvidia_gpus(b"NVIDIA-SMI has failed because it couldn't communicate with the driver.\n")) == []


@given(st.binary(max_size=300))
def test_any_answer_of_nvidia_smi_is_read(answer: bytes) -> None:
    for gpu in nvidia_gpus(answer):
        check_resource(gpu)


def test_gpus_of_sysfs(tmp_path: Path) -> None:
    for card, facts in {
        "card0": {"vendor": "0x1a03\n", "device": "0x2000\n"},
        "card1": {"vendor": "0x1002\n", "device": "0x73bf\n", "mem_info_vram_total": "17163091968\n"},
        "card1-DP-1": {"vendor": "0x1002\n"},
        "card2": {"vendor": "0x10de\n"},
    }.items():
        device = tmp_path / "sys/class/drm" / card / "device"
        device.mkdir(parents=True)
        for name, text in facts.items():
            (device / name).write_text(text)
    found = Gpus(lambda arguments: SMI.encode(), tmp_path).discover().resources
    assert [gpu.name for gpu in found] == ["nvidia0", "nvidia1", "card1"]
    assert found[2].attributes == (("device", "0x73bf"), ("memory_bytes", 17163091968), ("vendor", "amd"))
    assert [gpu.name for gpu in Gpus(lambda arguments: None, tmp_path).discover().resources] == ["card1", "card2"]
    assert Gpus(lambda arguments: None, tmp_path / "none").discover().resources == []


def test_the_machine_as_the_kernel_tells_it(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(
        "model name\t: Xeon\nflags\t\t: fpu avx2 sse4_1 evil\x1b\n\nmodel name: other\n"
    )
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1024 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:1 / /again rw - ext4 /dev/sda1 rw\n"
        "3 1 0:5 / /proc rw - proc proc rw\n4 1 8:2 / /no\\012where rw - ext4 /dev/sdb1 rw\nnonsense\n"
    )
    found = {resource.key: resource for resource in Machine(tmp_path, tmp_path).discover().resources}
    cpu = found["cpu", "cpu"]
    assert (cpu.attribute("model"), cpu.attribute("avx2"), cpu.attribute("sse4_1")) == ("Xeon", 1, 1)
    assert found["memory", "memory"].attribute("size_bytes") == 1 << 20
    assert sorted(name for kind, name in found if kind == "disk") == ["/", "state"]
    for resource in found.values():
        check_resource(resource)


def test_a_kernel_that_tells_nothing_is_believed(tmp_path: Path) -> None:
    found = Machine(tmp_path / "gone", tmp_path).discover().resources
    assert [resource.key for resource in found] == [("cpu", "cpu")]


DECLARED = b"""
[[endpoint]]
name = "build-db"
version = "15"
type = "postgres"
host = "db.internal"
port = 5432
"""


def test_endpoints_are_what_was_declared() -> None:
    (found,) = endpoints.parse(DECLARED)
    facts = (("host", "db.internal"), ("port", 5432), ("type", "postgres"))
    assert found == Resource("endpoint", "build-db", "15", facts)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'[[endpoint]]\nname = "a"\npassword = "hunter2"', "looks like a credential"),
        (b'[[endpoint]]\nname = "a"\nurl = "postgres://me:hunter2@db/"', "looks like a credential"),
        (b'[[endpoint]]\nname = "a"\napi_key = "hunter2"', "looks like a credential"),
        (b'[[endpoint]]\nname = "a"\ntls = true', "neither a text nor a number"),
        (b'[[endpoint]]\nhost = "a"', "name of a endpoint is empty"),
        (b'[[endpoint]]\nname = "a\\u001b"', "not printable"),
        (b'[[endpoint]]\nname = "a"\n[[endpoint]]\nname = "a"', "name of an earlier one"),
        (b"endpoint = 1", "write up to"),
        (b"[other]", "write up to"),
        (b"\xff", "not TOML"),
        (b"[[", "not TOML"),
    ],
)
def test_a_declaration_that_is_wrong_is_refused_and_not_quoted(text: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        endpoints.parse(text)
    assert "hunter2" not in str(refused.value)


def test_discoverers_of_packages_are_used_and_broken_ones_cost_themselves(tmp_path: Path) -> None:
    setting = Setting(tmp_path, ("/usr/bin",))
    points = [
        EntryPoint("good", "tests.unit.test_discovery:Good", "buildnet.discoverers"),
        EntryPoint("gone", "tests.unit.no_such_module:Gone", "buildnet.discoverers"),
        EntryPoint("broken", "tests.unit.test_discovery:Broken", "buildnet.discoverers"),
    ]
    assert [type(discoverer).__name__ for discoverer in installed(setting, points)] == ["Good"]
    assert {discoverer.name for discoverer in built_in(setting)} == {"tools", "machine", "gpus", "endpoints"}


class Good:
    name = "good"

    def __init__(self, setting: Setting) -> None:
        pass


class Broken:
    def __init__(self, setting: Setting) -> None:
        raise ValueError("broken")
