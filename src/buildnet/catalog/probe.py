"""A tool that is asked for its version gets little time, room and environment, and leaves nothing that runs."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from buildnet.catalog.known import OUTPUT_BYTES_MAX

TIMEOUT_S: Final = 5.0
_READ_BYTES: Final = 16 << 10


def ask(path: str, arguments: Sequence[str], search_path: str, timeout_s: float = TIMEOUT_S) -> bytes | None:
    """What a program prints on either stream, 64 KiB of it at most; None when it cannot start, fails or is late.

    It runs in a session and process group of its own, with no input and no variables but PATH, LC_ALL, TERM and a HOME
    in which nothing can be left. The group is killed when the program has ended, has printed enough or is late.
    """
    try:
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Not even root can make a directory below a device.
            env={"PATH": search_path, "HOME": "/dev/null", "LC_ALL": "C", "TERM": "dumb"},
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError):
        # Not for this machine, gone since, or a name that no program can be started by.
        return None
    deadline_s = time.monotonic() + timeout_s
    try:
        output = _read(process, deadline_s)
        if output is None or len(output) == OUTPUT_BYTES_MAX:
            return output
        return output if process.wait(max(0, deadline_s - time.monotonic())) == 0 else None
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _read(process: subprocess.Popen[bytes], deadline_s: float) -> bytes | None:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while len(output) < OUTPUT_BYTES_MAX:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                return None
            data = os.read(descriptor, _READ_BYTES)
            if not data:
                break
            output += data
    return output[:OUTPUT_BYTES_MAX]
