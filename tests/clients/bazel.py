"""Drive Debian's Bazel 4.2.3 offline against a server: a fresh C++ workspace, and where each action came from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

STUBS = Path(__file__).parent / "stubs"
DEBIAN_RULES = {
    "rules_java": "/usr/share/bazel/rules/java",
    "rules_proto": "/usr/share/bazel/rules/proto",
    "bazel_skylib": "/usr/share/bazel/tools/skylib",
}
BUILD_TIMEOUT_S = 600


def why_not() -> str | None:
    """Why Bazel cannot be run here, None when it can."""
    if shutil.which("bazel") is None:
        return "bazel is not installed (tests/clients/install.sh)"
    absent = [path for path in DEBIAN_RULES.values() if not Path(path).is_dir()]
    return f"Bazel's rule packages are not installed: {absent}" if absent else None


@dataclass(frozen=True)
class Run:
    """One build: its exit code, its log, and how many actions came from where."""

    exit_code: int
    log: str

    def _count(self, kind: str) -> int:
        match = re.search(rf"processes:.* (\d+) (?:{kind})[,.]", self.log)
        return int(match[1]) if match else 0

    @property
    def hits(self) -> int:
        return self._count("remote cache hit")

    @property
    def remote(self) -> int:
        return self._count("remote")

    @property
    def local(self) -> int:
        return self._count("[a-z]*-?sandbox|local")


def write_workspace(directory: Path, libraries: int, salt: int) -> None:
    """A binary tree of small libraries, a program, a genrule that runs it and a test of what it printed.

    Args:
        directory: created and filled.
        libraries: how many; each is two actions, compile and archive.
        salt: goes into every object, so that no server has seen any of the actions.
    """
    directory.mkdir(parents=True)
    (directory / "WORKSPACE").touch()
    rules = []
    for i in range(1, libraries + 1):
        above = f"lib{i // 2}" if i > 1 else ""
        include = f'#include "{above}.h"\n' if above else ""
        value = f"{salt}u + {above}()" if above else f"{salt}u"
        (directory / f"lib{i}.h").write_text(f"unsigned lib{i}();\n")
        (directory / f"lib{i}.cc").write_text(
            f'#include "lib{i}.h"\n{include}unsigned lib{i}() {{ return {value}; }}\n'
        )
        deps = f'":{above}"' if above else ""
        rules.append(
            f'cc_library(name = "lib{i}", srcs = ["lib{i}.cc"], hdrs = ["lib{i}.h"], '
            f"deps = [{deps}], linkstatic = True)"
        )
    includes = "".join(f'#include "lib{i}.h"\n' for i in range(1, libraries + 1))
    calls = "".join(f"  sum += lib{i}();\n" for i in range(1, libraries + 1))
    (directory / "app.cc").write_text(
        f"#include <cstdio>\n{includes}int main() {{\n  unsigned sum = {salt}u;\n{calls}"
        '  std::printf("%u\\n", sum);\n}\n'
    )
    (directory / "input.txt").write_text(f"{salt}\n")
    test = directory / "sum_test.sh"
    test.write_text(f"#!/bin/sh\ngrep {salt} sum.txt\n")
    test.chmod(0o755)
    deps = ", ".join(f'":lib{i}"' for i in range(1, libraries + 1))
    rules += [
        f'cc_binary(name = "app", srcs = ["app.cc"], deps = [{deps}])',
        'genrule(name = "sum", srcs = [":app", "input.txt"], outs = ["sum.txt"], '
        'cmd = "($(location :app); cat $(location input.txt)) > $@")',
        'sh_test(name = "sum_test", srcs = ["sum_test.sh"], data = [":sum.txt"])',
    ]
    (directory / "BUILD").write_text("\n".join(rules) + "\n")


class Bazel:
    """A Bazel with an output root of its own, stopped by `close`."""

    def __init__(self, scratch: Path, libraries: int = 20, salt: int | None = None) -> None:
        self._scratch = scratch
        self.workspace = scratch / "workspace"
        salt = int.from_bytes(os.urandom(3)) if salt is None else salt
        write_workspace(self.workspace, libraries, salt)

    def _command(self, *arguments: str) -> list[str]:
        root = self._scratch / "root"
        return ["bazel", f"--output_user_root={root}", "--host_jvm_args=-Xmx512m", *arguments]

    def start(self, *flags: str, jobs: int = 2) -> subprocess.Popen[str]:
        """Begin building and testing everything."""
        overrides = {
            "rules_cc": str(STUBS / "rules_cc"),
            "remote_coverage_tools": str(STUBS / "remote_coverage_tools"),
            **DEBIAN_RULES,
        }
        command = self._command(
            "test",
            *flags,
            *(f"--override_repository={name}={path}" for name, path in overrides.items()),
            "--nosandbox_debug",
            "--color=no",
            "--curses=no",
            f"--jobs={jobs}",
            "//...",
        )
        return subprocess.Popen(
            command,
            cwd=self.workspace,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> Run:
        """Wait for a build to end."""
        log, _ = process.communicate(timeout=BUILD_TIMEOUT_S)
        return Run(process.returncode, log)

    def test(self, *flags: str, jobs: int = 2) -> Run:
        """Build and test everything."""
        return self.finish(self.start(*flags, jobs=jobs))

    def pid(self) -> int:
        """The Bazel server's."""
        asked = self._command("info", "server_pid")
        told = subprocess.run(asked, cwd=self.workspace, check=True, capture_output=True, text=True, timeout=120)
        return int(told.stdout)

    def clean(self) -> None:
        """Forget every local output."""
        subprocess.run(self._command("clean"), cwd=self.workspace, check=True, capture_output=True, timeout=120)

    def close(self) -> None:
        """Stop the Bazel server and remove its output root."""
        subprocess.run(self._command("shutdown"), cwd=self.workspace, capture_output=True, timeout=120)
        subprocess.run(["chmod", "-R", "u+w", str(self._scratch / "root")], capture_output=True)
        shutil.rmtree(self._scratch / "root", ignore_errors=True)
