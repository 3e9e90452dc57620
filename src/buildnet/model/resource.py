"""What a node offers, as facts that are compared by value. Refuses what a terminal or a constraint could not bear."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from buildnet.errors import InvalidRequest

KINDS: Final = ("cpu", "disk", "endpoint", "gpu", "memory", "runtime", "sandbox", "tool", "toolchain")
NAME_BYTES_MAX: Final = 255
TEXT_BYTES_MAX: Final = 1024
ATTRIBUTES_MAX: Final = 512
NUMBER_MAX: Final = (1 << 63) - 1
_ATTRIBUTE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

Value = int | str
Key = tuple[str, str]
"""Kind and name: what identifies a resource on its node."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that a constraint can ask for.

    Shapes: `kind` is one of KINDS; `name` has 1 to 255 bytes, `version` may be empty; `attributes` are name and value
    pairs, rising by name. Every character is printable.
    """

    kind: str
    name: str
    version: str = ""
    attributes: tuple[tuple[str, Value], ...] = ()

    @property
    def key(self) -> Key:
        """Kind and name."""
        return self.kind, self.name

    def attribute(self, name: str) -> Value | None:
        """The value of one attribute, or None."""
        for known, value in self.attributes:
            if known == name:
                return value
        return None


def speakable(text: str, bytes_max: int = NAME_BYTES_MAX) -> bool:
    """Whether every character is printable, so that no terminal obeys it, and it is not too long."""
    # A character has at most four bytes in UTF-8: most texts need not be encoded to be known as short.
    return text.isprintable() and (4 * len(text) <= bytes_max or len(text.encode()) <= bytes_max)


def check_resource(resource: Resource) -> None:
    """Check what came from elsewhere.

    Raises:
        InvalidRequest: it is not of the shape that Resource tells.
    """
    check_key(resource.key)
    what = f"{resource.kind}:{resource.name}"
    if not speakable(resource.version):
        raise InvalidRequest(f"the version of {what} is too long or not printable", field="version")
    if len(resource.attributes) > ATTRIBUTES_MAX:
        raise InvalidRequest(f"{what} has more than {ATTRIBUTES_MAX} attributes", field="attributes")
    before = ""
    for name, value in resource.attributes:
        if not _ATTRIBUTE.fullmatch(name) or name <= before:
            raise InvalidRequest(f"attributes of {what} are not names in rising order", field="attributes")
        before = name
        if isinstance(value, str):
            if not speakable(value, TEXT_BYTES_MAX):
                raise InvalidRequest(f"{name} of {what} is too long or not printable", field="attributes")
        elif abs(value) > NUMBER_MAX:
            raise InvalidRequest(f"{name} of {what} is over 63 bits", field="attributes")


def check_key(key: Key) -> None:
    """Check a kind and name that came from elsewhere.

    Raises:
        InvalidRequest: no such kind, or a name that cannot be shown.
    """
    kind, name = key
    if kind not in KINDS:
        raise InvalidRequest(f"{kind!r} is no kind of resource; kinds are {', '.join(KINDS)}", field="kind")
    if not name or not speakable(name):
        raise InvalidRequest(f"a name of a {kind} is empty, too long or not printable", field="name")


def attributes_of(**facts: Value | None) -> tuple[tuple[str, Value], ...]:
    """Attributes in their order; None is left out."""
    return tuple(sorted((name, value) for name, value in facts.items() if value is not None))


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says it offers, as it is signed.

    `base` 0: `present` is all there is; else what follows changes the state that the announcement of that sequence
    left. `present` rises strictly by kind and name, and so does `gone`. Times are in milliseconds since 1970.
    `left_out` counts what was found and not announced. `controller` is the id of the one that is to believe it.
    """

    node: str
    boot: str
    controller: str
    sequence: int
    base: int
    made_at_unix_ms: int
    expires_at_unix_ms: int
    present: tuple[Resource, ...] = ()
    gone: tuple[Key, ...] = ()
    left_out: int = 0
