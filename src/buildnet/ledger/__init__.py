"""The append-only, tamper-evident log of what happened: tree and checkpoint are pure, log writes, audit trusts nothing."""
