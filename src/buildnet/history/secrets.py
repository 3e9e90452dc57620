"""Values that look like secrets are not shown. Pure. It guards a screen, not the messages: they hold what they hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

HIDDEN: Final = "(hidden)"
TEXT_CHARACTERS_MAX: Final = 2000
_NAME_MAX: Final = 256

# Anywhere in a name; and those that stand for themselves only, as in AUTH and not in AUTHOR.
_ANYWHERE: Final = re.compile(
    r"token|secret|passw|passphrase|credential|api_?key|access_?key|private_?key|signing_?key|session_?id",
    re.IGNORECASE,
)
_ALONE: Final = re.compile(r"(?:^|[_.-])(?:auth|pass|pwd_hash|cookie|pat)(?:$|[_.-])", re.IGNORECASE)
_ASSIGNED: Final = re.compile(r"([A-Za-z0-9_.-]{1,128})(=|:\s+)(\"[^\"]*\"|'[^']*'|[^\s\"']+)")
_HEADER: Final = re.compile(r"(?i)((?:proxy-)?authorization:\s*)\S.*")
_USERINFO: Final = re.compile(r"(://[^/@\s:]{0,128}:)[^/@\s]{1,256}(@)")
_KNOWN: Final = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_PEM: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*", re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether what goes by this name is better not shown."""
    # `--no-api-key` and `API_KEY` are words of one kind.
    name = name[:_NAME_MAX]
    return bool(_ANYWHERE.search(name.replace("-", "_")) or _ALONE.search(name))


def shown_value(name: str, value: str) -> str:
    """The value of a variable or property."""
    return HIDDEN if is_secret(name) and value else shown_text(value)


def shown_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """A command line, each argument as `shown_argument` has it."""
    return tuple(shown_argument(arguments, place) for place in range(len(arguments)))


def shown_argument(arguments: Sequence[str], place: int) -> str:
    """One argument of a command line, cut as `shown_text` cuts; what follows an option for a secret is one."""
    argument = arguments[place]
    option = arguments[place - 1] if place else ""
    asked = option.startswith("-") and "=" not in option and is_secret(option.lstrip("-")[:_NAME_MAX])
    return HIDDEN if asked and not argument.startswith("-") else shown_text(argument)


def shown_text(text: str) -> str:
    """A text with what looks like a secret in it hidden; of a long one the beginning, and how much is left out."""
    # Cut first: these patterns take a time that grows with the text, and a text may be megabytes.
    if len(text) > TEXT_CHARACTERS_MAX:
        left_out = len(text) - TEXT_CHARACTERS_MAX
        return f"{shown_text(text[:TEXT_CHARACTERS_MAX])}… ({left_out} more characters)"

    def assigned(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2]}{HIDDEN}" if is_secret(match[1]) else match[0]

    text = _PEM.sub(HIDDEN, _KNOWN.sub(HIDDEN, _USERINFO.sub(rf"\1{HIDDEN}\2", text)))
    return _ASSIGNED.sub(assigned, _HEADER.sub(rf"\1{HIDDEN}", text))
