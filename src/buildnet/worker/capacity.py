"""What this machine's actions may use together. It looks once, at the start, and promises nothing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from buildnet.model.amounts import Amounts

_GPU = re.compile(r"nvidia[0-9]+")


def capacity_of(state: Path, devices: Path = Path("/dev")) -> Amounts:
    """Processors that this process may use, memory, what is free where `state` is, and gpus.

    GPUs are those whose device files are there (`/dev/nvidia0` and so on): others can be required by a constraint, not
    counted.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = sum(_GPU.fullmatch(name) is not None for name in os.listdir(devices))
    return Amounts(1000 * cores, memory_bytes, shutil.disk_usage(state).free, gpus)
