"""What the command line reads of time and shows of strangers' text."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.cli import moments
from buildnet.cli.printable import shown, shown_json
from buildnet.errors import InvalidRequest

NOW_MS = 1_900_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", NOW_MS - 600_000),
        ("1.5h", NOW_MS - 5_400_000),
        ("250ms", NOW_MS - 250),
        ("999999999w", 0),
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T01:00:01.5+01:00", 1500),
        ("1960-01-01T00:00:00Z", 0),
    ],
)
def test_a_moment_is_how_long_ago_or_a_time(text: str, expected: int) -> None:
    assert moments.unix_ms(text, NOW_MS) == expected


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "1e3s", "yesterday", "٣m", "0001-01-01T00:00:00+23:59"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="write how long ago"):
        moments.unix_ms(text, NOW_MS)


@given(st.text(max_size=30))
def test_whatever_is_typed_is_a_moment_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        assert moments.unix_ms(text, NOW_MS) >= 0


def test_a_moment_is_shown_in_utc_however_far() -> None:
    assert moments.shown(1500) == "1970-01-01 00:00:01.500"
    assert moments.shown(1 << 70) == f"{1 << 70} ms"


@given(st.text())
def test_no_control_character_is_shown_raw(text: str) -> None:
    assert shown(text).isprintable()
    line = shown_json({"text": text})
    assert line.isprintable()
    assert json.loads(line) == {"text": text}


def test_what_it_becomes_can_be_read() -> None:
    assert shown("a\x1b[2J\u202eb\x7f") == "a\\x1b[2J\\u202eb\\x7f"
