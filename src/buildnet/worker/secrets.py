"""Secrets are read from their files when an action that names them begins, and from there go to its command alone.

A value is in no message, digest, error or `repr`; a name is no secret. What a command does with one is its own affair.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from buildnet.errors import InvalidRequest
from buildnet.model.action import SECRET, Properties
from buildnet.model.action_spec import SECRET_PREFIX, check_reference
from buildnet.sandbox.policy import Variables

SECRETS_MAX: Final = 64
VALUE_BYTES_MAX: Final = 64 << 10
# As the launcher masks them (native/stage/src/launch/mask.rs): a shorter text is a part of ordinary words.
VALUE_BYTES_MIN: Final = 8
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Secrets:
    """The secrets of one worker, by name.

    Args:
        files: where each value is. Read again for each action, so that a value is changed by changing its file.

    Raises:
        InvalidRequest: a name is none, or a file cannot serve; all are looked at.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        if len(files) > SECRETS_MAX:
            raise InvalidRequest(f"a worker offers at most {SECRETS_MAX} secrets, not {len(files)}", field="secret")
        for name, path in files.items():
            check_reference(name, "secret")
            read_value(name, path)
        self._files = dict(files)

    @property
    def properties(self) -> Properties:
        """What the worker offers: each by its name."""
        return frozenset((SECRET, name) for name in self._files)

    def given(self, properties: Properties, variables: Sequence[tuple[str, str]]) -> Variables:
        """What a command with these platform properties is given, beside its own variables. Blocks.

        Raises:
            InvalidRequest: a secret is not offered here, its file cannot serve any more, or its variable has a value.
        """
        named = sorted(
            (name.removeprefix(SECRET_PREFIX), reference)
            for name, reference in properties
            if name.startswith(SECRET_PREFIX)
        )
        taken = {name for name, _ in variables}
        values = []
        for variable, reference in named:
            if not variable or "=" in variable or "\0" in variable or variable in taken:
                raise InvalidRequest(
                    f"{SECRET_PREFIX}{variable[:64]} names no variable, or one that has a value; name another",
                    field="platform.properties",
                )
            if (path := self._files.get(reference)) is None:
                raise InvalidRequest(
                    f"the worker offers no secret {reference[:64]!r}; start it with --secret", field="secrets"
                )
            taken.add(variable)
            values.append((variable, read_value(reference, path)))
        return Variables(values)


NO_SECRETS: Final = Secrets({})


def read_value(name: str, path: Path) -> str:
    """A secret's value: the file's bytes, without one newline at their end. Blocks.

    Bytes that are not UTF-8 become surrogates, as `os.environ` has them.

    Raises:
        InvalidRequest: the file is not there, others may read it, or it holds what no variable can.
    """

    def refused(why: str) -> InvalidRequest:
        return InvalidRequest(f"the secret {name} cannot be read from {path}: {why}", field="secret")

    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS)) as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(VALUE_BYTES_MAX + 2) if stat.S_ISREG(mode) and not mode & _OTHERS else b""
    except OSError as error:
        raise refused(os.strerror(error.errno or 0)) from error
    if not stat.S_ISREG(mode):
        raise refused("it is no file")
    if mode & _OTHERS:
        # Whoever can read the file needs no action to have the value; as ssh does with its keys.
        raise refused(f"other users may use it (mode {mode & 0o777:04o}); chmod 600 it")
    value = data.removesuffix(b"\n")
    if not VALUE_BYTES_MIN <= len(value) <= VALUE_BYTES_MAX:
        raise refused(
            f"a value has {VALUE_BYTES_MIN} to {VALUE_BYTES_MAX} bytes; a shorter one cannot be kept out of logs"
        )
    if b"\0" in value:
        raise refused("it holds a NUL byte, which no variable can")
    return os.fsdecode(value)
