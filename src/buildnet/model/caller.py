"""Who calls, as far as rooms must know: which instances they may see, and the namespace of their results.

Rights are checked in the door (native/door/src/access.rs); here nothing is granted. The key of a result that is kept
apart is the instance name, a separator that no instance name may hold, and the namespace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_SEPARATOR = "\x01"

LOCAL_WORKER: Final = "local-worker"
"""The subject of the token that a controller gives to the worker that it starts."""


@dataclass(frozen=True, slots=True)
class Caller:
    """`instances` with all below them, None for every one; `namespace` is "" for a trusted caller; `node` is the key of
    the node in whose session the call came, "" elsewhere.
    """

    subject: str = ""
    namespace: str = ""
    instances: tuple[str, ...] | None = None
    node: str = ""

    def may_see(self, instance: str) -> bool:
        """Whether what belongs to this instance (or to a namespace in it) is the caller's to see."""
        if self.instances is None:
            return True
        public = public_instance(instance)
        return any(public == granted or (granted and public.startswith(f"{granted}/")) for granted in self.instances)

    def may_stop(self, instance: str) -> bool:
        """Whether what runs under this key is the caller's to end: in a namespace only what was begun there."""
        return self.may_see(instance) and (not self.namespace or instance.endswith(f"{_SEPARATOR}{self.namespace}"))

    def written(self, instance: str) -> str:
        """The instance in the key of a result that this caller brings about."""
        return f"{instance}{_SEPARATOR}{self.namespace}" if self.namespace else instance


ANYBODY = Caller()


def public_instance(instance: str) -> str:
    """The instance name as clients write it."""
    return instance.partition(_SEPARATOR)[0]


def is_apart(instance: str) -> bool:
    """Whether a result under this key is a namespace's alone: no trusted caller is ever given it."""
    return _SEPARATOR in instance


def looked_up(instance: str) -> Iterator[str]:
    """Where a result under this key may be found, in this order: a namespace's own, then the trusted one."""
    yield instance
    if (public := public_instance(instance)) != instance:
        yield public


def share_of(subject: str, invocation: str = "") -> tuple[str, str, str]:
    """Whom an action is counted for: `acme/alice` is alice of acme; who names no organisation is of none."""
    organisation, slash, user = subject.partition("/")
    return (organisation, user, invocation) if slash else ("", subject, invocation)
