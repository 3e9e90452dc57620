"""Lines that account for something have one spelling each; whatever else they hold is refused, nothing half done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest, TransferRefused
from buildnet.ledger import book
from buildnet.ledger.accounts import Account, Sums
from buildnet.model.posting import (
    AMOUNT_MAX,
    CREDIT_LIMIT,
    DEBIT_LIMIT,
    UNITS,
    Hold,
    Line,
    Move,
    Opening,
    Resolve,
    caller_account,
    is_account,
    node_account,
    parse_line,
    parse_opening,
)

NAMES = st.from_regex(r"\A[a-z]{1,16}:[!-~]{1,111}\Z")
AMOUNTS = st.integers(0, AMOUNT_MAX)
UNIT = st.sampled_from(UNITS)
LINES: st.SearchStrategy[Line] = st.one_of(
    st.builds(
        Move,
        NAMES,
        NAMES,
        st.dictionaries(UNIT, AMOUNTS, min_size=1).map(lambda amounts: tuple(amounts.items())),
    ),
    st.builds(Hold, st.integers(0, 10**11), NAMES, NAMES, UNIT, AMOUNTS),
    st.builds(Resolve, st.integers(0, 1 << 57), st.integers(0, 63), st.none() | AMOUNTS).filter(
        lambda line: line.index < 1 << 57
    ),
)


@given(LINES)
def test_a_line_is_read_as_it_was_written(line: Line) -> None:
    assert parse_line(line.text) == line


@given(st.text() | st.text(alphabet="ab:. 0123456789holdpstvi_cmu\x1b", max_size=60))
def test_whatever_is_read_is_spelled_in_its_one_way(text: str) -> None:
    try:
        line = parse_line(text)
    except InvalidRequest:
        return
    assert line.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "node:a caller:b",
        "node:a caller:b actions",
        "node:a caller:b actions 01",
        "node:a caller:b actions +1",
        "node:a caller:b actions 1 actions 2",
        "node:a caller:b miles 1",
        "node:a caller:b actions ١",
        f"node:a caller:b actions {AMOUNT_MAX + 1}",
        "node:a  caller:b actions 1",
        "node:a caller:b actions 1\n",
        "node:\x1b[2J caller:b actions 1",
        "node caller:b actions 1",
        f"node:{'a' * 112} caller:b actions 1",
        "hold 0 node:a caller:b actions",
        "post 1 5",
        "post 1.64 5",
        "post 01.0 5",
        "void 1.0 5",
    ],
)
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_line(text)


def test_an_opening_is_read_as_it_was_written() -> None:
    opening = Opening("caller:dora", "cpu_ms", DEBIT_LIMIT)
    assert parse_opening(opening.text) == opening
    for text in ("caller:dora cpu_ms", "caller:dora cpu_ms none", f"dora cpu_ms {DEBIT_LIMIT}"):
        with pytest.raises(InvalidRequest):
            parse_opening(text)


@given(st.text())
def test_every_name_becomes_an_account_of_its_own(text: str) -> None:
    assert is_account(caller_account(text))
    assert is_account(node_account(text))
    assert caller_account(text) != caller_account(text + "x")
    assert (caller_account(text) == "caller:anonymous") == (not text)


def test_who_passes_for_another_is_told_by_a_hash() -> None:
    assert caller_account("dora") == "caller:dora"
    for name in ("anonymous", "sha256:00", "a b", "\x1b[31m", "x" * 65, "-x"):
        assert caller_account(name).startswith("caller:sha256:")
    assert len(caller_account("\ud800")) == len("caller:sha256:") + 64


@pytest.mark.parametrize("value", ["node:a caller:b actions 1", [], [1], ["x"] * 65, {}, 5, [None]])
def test_lines_come_as_a_list_of_texts(value: object) -> None:
    for field in ("transfers", "accounts"):
        with pytest.raises(InvalidRequest):
            book.postings_of({field: value})


def postings(*lines: str, accounts: tuple[str, ...] = ()) -> book.Postings:
    found = book.postings_of({"transfers": list(lines), **({"accounts": list(accounts)} if accounts else {})})
    assert found is not None
    return found


def test_an_entry_holds_whole_or_not_at_all() -> None:
    kept = book.Book()
    kept.apply(0, 0, postings("node:a caller:b actions 1 cpu_ms 20"))
    before = [(a.name, a.unit, a.sums) for a in kept.accounts.all()]
    for refused in (
        postings("node:z caller:b bytes 5", "post 0.0 5"),
        postings("node:z caller:b bytes 5", f"hold 0 node:a caller:b actions {AMOUNT_MAX}"),
        postings("caller:q node:a bytes 5", accounts=(f"caller:q bytes {DEBIT_LIMIT}",)),
        postings("node:z node:z bytes 5"),
        postings("node:a caller:b actions 1", accounts=(f"node:a actions {CREDIT_LIMIT}",)),
    ):
        with pytest.raises(TransferRefused):
            kept.apply(1, 0, refused)
        assert [(a.name, a.unit, a.sums) for a in kept.accounts.all()] == before


def test_a_quota_is_a_limit_on_an_account() -> None:
    kept = book.Book()
    kept.apply(0, 0, postings("grant:ops caller:q cpu_ms 100", accounts=(f"caller:q cpu_ms {DEBIT_LIMIT}",)))
    kept.apply(1, 0, postings("hold 1000 caller:q node:a cpu_ms 80"))
    with pytest.raises(TransferRefused) as refused:
        kept.apply(2, 0, postings("caller:q node:a cpu_ms 21"))
    assert refused.value.fields["result"] == "exceeds_credits"
    kept.apply(2, 0, postings("post 1.0 30"))
    with pytest.raises(TransferRefused, match="already_posted"):
        kept.apply(3, 0, postings("post 1.0 30"))
    kept.apply(3, 0, postings("caller:q node:a cpu_ms 70"))
    with pytest.raises(TransferRefused, match="exceeds_credits"):
        kept.apply(4, 0, postings("caller:q node:a cpu_ms 1"))


def test_rows_are_read_as_they_were_written_and_keep_their_length() -> None:
    kept = book.Book()
    lengths = set()
    for index in range(3):
        kept.apply(index, 0, postings(f"node:a caller:b cpu_ms {10**index}", "hold 5 node:a caller:b cpu_ms 3"))
        accounts: dict[Account, Sums] = {}
        kept.tell_changed(accounts, {})
        kept.settle()
        for account, sums in accounts.items():
            number, record = book.account_row(account, sums)
            lengths.add((number, len(record)))
            again = book.decode_account(number, record)
            assert again is not None
            assert (again.name, again.unit, again.limit, again.sums) == (account.name, account.unit, "", sums)
    assert len(lengths) == 2
    fresh = book.Book()
    for account in kept.accounts.all():
        fresh.load(*book.account_row(account, account.sums))
    fresh.load_pendings(
        iter([book.pending_row(p, p.status) for p in kept.accounts.pendings() if p.status == "pending"])
    )
    for either in (kept, fresh):
        either.apply(9, 5, postings("caller:b node:a bytes 1"))
    assert [a.sums for a in kept.accounts.all()] == [a.sums for a in fresh.accounts.all()]


@given(st.binary(max_size=120))
def test_a_row_that_is_none_is_no_account(record: bytes) -> None:
    account = book.decode_account(1, record)
    if account is not None:
        assert book.account_row(account, account.sums) == (1, record)
