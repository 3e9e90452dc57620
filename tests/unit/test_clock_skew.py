"""Delays make a clock look late, and never early; one that was set is seen as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildnet.scheduler.clock_skew import WINDOW_MS, ClockSkew

times = st.integers(-62_135_596_800_000, 253_402_300_799_999)


@given(st.integers(-100_000, 100_000), st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)), min_size=1))
def test_it_is_never_ahead_of_the_truth_and_as_near_as_the_least_delay(
    skew_ms: int, messages: list[tuple[int, int]]
) -> None:
    heard_ms, (_, first_delay_ms) = 0, messages[0]
    skew = ClockSkew(skew_ms - first_delay_ms, 0)
    recent = [(0, first_delay_ms)]
    for pause_ms, delay_ms in messages[1:]:
        heard_ms += pause_ms
        skew.heard(heard_ms - delay_ms + skew_ms, heard_ms)
        recent.append((heard_ms, delay_ms))
        assert skew.ms <= skew_ms
        least_ms = min(delay_ms for at_ms, delay_ms in recent if heard_ms - at_ms < WINDOW_MS)
        assert skew.ms >= skew_ms - least_ms
        assert skew.certain_ms in (0, skew.ms)
        if skew_ms <= 0 and heard_ms < WINDOW_MS:
            assert skew.certain_ms == 0


@given(times, st.lists(st.tuples(times, times), max_size=8))
def test_clocks_that_are_set_to_anything_are_borne(sent_ms: int, later: list[tuple[int, int]]) -> None:
    skew = ClockSkew(sent_ms, 0)
    for sent, heard in later:
        skew.heard(sent, heard)
        assert skew.ms in {sent_ms, *(one - other for one, other in later)}


def test_a_clock_that_was_set_is_seen_as_it_is_after_two_windows() -> None:
    skew = ClockSkew(30_000, 0)
    for heard_ms in range(WINDOW_MS, 3 * WINDOW_MS + 1, WINDOW_MS):
        skew.heard(heard_ms, heard_ms)
    assert skew.certain_ms == skew.ms == 0
