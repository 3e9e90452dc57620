"""A constraint is text in a small grammar; what it means depends on nothing but the resources. Pure.

    constraint = term { "," term }
    term       = subject [ operator value ]
    subject    = kind ":" name       one resource: tool:clang
               | kind "." attribute  a fact of some resource of the kind: gpu.memory_bytes
               | kind                some resource of the kind: gpu
               | name                a resource of that name, of any kind: gcc
    operator   = "=" | "==" | "!=" | "<" | "<=" | ">" | ">="

With a name the value is a version, with an attribute a number (also as a size: 8GiB) or a text. `arch`, `cores` and
`memory` stand for cpu.arch, cpu.cores and memory.size_bytes. docs/reference/constraints.md has the rules of versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from buildnet.errors import InvalidRequest
from buildnet.model.action import CONSTRAINT
from buildnet.model.quantity import size_bytes_of
from buildnet.model.resource import KINDS, Resource, Value

TEXT_BYTES_MAX: Final = 1024
TERMS_MAX: Final = 32
_OPERATOR: Final = re.compile(r">=|<=|==|!=|=|<|>")
_VERSION: Final = re.compile(r"v?(\d{1,18}(?:\.\d{1,18})*)(.*)")
_ATTRIBUTE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NUMBER: Final = re.compile(r"[+-]?\d{1,18}(?:\.\d{1,18})?")
_SIZE: Final = re.compile(r"\d+(?:\.\d+)?\s*[A-Za-z]+")
_SHORT_NUMBERS: Final = frozenset({"cores", "memory"})
_SHORT: Final = {"arch": ("cpu", "arch"), "cores": ("cpu", "cores"), "memory": ("memory", "size_bytes")}
_HOLDS: Final[dict[str, Callable[[int], bool]]] = {
    "=": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    ">=": lambda order: order >= 0,
}


@dataclass(frozen=True, slots=True)
class Term:
    """One condition. `kind` and `name` "" are any; `attribute` "" is the version; `operator` "" asks for presence."""

    text: str
    kind: str = ""
    name: str = ""
    attribute: str = ""
    operator: str = ""
    value: str = ""
    number: Fraction | None = None

    def concerns(self, resource: Resource) -> bool:
        """Whether the resource is one that the term speaks of, whatever its version or attributes."""
        return (not self.kind or self.kind == resource.kind) and (not self.name or self.name == resource.name)

    def holds(self, resource: Resource) -> bool:
        """Whether this resource meets the term."""
        return self.concerns(resource) and self.flaw(resource) == ""

    def flaw(self, resource: Resource) -> str:
        """Why a resource that the term concerns does not meet it; empty when it does."""
        if self.attribute:
            found = resource.attribute(self.attribute)
            if found is None:
                return f"{_called(resource)} has no {self.attribute}"
            if not self.operator or self._compares(found):
                return ""
            if isinstance(found, int) and self.number is None:
                return f"{_called(resource)} has {self.attribute} {found}, a number, and {self.value!r} is none"
            return f"{_called(resource)} has {self.attribute} {found}, not {self._wanted}"
        if not self.operator:
            return ""
        if not resource.version:
            return f"the version of {_called(resource)} is not known"
        if _HOLDS[self.operator](compare_versions(resource.version, self.value)):
            return ""
        return f"{_called(resource)} is of version {resource.version}, not {self._wanted}"

    def _compares(self, found: Value) -> bool:
        holds = _HOLDS[self.operator]
        if isinstance(found, int):
            return self.number is not None and holds((found > self.number) - (found < self.number))
        if self.operator in ("=", "!="):
            return holds(0 if found == self.value else 1)
        return holds(compare_versions(found, self.value))

    @property
    def _wanted(self) -> str:
        return f"{self.operator}{self.value}"

    @property
    def absence(self) -> str:
        """What to say where there is nothing that the term concerns."""
        what = f"{self.kind} {self.name}".strip() if self.name else f"{self.kind} at all"
        return f"no {what}"


Constraint = tuple[Term, ...]


def _called(resource: Resource) -> str:
    return resource.name if resource.name == resource.kind else f"{resource.kind} {resource.name}"


def compare_versions(version: str, wanted: str) -> int:
    """Negative, 0 or positive, as `version` is older than, equal to or newer than `wanted`, as far as that is written.

    A version is numbers with dots between, then text. Only as many numbers are compared as `wanted` writes, those
    that `version` lacks being 0: 12.2.0 equals 12. Text is compared, character by character, only if `wanted` has some.
    What does not begin with a number is text alone.
    """
    numbers, rest = _split(version)
    wanted_numbers, wanted_rest = _split(wanted)
    length = len(wanted_numbers)
    ours = (*numbers, *(0,) * length)[:length]
    if ours != wanted_numbers:
        return 1 if ours > wanted_numbers else -1
    if not wanted_rest or rest == wanted_rest:
        return 0
    return 1 if rest > wanted_rest else -1


def _split(version: str) -> tuple[tuple[int, ...], str]:
    match = _VERSION.fullmatch(version)
    if match is None:
        return (), version
    return tuple(int(part) for part in match[1].split(".")), match[2]


def parse(texts: Iterable[str]) -> Constraint:
    """All terms of all texts, in order, each once.

    Raises:
        InvalidRequest: a text is too long or not in the grammar; it says which and why.
    """
    terms: dict[Term, None] = {}
    for text in texts:
        if len(text.encode(errors="replace")) > TEXT_BYTES_MAX:
            raise InvalidRequest(f"a constraint has over {TEXT_BYTES_MAX} bytes; ask for less", field=CONSTRAINT)
        for piece in text.split(","):
            terms[_term(piece, text)] = None
    if len(terms) > TERMS_MAX:
        raise InvalidRequest(f"the constraints have {len(terms)} terms; {TERMS_MAX} are the most", field=CONSTRAINT)
    return tuple(terms)


def _term(piece: str, whole: str) -> Term:
    def refused(why: str) -> InvalidRequest:
        return InvalidRequest(f"{whole!r} is not a constraint: {why}; write for example gcc>=12", field=CONSTRAINT)

    if not piece.isprintable():
        raise refused(f"{piece!r} holds what cannot be printed")
    match = _OPERATOR.search(piece)
    operator = match[0].replace("==", "=") if match else ""
    subject = (piece[: match.start()] if match else piece).strip()
    value = piece[match.end() :].strip() if match else ""
    if not subject or any(character in " !" for character in subject):
        raise refused(f"{piece.strip()!r} is not a name, or a name, an operator and a value")
    if operator and not value:
        raise refused(f"nothing follows {operator}")
    if any(character in "=<>!" for character in value):
        raise refused(f"{value!r} holds an operator")
    text = f"{subject}{operator}{value}"
    kind, colon, name = subject.partition(":")
    if colon:
        if kind not in KINDS:
            raise refused(f"{kind!r} is no kind of resource (kinds are {', '.join(KINDS)})")
        if not name:
            raise refused(f"no name follows {kind}:")
        return Term(text, kind=kind, name=name, operator=operator, value=value)
    kind, dot, attribute = subject.partition(".")
    if subject in _SHORT and operator:
        kind, attribute = _SHORT[subject]
        dot = "."
    if dot and kind in KINDS:
        if not _ATTRIBUTE.fullmatch(attribute):
            raise refused(f"{attribute!r} is no attribute")
        return _of_fact(Term(text, kind, "", attribute, operator, value, _number(value)), subject, refused)
    if subject in KINDS:
        if operator:
            raise refused(f"{subject} is a kind and has no version; name an attribute, as in {subject}.NAME{operator}1")
        return Term(text, kind=subject)
    return Term(text, name=subject, operator=operator, value=value)


def _of_fact(term: Term, subject: str, refused: Callable[[str], InvalidRequest]) -> Term:
    """A term that compares a fact, unless the fact is known to be a number and the value is none."""
    if term.operator and term.number is None and subject in _SHORT_NUMBERS:
        raise refused(f"{subject} is a number, and {term.value!r} is none")
    return term


def _number(value: str) -> Fraction | None:
    # Exactly: of `cores<2.5` and 2 cores, a number that was cut would say the wrong thing.
    if _NUMBER.fullmatch(value):
        return Fraction(value)
    if _SIZE.fullmatch(value):
        try:
            return Fraction(size_bytes_of(value))
        except InvalidRequest:
            # Then it is a text, such as the version of a driver.
            return None
    return None


def reasons(constraint: Constraint, concerned: Callable[[Term], Iterable[Resource]]) -> tuple[str, ...]:
    """Why a node does not meet a constraint, one reason for each term that it does not; none when it does.

    Args:
        constraint: what is asked.
        concerned: those of the node's resources that a term concerns.
    """
    told = []
    for term in constraint:
        flaws = []
        for resource in concerned(term):
            if not (flaw := term.flaw(resource)):
                break
            flaws.append(flaw)
        else:
            said = "; ".join(sorted(flaws)[:3]) if flaws else term.absence
            told.append(f"{term.text}: {said}")
    return tuple(told)
