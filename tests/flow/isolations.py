"""What this machine can keep commands apart by."""

from __future__ import annotations

from buildnet._native import probe_isolation

ISOLATIONS = ["namespaces", "process"]
PROBE = probe_isolation()
