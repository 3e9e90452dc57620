"""A file is replaced whole, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from buildnet.files import replace_file


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_is_made_and_replaced_and_nothing_stays_beside_it(tmp_path: Path, synced: bool) -> None:
    path = tmp_path / "term"
    for text in ("1\n", "zwölf\n"):
        replace_file(path, text, synced=synced)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["term"]


def test_a_secret_is_nobody_elses_even_where_a_killed_process_left_its_draft(tmp_path: Path) -> None:
    path = tmp_path / "key"
    (tmp_path / "key.new").write_text("half")
    replace_file(path, "secret", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_cannot_be_written_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(path, "text")
    assert os.listdir(tmp_path) == ["kept"]
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "absent" / "name", "text")
