"""What this machine's actions may use together. It looks once, at the start, and promises nothing."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from buildnet.model.amounts import Amounts

MEMORY_RESERVE_BYTES_MAX = 1 << 30
DISK_RESERVE_BYTES_MAX = 10 << 30
_RESERVE_SHARE = 8
_GPU = re.compile(r"nvidia[0-9]+")


def given_in(isolation: str, whole: Amounts) -> Amounts:
    """What of that actions can be given in such a sandbox: a /dev of their own has no gpus."""
    return whole if isolation == "process" else replace(whole, gpus=0)


def capacity_of(state: Path, devices: Path = Path("/dev")) -> Amounts:
    """Processors that this process may use, memory and what is free where `state` is, both less a reserve for the
    machine and the worker itself, and gpus.

    GPUs are those whose device files are there (`/dev/nvidia0` and so on): others can be required by a constraint, not
    counted.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = sum(_GPU.fullmatch(name) is not None for name in os.listdir(devices))
    free_bytes = shutil.disk_usage(state).free
    return Amounts(
        1000 * cores,
        memory_bytes - min(memory_bytes // _RESERVE_SHARE, MEMORY_RESERVE_BYTES_MAX),
        free_bytes - min(free_bytes // _RESERVE_SHARE, DISK_RESERVE_BYTES_MAX),
        gpus,
    )
