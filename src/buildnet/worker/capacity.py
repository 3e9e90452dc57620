"""What this machine's actions may use together. It looks once, at the start, and promises nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from buildnet.model.amounts import Amounts

MEMORY_RESERVE_BYTES_MAX = 1 << 30
DISK_RESERVE_BYTES_MAX = 10 << 30
_RESERVE_SHARE = 8
_QUOTA = re.compile(r"([0-9]{1,18}) ([1-9][0-9]{0,17})", re.ASCII)
_GPU = re.compile(r"nvidia[0-9]+")


def given_in(isolation: str, whole: Amounts) -> Amounts:
    """What of that actions can be given in such a sandbox: a /dev of their own has no gpus."""
    return whole if isolation == "process" else replace(whole, gpus=0)


def processors_milli(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Thousandths of processors that this process may use: those that it may run on, or what a control group above it
    grants where that is less (cgroups(7): `cpu.max` of version 2, `cpu.cfs_quota_us` of version 1).
    """
    granted_milli = 1000 * len(os.sched_getaffinity(0))
    for told in _quotas(own.read_text(errors="replace"), groups):
        quota_milli = quota_milli_of(told)
        if quota_milli is not None:
            granted_milli = min(granted_milli, quota_milli)
    return granted_milli


def quota_milli_of(text: str) -> int | None:
    """Thousandths of processors in `QUOTA PERIOD`, both of microseconds; None where nothing is withheld."""
    match = _QUOTA.fullmatch(text.strip())
    return max(1, 1000 * int(match[1]) // int(match[2])) if match else None


def _quotas(own: str, groups: Path) -> Iterator[str]:
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        group = Path(os.path.normpath(f"/{path}"))
        for above in (group, *group.parents):
            # In a container the groups above its own are not there; its own is the root of what is.
            with suppress(OSError):
                yield " ".join(
                    (root / str(above).lstrip("/") / name).read_text(errors="replace").strip() for name in names
                )


def capacity_of(state: Path, devices: Path = Path("/dev"), *, cpu_milli: int | None = None) -> Amounts:
    """`cpu_milli`, or all processors that this process may use, memory and what is free where `state` is, both less a
    reserve for the machine and the worker itself, and gpus.

    GPUs are those whose device files are there (`/dev/nvidia0` and so on): others can be required by a constraint, not
    counted.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = sum(_GPU.fullmatch(name) is not None for name in os.listdir(devices))
    free_bytes = shutil.disk_usage(state).free
    return Amounts(
        processors_milli() if cpu_milli is None else cpu_milli,
        memory_bytes - min(memory_bytes // _RESERVE_SHARE, MEMORY_RESERVE_BYTES_MAX),
        free_bytes - min(free_bytes // _RESERVE_SHARE, DISK_RESERVE_BYTES_MAX),
        gpus,
    )
