"""What flows that start commands themselves have in common."""

from __future__ import annotations

import os

import pytest

from tests.flow.isolations import ISOLATIONS, PROBE


@pytest.fixture(params=ISOLATIONS)
def isolation(request: pytest.FixtureRequest) -> str:
    """One after the other, as far as this machine has them."""
    if request.param == "namespaces" and not PROBE["namespaces"]:
        pytest.skip("this kernel or user cannot make namespaces")
    return str(request.param)


@pytest.fixture
def token(request: pytest.FixtureRequest) -> str:
    """An argument for `sleep` that no other process has."""
    return f"{1000 + os.getpid()}.{abs(hash(request.node.nodeid)) % 10**9:09d}"
