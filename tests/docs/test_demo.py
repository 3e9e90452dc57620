"""The demonstration does what the README says that it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_demonstration_runs_everything_once_and_proves_it() -> None:
    done = subprocess.run([sys.executable, "-m", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is proven" in done.stdout
    assert "the whole ledger verifies" in done.stdout
