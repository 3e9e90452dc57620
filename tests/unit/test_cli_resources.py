"""Whatever a server says, a terminal is told letters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildnet.cli.resources import _lines, printable
from buildnet.client.resources import ResourceNews
from buildnet.model.resource import Resource


@given(st.text(st.characters(), max_size=50))
def test_no_text_reaches_a_terminal_with_what_it_would_obey(text: str) -> None:
    assert printable(text).isprintable()


def test_what_can_be_printed_stays() -> None:
    assert printable("gcc-12 ümläut [red]") == "gcc-12 ümläut [red]"
    assert printable("a\n\x1b[2J\u202e") == "a\\n\\x1b[2J\\u202e"


def test_news_are_lines() -> None:
    resources = (
        Resource("tool", "gcc\x1b[2J", "12", (("path", "/bin\n"),)),
        Resource("cpu", "cpu", attributes=(("avx2", 1),)),
    )
    news = ResourceNews("c", 5, False, "n" * 32, True, resources, (("tool", "clang\r"),))
    assert list(_lines(news, "", "", False)) == [
        "+ nnnnnnnnnnnn  tool:gcc\\x1b[2J  12  path=/bin\\n",
        "+ nnnnnnnnnnnn  cpu:cpu  -  avx2",
        "- nnnnnnnnnnnn  tool:clang\\r",
    ]
    assert list(_lines(news, "cpu", "nn", False)) == ["+ nnnnnnnnnnnn  cpu:cpu  -  avx2"]
    assert list(_lines(news, "", "m", False)) == []
    gone = ResourceNews("c", 6, False, "n" * 32, True, (), ())
    assert list(_lines(gone, "", "", False)) == ["- nnnnnnnnnnnn  everything"]
    assert [line["gone"] for line in _lines(news, "", "", True)] == [False, False, True]
