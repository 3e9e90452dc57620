"""What an action asks of its time is granted whole or refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest
from buildnet.model.timeout import TIMEOUT_DEFAULT_S, TIMEOUT_MAX_S, timeout_s_of


@given(st.one_of(st.none(), st.floats()), st.floats(1, 1e6))
def test_what_is_asked_is_granted_or_refused_with_the_maximum_named(asked_s: float | None, max_s: float) -> None:
    if asked_s is None:
        assert timeout_s_of(asked_s, max_s) == min(TIMEOUT_DEFAULT_S, max_s)
    elif 0 < asked_s <= max_s:
        assert timeout_s_of(asked_s, max_s) == asked_s
    else:
        with pytest.raises(InvalidRequest, match="timeout_max") as refused:
            timeout_s_of(asked_s, max_s)
        assert f"at most {max_s:g} s" in refused.value.message
        assert refused.value.fields["field"] == "timeout"


def test_two_hours_may_be_asked_for_by_default() -> None:
    assert timeout_s_of(7200.0, TIMEOUT_MAX_S) == 7200.0
    for asked_s in (math.nan, math.inf, -1.0, 0.0):
        with pytest.raises(InvalidRequest):
            timeout_s_of(asked_s, TIMEOUT_MAX_S)
