"""How long an action may run. What is asked beyond the controller's maximum is refused, never cut."""

from __future__ import annotations

from typing import Final

from buildnet.errors import InvalidRequest

TIMEOUT_DEFAULT_S: Final = 3600.0
TIMEOUT_MAX_S: Final = 7200.0
"""The maximum of a controller that is told none."""
TIMEOUT_CEILING_S: Final = 7 * 86_400
"""The most that a controller can be told, so what no controller allows."""


def timeout_s_of(asked_s: float | None, max_s: float) -> float:
    """How long an action may run, in seconds. None: it does not say.

    Raises:
        InvalidRequest: it asks for more than `max_s`, or for no time (REAPI Action.timeout: MUST reject).
    """
    if asked_s is None:
        return min(TIMEOUT_DEFAULT_S, max_s)
    if not 0 < asked_s <= max_s:
        raise InvalidRequest(
            f"a timeout of {asked_s:g} s is not above 0 and at most {max_s:g} s; change it, leave it out, or raise the "
            "controller's maximum ([scheduler] timeout_max, --timeout-max)",
            field="timeout",
        )
    return asked_s
