"""`buildnet doctor`: check this machine and the server, each finding with its remedy."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from buildnet.cli import options
from buildnet.errors import BuildNetError

_FREE_BYTES_WANTED = 1 << 30
_GROUP_REMEDY = "run as root, or in a unit of systemd's: systemd-run --user --scope -p Delegate=yes buildnet ..."


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `state` ok, warn (works with less) or fail."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def _machine(state: Path) -> list[Finding]:
    from buildnet import _native

    findings = [Finding("python", "ok", platform.python_version()), Finding("kernel", "ok", platform.release())]
    isolation = _native.probe_isolation()
    for name, remedy in (
        ("mount_namespace", "actions can read and write what this user can; run as root or allow user namespaces"),
        ("pid_namespace", "processes that an action leaves behind may live on; run as root or allow user namespaces"),
        ("network_namespace", "actions can use the network; run as root or allow user namespaces"),
        ("cgroup_memory", f"memory is bounded for each process only; {_GROUP_REMEDY}"),
        ("cgroup_pids", f"a fork bomb is bounded only by rlimits; {_GROUP_REMEDY}"),
        ("cgroup_cpu", f"processors are shared out by the kernel alone; {_GROUP_REMEDY}"),
    ):
        have = bool(isolation.get(name))
        state_of: Literal["ok", "warn"] = "ok" if have else "warn"
        findings.append(Finding(name, state_of, "works" if have else "not here", "" if have else remedy))
    existing = next(path for path in (state, *state.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    findings.append(
        Finding("disk", "ok", f"{free >> 20} MiB free at {existing}")
        if free >= _FREE_BYTES_WANTED
        else Finding("disk", "warn", f"{free >> 20} MiB free at {existing}", "make room, or use --state elsewhere")
    )
    return findings


def _server(url: str | None, state: Path | None) -> list[Finding]:
    try:
        with options.connected(url, state) as client:
            offered = client.capabilities()
            nodes = client.nodes()
    except BuildNetError as error:
        return [Finding("server", "warn", error.message, "buildnet up")]
    speaks = f"REAPI {offered['low_api_version']} to {offered['high_api_version']} at {client.url}"
    workers = sum(int(node["slots"]) for node in nodes)
    have = Finding("workers", "ok", f"{len(nodes)} with {workers} slots")
    none = Finding("workers", "warn", "none has joined", f"buildnet join {client.url}")
    return [Finding("server", "ok", speaks), have if nodes else none]


@click.command("doctor", epilog="Example: buildnet doctor")
@options.of_server
@options.as_json
def command(url: str | None, state: Path | None, instance: str, as_json: bool) -> None:
    """Check this machine and the server. Exits with 1 when something cannot work."""
    from buildnet.app.config import default_state_dir

    findings = _machine(state or default_state_dir()) + _server(url, state)
    if as_json:
        options.echo_json([asdict(finding) for finding in findings])
    else:
        options.echo_table(["CHECK", "", "FOUND", "REMEDY"], [[f.check, f.state, f.found, f.remedy] for f in findings])
    if any(finding.state == "fail" for finding in findings):
        raise click.exceptions.Exit(1)
