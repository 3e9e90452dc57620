"""The large simulation, small enough for every run; the whole is `make simulate`."""

from __future__ import annotations

import pytest

from tests.sim.large import summary


@pytest.mark.parametrize("seed", [1, 2])
def test_every_action_ends_once_and_nobody_starves(seed: int) -> None:
    said = summary(seed, 30, 3000, 200)
    assert "3000 actions" in said
    print(said)
