"""The quick codec and the one that defines the form are one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.ledger import leaf
from buildnet.model.entry import ENCODER, Entry

values = st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.text(), max_size=3))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(), st.integers(), st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_an_entry_has_one_encoding(kind: str, at_unix_ms: int, fields: dict[str, str | int | bool | list[str]]) -> None:
    entry = Entry(kind, at_unix_ms, fields)
    assert leaf.encode(entry) == entry.encode()
    if isinstance(entry.value["kind"], str):
        assert leaf.decode(entry.encode()) == entry.value


def judged(body: bytes) -> object:
    """What the definition says of bytes: the value, or nothing."""
    try:
        value = json.loads(body)
        if ENCODER.encode(value).encode() != body or not isinstance(value["kind"], str):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value


@given(
    st.binary()
    | st.dictionaries(st.sampled_from(["kind", "v", "at_unix_ms"]), anything).map(
        lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()
    )
    | anything.map(lambda value: json.dumps({"kind": "k", "x": value}).encode())
)
def test_what_is_not_in_the_one_form_is_refused(body: bytes) -> None:
    wanted = judged(body)
    if wanted is None:
        with pytest.raises(ValueError, match="it is not"):
            leaf.decode(body)
    else:
        assert repr(leaf.decode(body)) == repr(wanted)


@pytest.mark.parametrize(
    "body",
    [b'{"kind":"k","x":1e22}', b'{"kind":"k","x":100000000000000000000.0}', b'{"kind":"k","kind":"k"}',
     b'{"kind":"\\u00e9"}', b'{"kind":"k"} ', b'{"kind":"k","x":18446744073709551616}', b"", b"[]", b"null"],
)  # fmt: skip
def test_two_codecs_agree_where_they_could_differ(body: bytes) -> None:
    test_what_is_not_in_the_one_form_is_refused.hypothesis.inner_test(body)  # type: ignore[attr-defined]
