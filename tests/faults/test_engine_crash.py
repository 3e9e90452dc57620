"""A bounded campaign against the engine; `make crash` runs the full one. What was accepted ends exactly once, and no
byte that was printed is lost.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.faults import networks
from tests.faults.engine_campaign import EngineCampaign

KILLS = int(os.environ.get("BUILDNET_CRASH_KILLS", "2"))
ACTIONS = 60


@pytest.mark.timeout(600)
def test_what_was_accepted_ends_once_however_often_the_controller_is_killed(tmp_path: Path) -> None:
    campaign = EngineCampaign(tmp_path, seed=6, actions=ACTIONS * KILLS)
    campaign.run(KILLS)
    print(campaign.line())
    assert not campaign.seen.failures
    assert (campaign.seen.kills, len(campaign.graph.ended)) == (KILLS, ACTIONS * KILLS)
    assert campaign.graph.followed


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(networks.refusal()), reason=networks.refusal())
def test_partitions_shorter_and_longer_than_a_lease(tmp_path: Path) -> None:
    asked = ["--kills", "1", "--partitions", "2", "--actions", str(2 * ACTIONS), "--seed", "7"]
    command = networks.in_hub(["tests.faults.engine_campaign", *asked])
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[2])
    line = ran.stdout.strip().splitlines()[-1]
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert line.startswith("1 kills, 2 partitions (1 longer than a lease)"), line
    assert f"{2 * ACTIONS} actions of a graph" in line
    assert "0 lost, 0 twice, 0 stale, 0 wrong" in line
