"""Which tools are asked for their version, how, and how the answer is read. Pure; starts nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from buildnet.model.resource import speakable

OUTPUT_BYTES_MAX: Final = 64 << 10
# Versions come first; an expression is not run over more than that of what a stranger printed.
_READ_CHARACTERS: Final = 1024
_PLAIN: Final = r"(?<![\w.])v?(\d+(?:\.\d+)+[\w.+~-]*)"


@dataclass(frozen=True, slots=True)
class Probe:
    """Arguments that make a tool tell its version, and the expression whose first group is it.

    `language`: what it compiles or runs, then it is a toolchain too. `runtime`: wasm or container, then it is one.
    """

    arguments: tuple[str, ...] = ("--version",)
    pattern: str = _PLAIN
    language: str = ""
    runtime: str = ""


_GCC: Final = r"(?m)^.*\s(\d+(?:\.\d+)+)\s*$"
_FAMILIES: Final[dict[str, Probe]] = {
    # gcc's first line ends with the version; what stands in brackets is the distribution's own.
    "gcc": Probe(("-dumpfullversion", "-dumpversion"), r"(?m)^(\d+(?:\.\d+)*)", language="c"),
    "g++": Probe(("-dumpfullversion", "-dumpversion"), r"(?m)^(\d+(?:\.\d+)*)", language="c++"),
    "gfortran": Probe(("-dumpfullversion", "-dumpversion"), r"(?m)^(\d+(?:\.\d+)*)", language="fortran"),
    "clang": Probe(pattern=r"clang version (\d[^\s,;]*)", language="c"),
    "clang++": Probe(pattern=r"clang version (\d[^\s,;]*)", language="c++"),
    "python3": Probe(pattern=r"Python (\d[^\s,;]*)", language="python"),
    "python": Probe(pattern=r"Python (\d[^\s,;]*)", language="python"),
    "go": Probe(("version",), r"go version go(\d[^\s,;]*)", language="go"),
    "rustc": Probe(pattern=r"rustc (\d[^\s,;]*)", language="rust"),
    "cargo": Probe(pattern=r"cargo (\d[^\s,;]*)"),
    "node": Probe(pattern=r"v(\d[^\s,;]*)", language="javascript"),
    "deno": Probe(language="typescript"),
    "bun": Probe(language="javascript"),
    "java": Probe(("-version",), r'version "(\d[^"]*)"', language="java"),
    "javac": Probe(("-version",), r"javac (\d[^\s,;]*)"),
    "ruby": Probe(pattern=r"ruby (\d[\w.]*)", language="ruby"),
    "perl": Probe(("-e", 'printf "%vd", $^V'), r"(?m)^(\d[\d.]*)", language="perl"),
    "php": Probe(pattern=r"PHP (\d[^\s,;]*)", language="php"),
    "ghc": Probe(("--numeric-version",), r"(?m)^(\d[^\s,;]*)", language="haskell"),
    "ocaml": Probe(language="ocaml"),
    "zig": Probe(("version",), r"(?m)^(\d[^\s,;]*)", language="zig"),
    "dotnet": Probe(pattern=r"(?m)^(\d[^\s,;]*)", language="dotnet"),
    "swiftc": Probe(pattern=r"Swift version (\d[^\s,;]*)", language="swift"),
    "nvcc": Probe(pattern=r"release [\d.]+, V(\d[^\s,;]*)", language="cuda"),
    "make": Probe(pattern=r"Make (\d[^\s,;]*)"),
    "cmake": Probe(pattern=r"cmake version (\d[^\s,;]*)"),
    "ninja": Probe(pattern=r"(?m)^(\d[^\s,;]*)"),
    "meson": Probe(pattern=r"(?m)^(\d[^\s,;]*)"),
    "bazel": Probe(pattern=r"bazel (\d[^\s,;]*)"),
    "git": Probe(pattern=r"git version (\d[^\s,;]*)"),
    "ld": Probe(pattern=_GCC),
    "lld": Probe(pattern=r"LLD (\d[^\s,;]*)"),
    "mold": Probe(pattern=r"mold (\d[^\s,;]*)"),
    "as": Probe(pattern=_GCC),
    "gdb": Probe(pattern=_GCC),
    "npm": Probe(pattern=r"(?m)^(\d\S*)"),
    "bash": Probe(pattern=r"version (\d+(?:\.\d+)*)"),
    "docker": Probe(pattern=r"Docker version (\d[^\s,;]*)", runtime="container"),
    "podman": Probe(pattern=r"podman version (\d[^\s,;]*)", runtime="container"),
    "runc": Probe(pattern=r"runc version (\d[^\s,;]*)", runtime="container"),
    "crun": Probe(pattern=r"crun version (\d[^\s,;]*)", runtime="container"),
    "wasmtime": Probe(pattern=r"wasmtime(?:-cli)? (\d[^\s,;]*)", runtime="wasm"),
    "wasmer": Probe(pattern=r"wasmer (\d[^\s,;]*)", runtime="wasm"),
}
# gcc-12, clang++-14, python3.11: of the same family, each a tool of its own.
_NUMBERED: Final = re.compile(r"(gcc|g\+\+|gfortran|clang|clang\+\+|python|lld|ruby|php)-?\d+(?:\.\d+)*")


def probe_of(name: str) -> Probe | None:
    """How to ask a tool of this name, or None for one that is not asked: most do not expect it."""
    probe = _FAMILIES.get(name)
    if probe is None and name[-1:].isdecimal() and (match := _NUMBERED.fullmatch(name)) is not None:
        probe = _FAMILIES[match[1]]
    return probe


def version_in(probe: Probe, output: bytes) -> str:
    """The version that the output tells; empty when it tells none that can be shown."""
    text = output[:OUTPUT_BYTES_MAX].decode(errors="replace")
    match = re.search(probe.pattern, text[:_READ_CHARACTERS])
    version = match[1].rstrip(".,;") if match else ""
    return version if speakable(version, 64) else ""


def languages() -> dict[str, list[str]]:
    """For each language the names of its tools, the one that stands for it first."""
    found: dict[str, list[str]] = {}
    for name, probe in _FAMILIES.items():
        if probe.language:
            found.setdefault(probe.language, []).append(name)
    return found
