"""A join line is read whole or refused, and no refusal repeats its token."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest
from buildnet.model.join_line import CARRIERS, JoinLine, is_join_line

KEY = "0123456789abcdef" * 4
TOKEN = base64.b32encode(bytes(range(20))).decode()
LINE = f"bnet://build.example:8980/team?key={KEY}&term=7&token={TOKEN}"

lines = st.builds(
    JoinLine,
    st.sampled_from(["127.0.0.1:1", "[::1]:65535", "build.example:8980"]),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True).filter(str.isascii),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.integers(0, (1 << 64) - 1),
    st.one_of(st.just(""), st.binary(min_size=20, max_size=20).map(lambda raw: base64.b32encode(raw).decode())),
    st.sampled_from(CARRIERS),
)


@given(lines)
def test_what_was_written_is_read(line: JoinLine) -> None:
    assert JoinLine.parse(line.text) == line
    assert JoinLine.parse(f"  {line.text}\n") == line
    assert is_join_line(line.text)
    assert line.token not in repr(line) or not line.token
    assert line.without_token().token_bytes == b""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "begin with"),
        ("grpc://127.0.0.1:8980", "begin with"),
        (LINE.replace("bnet:", "bnet+:"), "begin with"),
        (LINE.replace("bnet:", "bnet+ftp:"), "begin with"),
        (LINE.replace("bnet:", "https:"), "begin with"),
        (LINE.replace(":8980", ""), "begin with"),
        (LINE.replace("build.example", "user@build.example"), "begin with"),
        (f"{LINE}#end", "begin with"),
        (LINE.replace("/team", ""), "organisation"),
        (LINE.replace("/team", "/team/other"), "organisation"),
        (LINE[:60], "key is not 64"),
        (LINE.replace(f"key={KEY}&", ""), "the key must"),
        (LINE.replace("term=7", "term=-7"), "term is not"),
        (LINE.replace("term=7", f"term={1 << 64}"), "term is not"),
        (LINE[:-1], "token is not"),
        (f"{LINE}&token={TOKEN}", "cut short"),
        (LINE.replace("term=", "turn="), "each once"),
        (LINE.replace("team", "te\tam"), "holds what"),
        (LINE + "A" * 1024, "too long"),
    ],
)
def test_what_is_not_one_is_refused_with_the_reason(line: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        JoinLine.parse(line)
    assert TOKEN[:8] not in refused.value.message


mutated = st.builds(
    lambda at, cut, piece: LINE[: at % len(LINE)] + piece + LINE[at % len(LINE) + cut :],
    st.integers(0, 1000),
    st.integers(0, 8),
    st.one_of(st.text(max_size=8), st.sampled_from(["&", "?", "#", "@", "%00", "//", "[", "]", "\n", "key=", "::"])),
)


@given(st.one_of(st.text(max_size=200), mutated))
@example("bnet://[::1/team?key=")
@example("bnet://h:99999/team?key=a")
@example("bnet://[::1]:1/team?key=%ff")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        line = JoinLine.parse(text)
    except InvalidRequest:
        return
    assert JoinLine.parse(line.text) == line
