"""A process group with limits, for kernels without namespaces. Keeps the command from nothing it
may do as this user.
"""

from __future__ import annotations

from buildnet.errors import InvariantBroken
from buildnet.sandbox import Place, Running, launcher
from buildnet.sandbox.policy import Plan


class ProcessSandbox(launcher.Launched):
    """Clean environment, own session, limits and a TMPDIR; network and files are the machine's:
    `advisory`.
    """

    isolation = "process"

    def start(self, plan: Plan, place: Place) -> Running:
        """Start a command.

        Raises:
            NativeError: it could not be started; nothing runs.
        """
        if plan.isolation != self.isolation:
            raise InvariantBroken(f"a plan for {plan.isolation!r} was given to {self.isolation!r}")
        return launcher.start(plan, place)
