"""Every way a command can fail, as one sentence on stderr and one exit code (docs/reference/errors.md).

Exit codes: an action's own for `run`; 1 a check failed; 2 wrong usage; 125 BuildNET could not do it; 130 Ctrl-C;
143 SIGTERM.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from buildnet.errors import BuildNetError, LedgerCorrupt

FAILED_CHECK, USAGE, CANNOT, INTERRUPTED, TERMINATED = 1, 2, 125, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `timeout` and build servers send it: what Ctrl-C cleans up, it does."""


def terminate(_number: int, _frame: FrameType | None) -> None:
    """Answer SIGTERM. Roles answer it themselves (`serving`)."""
    raise Terminated


def guarded(work: Callable[[], Any]) -> int:
    """Run a command and return its exit code."""
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt) as end:
        # click makes its own of what it catches.
        return TERMINATED if isinstance(end.__cause__ or end, Terminated) else INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain at exit.
        sys.stdout = None
        return 0
    except BaseExceptionGroup as group:
        single = _single(group)
        if isinstance(single, BuildNetError):
            return say(single)
        raise
    except BuildNetError as error:
        return say(error)


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def say(error: BuildNetError) -> int:
    """Tell an error, as JSON when the command was asked for JSON."""
    if "--json" in sys.argv:
        fields = {name: value for name, value in error.fields.items() if value not in ("", None)}
        text = json.dumps({"error": {"code": error.code, "message": error.message, **fields}}, default=str)
        click.echo(text, err=True)
    else:
        click.echo(f"buildnet: {error.message}", err=True)
        for digest in list(error.fields.get("digests", ()))[:20]:
            click.echo(f"  missing: {digest}", err=True)
    return FAILED_CHECK if isinstance(error, LedgerCorrupt) else CANNOT
