"""What a worker says of itself when it joins."""

from __future__ import annotations

from dataclasses import dataclass

from buildnet.model.action import Properties


@dataclass(frozen=True, slots=True)
class WorkerOffer:
    """One worker: `node` is its stable id, `boot_id` changes with every start of its process.

    `properties` are name and value pairs that requirements are matched against; a name may have several values.
    `tier` is the controller's trust in it, not its own claim.
    """

    node: str
    boot_id: str
    slots: int
    properties: Properties
    tier: str = "local"
