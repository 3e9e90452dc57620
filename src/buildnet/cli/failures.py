"""Every way a command can fail, as one sentence on stderr and one exit code (docs/reference/errors.md).

Exit codes: an action's own for `run`; 1 a check failed; 2 wrong usage; 125 BuildNET could not do it; 130 Ctrl-C;
141 SIGPIPE; 143 SIGTERM.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import click

from buildnet.errors import BuildNetError, InvalidRequest, LedgerCorrupt

FAILED_CHECK, USAGE, CANNOT, INTERRUPTED, UNHEARD, TERMINATED = 1, 2, 125, 130, 141, 143


@dataclass(slots=True)
class Asked:
    """What a command was asked that matters when it fails."""

    as_json: bool = False


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `timeout` and build servers send it: what Ctrl-C cleans up, it does."""


def terminate(_number: int, _frame: FrameType | None) -> None:
    """Answer SIGTERM. Roles answer it themselves (`serving`)."""
    raise Terminated


def open_standard_files() -> None:
    """See that what is read from and written to standard streams is what was meant.

    Where one was closed /dev/null is put: the next file that is opened would be taken for it. One that Python was told
    not to buffer (PYTHONUNBUFFERED) gets a buffer: without it a write that a full disk cuts short is no error.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            stream = None
        if stream is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - as long as the process
        elif mode == "w" and isinstance(stream.buffer, io.RawIOBase):
            buffered = io.BufferedWriter(stream.buffer)
            setattr(sys, name, io.TextIOWrapper(buffered, stream.encoding, stream.errors, line_buffering=True))


def leave(code: int) -> NoReturn:
    """End at once. Python would wait for each thread, and one may be in a native call to a server that says nothing."""
    for stream in (sys.stdout, sys.stderr):
        # Nobody is left to be told.
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def guarded(work: Callable[[Asked], Any]) -> int:
    """Run a command and return its exit code. It notes what it was asked."""
    asked = Asked()
    try:
        result = work(asked)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt) as end:
        # click makes its own of what it catches.
        return TERMINATED if isinstance(end.__cause__ or end, Terminated) else INTERRUPTED
    except (BuildNetError, OSError, BaseExceptionGroup) as error:
        single = _single(error)
        if not isinstance(single, (BuildNetError, OSError)):
            raise
        return _failed(single, asked)


def unheard() -> int:
    """End where whoever read our output has enough: nothing is left to be flushed."""
    sys.stdout = None
    return UNHEARD


def _failed(error: BuildNetError | OSError, asked: Asked) -> int:
    if isinstance(error, BuildNetError):
        return say(error, asked)
    # A file or a stream of this machine's. What could not be printed must not fail once more at the exit.
    if isinstance(error, BrokenPipeError):
        return unheard()
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = None
    what = error.strerror or str(error)
    named = what if error.filename is None else f"{os.fsdecode(error.filename)}: {what}"
    return say(InvalidRequest(named, field="path"), asked)


def _single(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def say(error: BuildNetError, asked: Asked) -> int:
    """Tell an error, as JSON when the command was asked for JSON."""
    lines = [f"buildnet: {error.message}"]
    lines += [f"  missing: {digest}" for digest in list(error.fields.get("digests", ()))[:20]]
    if asked.as_json:
        fields = {name: value for name, value in error.fields.items() if value not in ("", None)}
        lines = [json.dumps({"error": {"code": error.code, "message": error.message, **fields}}, default=str)]
    # Where nobody can be told, the exit code still says it.
    with suppress(OSError):
        click.echo("\n".join(lines), err=True)
    return FAILED_CHECK if isinstance(error, LedgerCorrupt) else CANNOT
