"""The append-only, tamper-evident log of what happened: the tree is pure, log writes, audit trusts nothing."""

from pathlib import Path

from buildnet.compiled import LEDGER, chosen

__path__[:0] = chosen(Path(__file__).parent.parent, LEDGER)
