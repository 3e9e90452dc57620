"""The journal of the queue: what a kill leaves is read in order, and damage is never taken for an end."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import StateCorrupt
from buildnet.queue import journal
from buildnet.queue.journal import Journal, Row

values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8) | st.binary(max_size=8)
rows = st.tuples(st.sampled_from(["begin", "end"]), st.lists(values, max_size=4).map(tuple))
writes = st.lists(st.lists(rows, min_size=1, max_size=3), min_size=1, max_size=4)


def written(directory: Path, batches: list[list[Row]], *, turns: bool = False) -> None:
    opened = Journal(directory, syncs=False)
    for batch in batches:
        opened.append(batch)
        if turns:
            opened.turn()
    opened.close()


@given(writes, st.booleans())
def test_what_is_written_is_read_in_order(batches: list[list[Row]], turns: bool) -> None:
    with TemporaryDirectory() as name:
        written(Path(name), batches, turns=turns)
        assert list(journal.read(Path(name))) == [row for batch in batches for row in batch]


@given(writes, st.data())
def test_a_file_that_was_cut_is_read_up_to_its_last_whole_write(batches: list[list[Row]], data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        written(Path(name), batches)
        (path,) = Path(name).iterdir()
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert list(journal.read(Path(name))) == [row for batch in batches[:complete] for row in batch]


@given(writes, st.data())
def test_no_altered_byte_is_taken_for_what_was_written(batches: list[list[Row]], data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        written(Path(name), batches)
        (path,) = Path(name).iterdir()
        altered = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(altered) - 1))
        altered[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(altered)
        expected = [row for batch in batches for row in batch]
        try:
            found = list(journal.read(Path(name)))
        except StateCorrupt:
            return
        # Only the last write can look like one that was never ended.
        assert found == expected[: len(expected) - len(batches[-1])]


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_two_writes_that_became_one_line_are_not_taken_for_one_that_was_never_ended(tmp_path: Path, cut: int) -> None:
    written(tmp_path, [[("end", (1,))], [("begin", (2,))]])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\n", b" ", 1)[: len(whole) - cut])
    with pytest.raises(StateCorrupt):
        list(journal.read(tmp_path))


def test_files_are_numbered_on_and_removed_once_they_are_not_needed(tmp_path: Path) -> None:
    written(tmp_path, [[("begin", (1,))]])
    again = Journal(tmp_path, syncs=True)
    again.append([("end", (1,))])
    files = again.turn()
    assert [path.name for path in files] == ["journal.0000000000000001", "journal.0000000000000002"]
    again.append([("begin", (2,))])
    journal.remove(files)
    again.close()
    assert list(journal.read(tmp_path)) == [("begin", (2,))]


def test_a_value_without_a_form_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    opened = Journal(tmp_path, syncs=False)
    with pytest.raises(TypeError):
        opened.append([("begin", (1 << 70,))])
    opened.close()
    assert list(journal.read(tmp_path)) == []
