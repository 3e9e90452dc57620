"""The append-only, tamper-evident log of what happened: the tree is pure, log writes, audit trusts nothing."""
