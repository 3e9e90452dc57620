"""A bounded crash campaign over the ledger; `make crash` runs the full one. No entry is lost, no balance off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.ledger_campaign import LedgerCampaign

KILLS = int(os.environ.get("BUILDNET_CRASH_KILLS", "4"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("durability", ["process", "power"])
def test_entries_and_balances_survive_kills(tmp_path: Path, durability: str) -> None:
    campaign = LedgerCampaign(tmp_path, seed=6, durability=durability)
    campaign.run(KILLS)
    print(campaign.line())
    assert not campaign.lost
    assert not campaign.wrong
    assert campaign.acknowledged > 20 * KILLS
