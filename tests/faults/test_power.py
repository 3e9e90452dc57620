"""At `--durability power` what was acknowledged survives a cut of power: what was not synced by then may be gone."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.power import SYNCS, Disk, cutting
from tests.faults.process import NotReady

CUTS = int(os.environ.get("BUILDNET_CRASH_KILLS", "2"))
WRITES = 500

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="SKIPPED LOUDLY: no C compiler here")


@pytest.mark.timeout(300)
def test_what_was_acknowledged_survives_cuts_of_power(tmp_path: Path) -> None:
    campaign = cutting(tmp_path / "state", seed=2, writes_per_round=WRITES)
    campaign.run(CUTS)
    print(campaign.line())
    assert not campaign.lost
    assert not campaign.wrong
    assert campaign.acknowledged > 50 * CUTS


@pytest.mark.timeout(120)
@pytest.mark.parametrize("left_out", ["fsync", "fdatasync"])
def test_a_sync_that_is_left_out_is_seen(tmp_path: Path, left_out: str) -> None:
    # On a disk that has what was synced and no more, so that it does not depend on luck.
    syncs = [call for call in SYNCS if call != left_out]
    campaign = cutting(tmp_path / "state", seed=3, writes_per_round=WRITES, syncs=syncs, written_back=0.0)
    with suppress(NotReady):
        campaign.run(1)
    assert campaign.lost or campaign.wrong


def test_a_disk_holds_what_was_synced_and_of_the_rest_what_was_written_back(tmp_path: Path) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    state.mkdir()
    copy.mkdir()
    pages = [bytes([number]) * 4096 for number in range(4)]
    (state / "file").write_bytes(b"".join(pages))
    (state / "late").write_bytes(b"late")
    file = (state / "file").stat()
    (copy / str(file.st_ino)).write_bytes(bytes(8192))
    (copy / f"{state.stat().st_ino}.names").write_text(f"{file.st_ino} {file.st_mode} file\n")
    seen = set()
    for seed in range(60):
        target = tmp_path / str(seed)
        Disk(state, copy, random.Random(seed)).restore(target)
        found = (target / "file").read_bytes()
        assert len(found) >= 8192
        assert all(found[at : at + 4096] in (bytes(4096), pages[at // 4096]) for at in (0, 4096))
        assert found[8192:] == b"".join(pages)[8192 : len(found)]
        seen.add((len(found), found[4096:8192] == pages[1], (target / "late").exists()))
    # All that may be: with and without each of what was not synced.
    assert len({length for length, _, _ in seen}) == 3
    assert {page for _, page, _ in seen} == {late for _, _, late in seen} == {True, False}
