"""ActionSpec = Inputs + Environment + Command + Effects -> Outputs, in canonical form. It knows no wire and no store.

Two specs that mean the same are equal here: what has no order is sorted, what is said twice is said once, and a pin is
the constraint that it stands for. What cannot be meant is refused with its field (docs/design/action.md).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeVar

from buildnet.errors import InvalidRequest, TooLarge
from buildnet.model.action import CONSTRAINT, SECRET, TIER
from buildnet.model.amounts import NOTHING, RESOURCE_PREFIX, Amounts
from buildnet.model.digest import Digest
from buildnet.model.effect import EFFECT_PREFIX, Effect
from buildnet.model.quick import quick
from buildnet.model.tier import tier_of
from buildnet.model.timeout import TIMEOUT_CEILING_S, timeout_s_of

SECRET_PREFIX: Final = "secret:"

SALT_BYTES_MAX: Final = 256
PRIORITY_MAX: Final = 2**31 - 1
PATH_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 255
ITEMS_MAX: Final = 100_000

_PATH: Final = re.compile(r"(?!\.\.?(?:/|\Z))[^/\0]+(?:/(?!\.\.?(?:/|\Z))[^/\0]+)*")
_VARIABLE: Final = re.compile(r"[^=\0]+")
_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_PIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PIN_VERSION: Final = re.compile(r"[A-Za-z0-9_.+-]+")

Pairs = tuple[tuple[str, str], ...]
_Item = TypeVar("_Item", bound=Any)


@quick
@dataclass(frozen=True, slots=True, order=True)
class TreeInput:
    """A directory at `path`, "" for the root itself; `digest` is of its Directory message."""

    path: str
    digest: Digest


@quick
@dataclass(frozen=True, slots=True, order=True)
class FileInput:
    """A file at `path`."""

    path: str
    digest: Digest
    executable: bool = False


@quick
@dataclass(frozen=True, slots=True, order=True)
class OutputInput:
    """What another action of the same graph leaves at `output`, put at `path`."""

    path: str
    action: str
    output: str


Input = TreeInput | FileInput | OutputInput


@quick
@dataclass(frozen=True, slots=True)
class ActionSpec:
    """One action, canonical: made by `spec_of`, which checks and sorts.

    `timeout_s` is None for the server's. `tier` is the least trust in the node that runs it, "" for what its result
    needs (`model/tier.py`). `priority` is no part of what the action is: lower runs sooner.
    """

    arguments: tuple[str, ...]
    inputs: tuple[Input, ...] = ()
    variables: Pairs = ()
    working_directory: str = ""
    outputs: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    resources: Amounts = NOTHING
    constraints: tuple[str, ...] = ()
    platform: Pairs = ()
    secrets: Pairs = ()
    tier: str = ""
    timeout_s: float | None = None
    do_not_cache: bool = False
    salt: bytes = b""
    priority: int = field(default=0, compare=False)

    def properties(self) -> Pairs:
        """All that becomes platform properties, sorted by name, then by value (REAPI Platform)."""
        return tuple(
            sorted(
                {
                    *self.platform,
                    *self.resources.properties(),
                    *((CONSTRAINT, text) for text in self.constraints),
                    *((EFFECT_PREFIX + effect.name, effect.text) for effect in self.effects),
                    *((SECRET_PREFIX + variable, reference) for variable, reference in self.secrets),
                    *(((TIER, self.tier),) if self.tier else ()),
                }
            )
        )

    @property
    def references(self) -> tuple[str, ...]:
        """The actions whose outputs it takes, each once, sorted."""
        return tuple(sorted({one.action for one in self.inputs if isinstance(one, OutputInput)}))


def spec_of(
    arguments: Iterable[str],
    *,
    inputs: Iterable[Input] = (),
    variables: Mapping[str, str] | None = None,
    pins: Mapping[str, str] | None = None,
    working_directory: str = "",
    outputs: Iterable[str] = (),
    effects: Mapping[str, str] | None = None,
    resources: Amounts = NOTHING,
    constraints: Iterable[str] = (),
    platform: Iterable[tuple[str, str]] = (),
    secrets: Mapping[str, str] | None = None,
    tier: str = "",
    timeout_s: float | None = None,
    do_not_cache: bool = False,
    salt: bytes = b"",
    priority: int = 0,
) -> ActionSpec:
    """The canonical spec of what is given.

    Raises:
        InvalidRequest: something cannot be meant; `field` says what.
        TooLarge: there is too much of something.
    """
    words = tuple(arguments)
    if not words or not words[0]:
        raise InvalidRequest("the action has no arguments; the first is the program", field="arguments")
    together = "".join(words)
    if "\0" in together or not together.isascii():
        for word in words:
            if "\0" in word or not is_text(word):
                raise InvalidRequest(f"the argument {word[:64]!r} holds a NUL byte or is not UTF-8", field="arguments")
    # The maximum is the controller's to say: a spec may be meant for any.
    timeout_s_of(timeout_s, TIMEOUT_CEILING_S)
    if not -PRIORITY_MAX - 1 <= priority <= PRIORITY_MAX:
        raise InvalidRequest(f"a priority of {priority} is outside 32 bits; ask for one nearer to 0", field="priority")
    if len(salt) > SALT_BYTES_MAX:
        raise TooLarge(f"a salt has at most {SALT_BYTES_MAX} bytes", field="salt", limit=SALT_BYTES_MAX)
    # What is empty is left alone: a graph of thousands says little more than arguments, inputs and outputs of each.
    spec = ActionSpec(
        arguments=words,
        inputs=_inputs(inputs) if inputs else (),
        variables=_variables(tuple(variables.items())) if variables else (),
        working_directory=checked_path(working_directory, "working_directory", may_be_root=True),
        outputs=_sorted({checked_path(path.rstrip("/"), "outputs") for path in outputs}),
        effects=_sorted([Effect.parse(name, level) for name, level in effects.items()]) if effects else (),
        resources=_resources(resources),
        constraints=_constraints(constraints, pins or {}) if constraints or pins else (),
        platform=_platform(platform) if platform else (),
        secrets=_secrets(secrets, variables or {}) if secrets else (),
        tier=tier_of(tier, "tier") if tier else "",
        timeout_s=timeout_s,
        do_not_cache=do_not_cache,
        salt=salt,
        priority=priority,
    )
    for name, items in (("arguments", spec.arguments), ("inputs", spec.inputs), ("outputs", spec.outputs)):
        if len(items) > ITEMS_MAX:
            raise TooLarge(f"{len(items)} {name} are given; {ITEMS_MAX} are the most", field=name, limit=ITEMS_MAX)
    return spec


def checked_path(path: str, where: str, *, may_be_root: bool = False) -> str:
    """A relative path in its only form: no empty, `.` or `..` parts, no slash at either end (REAPI Command).

    Raises:
        InvalidRequest: it is anything else.
    """
    if not path:
        if may_be_root:
            return path
    elif (
        # Nearly every path is as plain as this, and is seen to be so in a fifth of what the expression takes.
        len(path) <= NAME_BYTES_MAX
        and path.isascii()
        and path[0] not in "./"
        and path[-1] != "/"
        and "/." not in path
        and "//" not in path
        and "\0" not in path
    ):
        return path
    if not _PATH.fullmatch(path) or not is_text(path):
        raise InvalidRequest(
            f"{path[:200]!r} is not a path below the root; write it relative, without '.', '..', empty parts or a "
            "slash at an end",
            field=where,
        )
    if len(path.encode()) > PATH_BYTES_MAX or any(len(part.encode()) > NAME_BYTES_MAX for part in path.split("/")):
        raise InvalidRequest(
            f"the path {path[:64]!r}… is over {PATH_BYTES_MAX} bytes, or a part of it over {NAME_BYTES_MAX}",
            field=where,
        )
    return path


def is_text(text: str) -> bool:
    """Whether it can be written in UTF-8: what the system gave undecoded cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _inputs(inputs: Iterable[Input]) -> tuple[Input, ...]:
    found: dict[tuple[str, ...], Input] = {}
    for one in inputs:
        checked_path(one.path, "inputs", may_be_root=not isinstance(one, FileInput))
        if isinstance(one, OutputInput):
            if not one.action:
                raise InvalidRequest(f"the input {one.path!r} names no action whose output it is", field="inputs")
            checked_path(one.output, "inputs")
        found[_order(one)] = one
    return tuple(found.values()) if len(found) < 2 else tuple(found[place] for place in sorted(found))


def _order(one: Input) -> tuple[str, ...]:
    """Where it stands among the inputs; of equal ones the same."""
    match one:
        case OutputInput():
            return one.path, "output", one.action, one.output
        case TreeInput():
            return one.path, "tree", one.digest.text
        case FileInput():
            return one.path, "file", one.digest.text, str(one.executable)


def _sorted(items: Collection[_Item]) -> tuple[_Item, ...]:
    return tuple(items) if len(items) < 2 else tuple(sorted(items))


@lru_cache(maxsize=256)
def _variables(variables: Pairs) -> Pairs:
    # Remembered: actions of a graph, or of a build, have one environment.
    for name, value in variables:
        if not _VARIABLE.fullmatch(name) or "\0" in value or not is_text(name + value):
            raise InvalidRequest(
                f"{name[:64]!r} cannot name a variable, or its value holds a NUL byte or is not UTF-8",
                field="variables",
            )
    return tuple(sorted(variables))


def _secrets(secrets: Mapping[str, str], variables: Mapping[str, str]) -> Pairs:
    for variable, reference in secrets.items():
        if not _VARIABLE.fullmatch(variable) or variable in variables:
            raise InvalidRequest(f"{variable[:64]!r} cannot name a secret's variable, or has a value", field="secrets")
        check_reference(reference, "secrets", f"what {variable} refers to")
    return tuple(sorted(secrets.items()))


def check_reference(reference: str, field: str, what: str = "it") -> None:
    """See that a text can name a secret.

    Raises:
        InvalidRequest: it cannot. The text is not repeated: somebody may have written the secret itself.
    """
    if not _REFERENCE.fullmatch(reference):
        raise InvalidRequest(
            f"{what} is not a name of letters, digits and ._/-; name a secret, do not write it", field=field
        )


def _constraints(constraints: Iterable[str], pins: Mapping[str, str]) -> tuple[str, ...]:
    given = {*constraints, *_pins(pins)}
    for text in given:
        if not is_text(text):
            raise InvalidRequest(f"the constraint {text[:64]!r} is not UTF-8", field="require")
    return _sorted(given)


def _pins(pins: Mapping[str, str]) -> Iterable[str]:
    for name, version in pins.items():
        if not _PIN.fullmatch(name) or not _PIN_VERSION.fullmatch(version):
            raise InvalidRequest(
                f"{name[:64]}={version[:64]} is no pin; write a tool and its version, as in gcc=12.2", field="pins"
            )
        yield f"tool:{name}={version}"


def _resources(resources: Amounts) -> Amounts:
    if resources is NOTHING:
        return resources
    if wrong := resources.out_of_bounds():
        raise InvalidRequest(f"{wrong}; ask for less", field="resources")
    return resources


def _platform(platform: Iterable[tuple[str, str]]) -> Pairs:
    pairs = sorted(set(platform))
    for name, value in pairs:
        if not is_text(name + value):
            raise InvalidRequest(f"the platform property {name[:64]!r} or its value is not UTF-8", field="platform")
        if not name or name in (CONSTRAINT, TIER) or name.startswith((EFFECT_PREFIX, RESOURCE_PREFIX, SECRET_PREFIX)):
            raise InvalidRequest(
                f"the platform property {name[:64]!r} has a field of its own; "
                "use effects, resources, require, secrets or tier",
                field="platform",
            )
    return tuple(pairs)


def is_ours(name: str) -> bool:
    """Whether a platform property has its meaning from this house, so that no worker need declare it."""
    return name in (CONSTRAINT, TIER, SECRET) or name.startswith((EFFECT_PREFIX, RESOURCE_PREFIX, SECRET_PREFIX))
