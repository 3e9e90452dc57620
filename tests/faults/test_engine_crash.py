"""A bounded campaign against the engine; `make crash` runs the full one. What was accepted ends exactly once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.engine_campaign import EngineCampaign

KILLS = int(os.environ.get("BUILDNET_CRASH_KILLS", "3"))


@pytest.mark.timeout(600)
def test_what_was_accepted_ends_once_however_often_the_controller_is_killed(tmp_path: Path) -> None:
    campaign = EngineCampaign(tmp_path, seed=6, actions=40 * KILLS)
    campaign.run(KILLS)
    print(campaign.line())
    assert not campaign.failures
    assert (campaign.kills, campaign.ended >= 40 * KILLS) == (KILLS, True)
