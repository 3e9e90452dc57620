"""A bounded crash campaign of each kind; `make crash` runs the full one. Every acknowledged write survives kill -9."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, evicting

KILLS = int(os.environ.get("BUILDNET_CRASH_KILLS", "4"))
WRITES = 1500


def judge(campaign: Campaign) -> None:
    print(campaign.line())
    assert not campaign.lost
    assert not campaign.wrong
    assert campaign.acknowledged > 100 * campaign.kills
    assert not campaign.is_slow


@pytest.mark.timeout(300)
@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_was_acknowledged_survives_kills(tmp_path: Path, durability: str) -> None:
    arguments = ("--durability", durability)
    campaign = Campaign(tmp_path / "state", seed=4, arguments=arguments, writes_per_round=WRITES)
    campaign.run(KILLS)
    judge(campaign)


@pytest.mark.timeout(300)
def test_kills_during_evictions_and_rolls_leave_nothing_wrong(tmp_path: Path) -> None:
    campaign = evicting(tmp_path / "state", seed=5, writes_per_round=4 * WRITES)
    campaign.run(KILLS)
    judge(campaign)
    segments = sorted((tmp_path / "state" / "cas" / "segments").glob("*.seg"))
    # The first ones are gone and many followed: kills fell between rolls and evictions.
    assert int(segments[0].stem) > 1
    assert int(segments[-1].stem) > len(segments)
