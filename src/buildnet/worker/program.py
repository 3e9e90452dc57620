"""A program that is not there is the request's mistake, said with where it was looked for. Starts
nothing.

REAPI leaves open how a server reports it. Here it is `invalid_request` (INVALID_ARGUMENT), not exit
code 127: the command never ran, so there is no result that could be cached or mistaken for the
program's own.
"""

from __future__ import annotations

import os
from pathlib import Path

from buildnet.errors import InvalidRequest
from buildnet.sandbox.policy import Plan, search_path


def check_program(plan: Plan, cwd: Path) -> None:
    """Check that the first argument names a program: a path from `cwd`, or a bare name in the
    Command's PATH.

    Raises:
        InvalidRequest: it is not there, is a directory or may not be executed.
    """
    name = plan.argv[0]
    if "/" in name:
        # os.path, unlike Path, takes a name that no file system can hold for one that is not there.
        path = os.path.join(cwd, name)
        if os.path.isdir(path):
            raise _refusal(name, "is a directory; name a file")
        if not os.path.exists(path):
            raise _refusal(
                name,
                "is not there; a relative path counts from the working directory: add an input",
            )
        if not os.access(path, os.X_OK):
            raise _refusal(name, "may not be executed; set is_executable on the input")
        return
    places = search_path(plan.env)
    if not any(_runnable(os.path.join(cwd, place, name)) for place in places):
        raise _refusal(
            name,
            f"was looked for in {':'.join(places)}; name its path, or set PATH in the Command",
        )


def _runnable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _refusal(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the program {name!r} {why}", field="command.arguments")
