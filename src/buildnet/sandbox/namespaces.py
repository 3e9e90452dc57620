"""Linux namespaces: a root, processes and, unless granted, a network of its own. Refuses a plan made for
another backend.
"""

from __future__ import annotations

from buildnet.errors import InvariantBroken
from buildnet.sandbox import Place, Running, launcher
from buildnet.sandbox.policy import Plan


class NamespaceSandbox(launcher.Launched):
    """It sees its execution root, what the plan shows, read-only, and a /tmp of its own; nothing outlives the first
    process.
    """

    isolation = "namespaces"

    def start(self, plan: Plan, place: Place) -> Running:
        """Start a command.

        Raises:
            NativeError: it could not be started; nothing runs.
        """
        if plan.isolation != self.isolation:
            raise InvariantBroken(f"a plan for {plan.isolation!r} was given to {self.isolation!r}")
        return launcher.start(plan, place)
